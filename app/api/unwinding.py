"""Streams are served behind the router, not inside it.

The framework calls a response from within a dozen of its own calls. Each of their frames and exit stacks would wait
until the stream is over: a ninth of the memory that an open stream takes.
"""

from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

LASTING: Final = "relay.lasting"
"""In the scope: what is to be served when the router has returned."""


class Unwinding:
    """Pure ASGI, the innermost: a response that lasts puts itself into the scope instead of answering at once."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        lasting: list[ASGIApp] = []
        scope[LASTING] = lasting
        await self._app(scope, receive, send)
        for answer in lasting:
            await answer(scope, receive, send)
