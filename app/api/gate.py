"""Where streams begin: they begin a few at a time, and a request that could only be refused is refused unread.

Such a refusal costs a quarter of one that has been routed, read and understood, and waits for no opening: a herd that
comes while all is full is told at once, and those who read meanwhile lose nothing. Each of it is told a moment of its
own to come back at: a herd that is told one second comes back as one.
"""

import asyncio
import random
from typing import Final

import msgspec
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.admission.pace import spread_s
from app.api import problems
from app.api.opening import parts
from app.errors import RelayError
from app.means import Means
from app.turns import REFUSALS_PER_LOOP, Turns

OPENINGS: Final = ("/chat/stream", "/v1/chat/completions", "/api/chat", "/ag-ui")
"""Probes and stops pass the herd that waits for its turn at these."""

ATTACHING: Final = ("last-event-id", "idempotency-key")
"""Headers of a request that may be for a stream that there is: it takes no room, and only its route can tell."""


class Gate:
    """Pure ASGI, within CORS: a page elsewhere may read that it was refused, and when to come back.

    `_coming`: requests that may take room, and have not had their turn to ask for it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._refusals = Turns(REFUSALS_PER_LOOP)
        self._coming = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in OPENINGS:
            await self._app(scope, receive, send)
            return
        headers, request = Headers(scope=scope), Request(scope)
        means = parts(request).streams.means
        takes_room = not any(name in headers for name in ATTACHING)
        if takes_room and (refusal := self._shed(means)) is not None:
            await self._refusals.take()
            await self._refuse(refusal, request, receive, send)
            return
        self._coming += takes_room
        try:
            await means.openings.take()
        finally:
            self._coming -= takes_room
        await self._app(scope, receive, send)

    def _shed(self, means: Means) -> RelayError | None:
        return means.capacity.shed(self._coming, means.pool.room(), asyncio.get_running_loop().time())

    async def _refuse(self, refusal: RelayError, request: Request, receive: Receive, send: Send) -> None:
        problem = problems.identified(refusal.problem, request)
        assert problem.retry_after_s is not None  # who is refused for want of room is told when there will be some
        problem = msgspec.structs.replace(problem, retry_after_s=spread_s(problem.retry_after_s, random.random()))
        await problems.answer(problem, events=problems.wants_events(request))(request.scope, receive, send)
