"""The listening socket: what accepted connections inherit from it, and how they are accepted.

Up to 32 connections per turn of the loop: uvloop takes one, and behind a flood of streams health checks, Stop and herds
of reconnects would queue for seconds. All of a herd in one turn, and every token would wait for all of it.
"""

import asyncio
import contextlib
import ctypes
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, Final

ACCEPTS_PER_TURN: Final = 32
BACKLOG: Final = 8192
SEND_BUFFER_BYTES: Final = 96 * 1024
"""The kernel doubles it; without it some 4 MB of an unread stream would vanish into the socket."""

VANISHED_SECONDS: Final = 18
"""A peer that acknowledges nothing, or answers no probe, for so long is gone; the kernel sees it up to a second later,
and 20 are promised. Linux counts a peer that reads nothing among them, so it is never less than the send timeout, which
cuts those off in good order, and some seconds."""

SEND_TIMEOUT_MARGIN_SECONDS: Final = 3

SO_ATTACH_FILTER: Final = 26
"""Linux's (asm-generic/socket.h); Python does not name it."""

NO_NEWCOMERS: Final = b"".join(
    struct.pack("@HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # the flags of the TCP header
        (0x45, 0, 1, 0x02),  # has it SYN?
        (0x06, 0, 0, 0),  # then it was never here
        (0x06, 0, 0, 0xFFFFFFFF),
    )
)
"""A packet filter: who would connect is not answered, and tries again in a second; by then nobody listens."""


def listen(host: str, port: int, *, send_timeout_s: float = 0) -> socket.socket:
    """A listening socket whose options every accepted connection inherits; raises `OSError`."""
    vanished_s = max(VANISHED_SECONDS, int(send_timeout_s) + SEND_TIMEOUT_MARGIN_SECONDS)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_NODELAY", 1),  # asyncio sets it on sockets that name their protocol, which accepted ones do not
            ("TCP_USER_TIMEOUT", vanished_s * 1000),
            ("TCP_KEEPIDLE", VANISHED_SECONDS // 2),
            ("TCP_KEEPINTVL", VANISHED_SECONDS // 4),
            ("TCP_KEEPCNT", 2),
        ):
            if hasattr(socket, name):
                made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        made.bind((host, port))
        made.listen(BACKLOG)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made


class Listener:
    """The listening socket and its accepting, in the form in which uvicorn closes its servers."""

    def __init__(self, listening: socket.socket, make_protocol: Callable[[], asyncio.Protocol]) -> None:
        self._socket = listening
        self._make_protocol = make_protocol
        self._loop = asyncio.get_running_loop()
        self._handshakes: set[asyncio.Task[Any]] = set()
        self._loop.add_reader(listening.fileno(), self._accept)

    def close(self) -> None:
        """Whoever has connected is still accepted: closing would reset a connection that may carry a request. So that
        nobody connects between the last accept and the close, nobody is let in any more before.
        """
        if self._socket.fileno() >= 0:
            _let_nobody_in(self._socket)
            for _ in range(BACKLOG // ACCEPTS_PER_TURN):
                self._accept()
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    async def wait_closed(self) -> None:
        if self._handshakes:
            await asyncio.wait(self._handshakes)

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                accepted, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:
                # Out of descriptors: the connection waits in the backlog, and we would be called without end.
                self._loop.remove_reader(self._socket.fileno())
                self._loop.call_later(0.1, self._resume)
                return
            accepted.setblocking(False)
            task = self._loop.create_task(self._loop.connect_accepted_socket(self._make_protocol, accepted))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    def _resume(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.add_reader(self._socket.fileno(), self._accept)


def _let_nobody_in(listening: socket.socket) -> None:
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(NO_NEWCOMERS)
    with contextlib.suppress(OSError):  # a sandbox may forbid it: then a moment is left in which one may be lost
        listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", 4, ctypes.addressof(program)))
