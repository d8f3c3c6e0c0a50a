"""The admin listener: a second, small server in the same loop, on a socket of its own.

It is there before the relay is and until the relay is gone, the drain included: the last scrape shows how it went.
Signals are the relay's alone.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import uvicorn

from app.api.admin import Desk, admin_app
from app.listener import Listener, listen
from app.protocol import Protocol
from app.settings import Settings, SettingsError

OFF: Final = -1

KEEP_ALIVE_SECONDS: Final = 75
"""Longer than a scraper's interval, which is mostly 15 to 60 s."""

MAX_CONNECTIONS: Final = 100
LAST_WORDS_SECONDS: Final = 1


@contextlib.asynccontextmanager
async def listening(settings: Settings, desk: Callable[[], Desk | None]) -> AsyncIterator[str | None]:
    """Serves while the block runs; gives the URL, or None where there is to be no listener.

    Raises SettingsError where its address cannot be had.
    """
    if settings.admin_port == OFF:
        yield None
        return
    server = Server(settings, desk, _socket(settings))
    serving = asyncio.create_task(server.serve(), name="admin listener")
    try:
        yield server.url
    finally:
        server.should_exit = True
        await serving


class Server(uvicorn.Server):
    """Stops when it is told to, not by signals."""

    def __init__(self, settings: Settings, desk: Callable[[], Desk | None], listening: socket.socket) -> None:
        bounds = {"max_header_bytes": settings.max_header_bytes, "max_connections": MAX_CONNECTIONS}
        protocol: Any = type("AdminProtocol", (Protocol,), bounds)
        super().__init__(
            uvicorn.Config(
                admin_app(settings, desk),
                http=protocol,
                ws="none",
                lifespan="off",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                log_config=None,
                log_level="warning",
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=LAST_WORDS_SECONDS,
            )
        )
        self._listening = listening

    @property
    def url(self) -> str:
        host, port = self._listening.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.servers = [Listener(self._listening, self._make_protocol)]  # type: ignore[list-item]
        self.started = True

    def _make_protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state={}
        )


def _socket(settings: Settings) -> socket.socket:
    try:
        return listen(settings.admin_host, settings.admin_port)
    except OSError as error:
        place = f"RELAY_ADMIN_PORT={settings.admin_port}"
        why = f"the admin listener cannot have {settings.admin_host}:{settings.admin_port}: {error.strerror}"
        raise SettingsError([f"{place}: {why}; choose another port, 0 for any, or -1 for no listener"]) from None
