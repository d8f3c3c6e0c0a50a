"""Our own uvicorn: it closes its listening socket first when it is told to stop, and lets streams finish.

SIGTERM: the socket is closed at once, so that a balancer's connect goes elsewhere; what it sends on connections that it
has open is still served, with `Connection: close`, since a refusal would reach the client: no balancer repeats what it
has sent. An answer under way is the last of its connection, and connections without a request are closed. All that is
open has the grace to finish; what is left ends as `draining`, and who reads a stream of another process is sent there.
A second signal ends everything now.
"""

import asyncio
import contextlib
import gc
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine
from types import FrameType
from typing import Any, Final, cast

import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE

from app import admin
from app.api.callers import is_loopback
from app.listener import Listener, listen
from app.main import create_app
from app.protocol import Protocol
from app.settings import Settings
from app.streams import Streams

KEEP_ALIVE_SECONDS: Final = 75
"""Longer than nginx keeps its connections to upstreams (60 s), so that it never writes to one we are closing."""

COLLECTION_THRESHOLDS: Final = (700, 5, 100)
"""All that lives (20 ms with 250 streams) is gone through every few thousand streams, not every few hundred."""

DESCRIPTORS: Final = 16 * 1024
"""For so many the kernel's table is made at the start: to double it later stops the process for 10 ms each time."""

IDLE_SECONDS: Final = 5
"""A connection without a request for so long is closed in a drain. A balancer takes the one first that it used last:
what is left over for so long it takes in a wave of requests alone, and loses those that cross with the close.
"""

LOOK_SECONDS: Final = 0.05
"""How often a drain looks whether it is done."""

LAST_WORDS_SECONDS: Final = 5
"""What connections are given after the grace, to take their last event; then they are cut."""

CUT_SECONDS: Final = 1
"""What cut connections' tasks are given to end by themselves, before uvicorn cancels them with a traceback each."""


class Server(uvicorn.Server):
    """One process, one socket, one drain."""

    def __init__(self, app: FastAPI, settings: Settings, listening: socket.socket) -> None:
        protocol: Any = type("Protocol", (Protocol,), _bounds(settings))
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
                timeout_graceful_shutdown=LAST_WORDS_SECONDS + CUT_SECONDS,
                forwarded_allow_ips=list(settings.trusted_proxies),
            )
        )
        self._app = app
        self._protocol: type[Protocol] = protocol
        self._grace_s = settings.drain_grace_seconds
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
        if self.should_exit:  # told so while it started; who has connected by now is served
            self._begin_drain()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn begins by closing idle connections: here they are served until no stream runs."""
        await asyncio.sleep(0)  # the signal that brought us here has asked for `_begin_drain`, which comes first
        if self._drain is not None:
            await asyncio.wait([self._drain])
        cutting = self._loop.call_later(LAST_WORDS_SECONDS, self._cut)
        await super().shutdown(sockets)
        cutting.cancel()
        if self.force_exit:
            await self.lifespan.shutdown()  # uvicorn leaves it out, and connections to upstream stay open

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the drain, the second ends it. Either way the process ends well, with status 0."""
        self.force_exit, self.should_exit = self.should_exit, True
        if self.started and not self.force_exit:
            self._loop.call_soon_threadsafe(self._begin_drain)

    def _make_protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    @property
    def _connections(self) -> list[Protocol]:
        return cast(list[Protocol], [*self.server_state.connections])

    @property
    def _streams(self) -> Streams:
        streams: Streams = self._app.state.parts.streams
        return streams

    def _begin_drain(self) -> None:
        for server in self.servers:
            server.close()
        self._streams.draining = self._protocol.draining = True
        self._grace_over_at = self._loop.time() + self._grace_s
        for connection in self._connections:
            connection.part()
        self._drain = self._loop.create_task(self._drain_in_place(), name="drain")

    async def _drain_in_place(self) -> None:
        for server in self.servers:
            await server.wait_closed()
        while not self._drained():  # noqa: ASYNC110 — at every look connections are closed, and signals set no event
            await asyncio.sleep(LOOK_SECONDS)
        await self._streams.close()

    def _drained(self) -> bool:
        """Whether there is nothing to wait for, or no time left."""
        if self.force_exit or self._loop.time() >= self._grace_over_at:
            return True
        for connection in self._connections:
            connection.dismiss(IDLE_SECONDS)
        return not self._connections and not self._streams.running

    def _cut(self) -> None:
        for connection in self._connections:
            connection.transport.abort()


def _bounds(settings: Settings) -> dict[str, float]:
    return {
        "max_header_bytes": settings.max_header_bytes,
        "max_body_bytes": settings.max_body_bytes,
        "max_connections": settings.max_connections,
        "head_timeout_s": settings.head_timeout_seconds,
    }


async def serve(settings: Settings, *, on_ready: Callable[[str, str | None], Awaitable[None]] | None = None) -> None:
    """Serves until SIGTERM or SIGINT; `on_ready` is told the URLs of the relay and of its admin listener,
    once they listen. Raises SettingsError, and OSError where its address cannot be had.
    """
    _raise_descriptor_limit()
    listening = listen(settings.host, settings.port, send_timeout_s=settings.send_timeout_seconds)
    host, port = listening.getsockname()[:2]
    app = create_app(settings)
    server = Server(app, settings, listening)
    _settle_collector()
    async with admin.listening(settings, lambda: getattr(app.state, "desk", None)) as admin_url:
        running = asyncio.create_task(server.serve(), name="server")
        try:
            if on_ready is not None and await _ready(server, running):
                await on_ready(f"http://{f'[{host}]' if ':' in host else host}:{port}", admin_url)
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
    known = bool(settings.keys or settings.issuers)
    return (
        known
        or settings.allow_anonymous
        or is_loopback(f"[{settings.host}]" if ":" in settings.host else settings.host)
    )


async def _ready(server: Server, running: asyncio.Task[None]) -> bool:
    ready = asyncio.ensure_future(server.listening.wait())
    await asyncio.wait((ready, running), return_when=asyncio.FIRST_COMPLETED)
    ready.cancel()
    return server.started


def _raise_descriptor_limit() -> None:
    """A stream takes two descriptors, and the usual soft limit of 1,024 is for programs that use select()."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import fcntl
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        with socket.socket() as any_one:
            os.close(fcntl.fcntl(any_one, fcntl.F_DUPFD_CLOEXEC, min(DESCRIPTORS, hard) - 1))


def _settle_collector() -> None:
    """What is there before the first stream stays: to look at it all again takes 100 ms in which no token passes."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTION_THRESHOLDS)
