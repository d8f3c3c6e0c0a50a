"""Routes whose endpoints take the request as it is, and what their path names.

Bodies, queries and headers are read by hand (intake.py), so there is nothing for the framework to solve: it keeps the
routes, tells them apart and describes them. Its own handler around an endpoint costs as much as the endpoint's work.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send


class Direct(APIRoute):
    """Calls its endpoint and the answer; what they raise is told by the application's exception handlers."""

    def __init__(self, path: str, endpoint: Callable[..., Awaitable[Response]], **named: Any) -> None:
        super().__init__(path, endpoint, **named)
        self.app = _answering(endpoint)


def router(prefix: str = "", *, shown: bool = True) -> APIRouter:
    """`shown` in the OpenAPI document."""
    return APIRouter(prefix=prefix, route_class=Direct, include_in_schema=shown)


def route(app: FastAPI, *routers: APIRouter) -> None:
    """As routes of the application's own: an included router is asked twice for each request."""
    for each in routers:
        app.router.routes.extend(each.routes)


def _answering(endpoint: Callable[..., Awaitable[Response]]) -> ASGIApp:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        response = await endpoint(Request(scope, receive, send), **scope["path_params"])
        await response(scope, receive, send)

    return answer
