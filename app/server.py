"""Our own uvicorn: it owns the listening socket, closes it first when it is told to stop, and lets streams finish.

- Accepts up to 256 connections per readiness: uvloop takes one per turn of the loop, and behind a flood of streams
  health checks, Stop and herds of reconnects would queue for seconds.
- Accepted sockets inherit what is set on the listening one: a send buffer small enough for the send timeout to mean
  something, and an end for clients that vanished without a word.
- A second request while the first is being answered ends both: pipelining blinds the detection of a departure.
- SIGTERM: the socket is closed at once, so that a balancer's connect goes elsewhere; streams have the grace to finish,
  and what is left ends as `draining`. A second signal ends everything now.
"""

import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine
from types import FrameType
from typing import Any, Final

import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.api.callers import is_loopback
from app.api.response import ABORT
from app.errors import invalid_request
from app.main import create_app
from app.settings import Settings
from app.streams import Streams

ACCEPTS_PER_TURN: Final = 256
BACKLOG: Final = 8192
SEND_BUFFER_BYTES: Final = 96 * 1024
"""The kernel doubles it; without it some 4 MB of an unread stream would vanish into the socket."""

WRITE_BUFFER_BYTES: Final = 16 * 1024
"""What waits in the process for a client that is slower than its stream; the kernel's buffer comes before it."""

VANISHED_SECONDS: Final = 20
"""A peer that acknowledges nothing, or answers no probe, for so long is gone."""

KEEP_ALIVE_SECONDS: Final = 75
"""Longer than nginx keeps its connections to upstreams (60 s), so that it never writes to one we are closing."""

LAST_WORDS_SECONDS: Final = 5
"""What uvicorn grants connections after the grace, to take their last event."""


class PipelinedRequest(Exception):
    """A request that came while another was being answered."""


class HeadTooLarge(Exception):
    """A request line and headers beyond `max_header_bytes`."""


class Protocol(HttpToolsProtocol):
    """HTTP/1.1, with a bound on the head, no pipelining, and failures in the contract's shape."""

    max_header_bytes = 64 * 1024
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        self.scope["extensions"] = {ABORT: {"call": self.transport.abort}}

    def on_url(self, url: bytes) -> None:
        self._grow(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._grow(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._answering():
            raise PipelinedRequest
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is no HTTP; while a response is under way there is nothing to say but good-bye."""
        if self._answering():
            self.transport.close()
            return
        too_large = self._head_bytes > self.max_header_bytes
        words = (
            f"the request line and headers may have {self.max_header_bytes} bytes" if too_large else "this is not HTTP"
        )
        problem = invalid_request(words, param="headers" if too_large else None, status=400).problem
        body = json.dumps({"error": problem.as_json()}, separators=(",", ":")).encode()
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[400] + head + body)
        self.transport.close()

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _grow(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self.max_header_bytes:
            raise HeadTooLarge


class Listener:
    """The listening socket and its accepting, in the form in which uvicorn closes its servers."""

    def __init__(self, listening: socket.socket, make_protocol: Callable[[], asyncio.Protocol]) -> None:
        self._socket = listening
        self._make_protocol = make_protocol
        self._loop = asyncio.get_running_loop()
        self._handshakes: set[asyncio.Task[Any]] = set()
        self._loop.add_reader(listening.fileno(), self._accept)

    def close(self) -> None:
        if self._socket.fileno() >= 0:
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


class Server(uvicorn.Server):
    """One process, one socket, one drain."""

    def __init__(self, app: FastAPI, settings: Settings, listening: socket.socket) -> None:
        protocol = type("Protocol", (Protocol,), {"max_header_bytes": settings.max_header_bytes})
        grace = settings.drain_grace_seconds
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                lifespan="on",
                access_log=False,
                server_header=False,
                log_config=None,
                log_level="warning",
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=int(grace) + LAST_WORDS_SECONDS,
            )
        )
        self._app = app
        self._grace_s = grace
        self._listening = listening
        self.listening: Final = asyncio.Event()
        self._drain: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        self._loop = asyncio.get_running_loop()
        self.servers = [Listener(self._listening, self._make_protocol)]  # type: ignore[list-item]
        self.started = True
        self.listening.set()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the drain, the second ends it. Either way the process ends well, with status 0."""
        self.force_exit = self.should_exit
        self._loop.call_soon_threadsafe(self._end_now if self.force_exit else self._begin_drain)
        self.should_exit = True

    def _make_protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    @property
    def _streams(self) -> Streams:
        streams: Streams = self._app.state.parts.streams
        return streams

    def _begin_drain(self) -> None:
        for server in self.servers:
            server.close()
        self._streams.draining = True
        self._drain = self._loop.create_task(self._drain_after_grace(), name="drain")

    async def _drain_after_grace(self) -> None:
        await asyncio.sleep(self._grace_s)
        await self._streams.close()

    def _end_now(self) -> None:
        self._drain = self._loop.create_task(self._streams.close(), name="end")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket whose options every accepted connection inherits; raises `OSError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_USER_TIMEOUT", VANISHED_SECONDS * 1000),
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


async def serve(settings: Settings, *, on_ready: Callable[[str], Awaitable[None]] | None = None) -> None:
    """Serves until SIGTERM or SIGINT; `on_ready` is started with the relay's URL once it listens."""
    listening = listen(settings.host, settings.port)
    host, port = listening.getsockname()[:2]
    server = Server(create_app(settings), settings, listening)
    running = asyncio.create_task(server.serve(), name="server")
    try:
        if on_ready is not None and await _ready(server, running):
            await on_ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        await running
    finally:
        server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await running


def run(main: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine on the fastest loop there is."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


def may_listen(settings: Settings) -> bool:
    """Beyond loopback anybody could spend the upstream key: that takes client keys or the operator's word."""
    return settings.allow_anonymous or is_loopback(settings.host)


async def _ready(server: Server, running: asyncio.Task[None]) -> bool:
    ready = asyncio.ensure_future(server.listening.wait())
    await asyncio.wait((ready, running), return_when=asyncio.FIRST_COMPLETED)
    ready.cancel()
    return server.started
