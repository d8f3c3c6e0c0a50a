"""Failures as HTTP answers: the contract's error object, in JSON or, for a client that reads events, as a stream."""

import json
import math
from typing import cast

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Receive, Scope, Send

from app.api import callers
from app.errors import Problem, RelayError, invalid_request
from app.wire import native
from app.wire.dialect import CONTENT_TYPE


class Refusal(Response):
    """Is counted when it is sent, by the relay that it is an answer of: the admin listener counts none."""

    code = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (relay := getattr(scope["app"].state, "parts", None)) is not None:
            relay.fleet.counts.refused[self.status_code, self.code] += 1
        await super().__call__(scope, receive, send)


def accepts_events(request: Request) -> bool:
    return "text/event-stream" in request.headers.get("accept", "").lower()


def wants_events(request: Request) -> bool:
    """Whether a refusal is to be told as a stream: in the native dialect alone, all others know HTTP errors."""
    return request.scope["path"].startswith("/chat/") and accepts_events(request)


def answer(problem: Problem, *, events: bool) -> Response:
    """With `events` the status is the same and the body an `error` event: some clients retry whatever is no stream."""
    headers = {"cache-control": "no-store", "vary": "Accept"}
    if problem.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(problem.retry_after_s))
    if not problem.retryable:
        headers["x-should-retry"] = "false"
    headers.update(problem.headers)
    if events:
        return _refusal(problem, native.failure(problem), headers, CONTENT_TYPE)
    body = json.dumps({"error": problem.as_json()}, separators=(",", ":"))
    return _refusal(problem, body, headers, "application/json")


def _refusal(problem: Problem, body: bytes | str, headers: dict[str, str], media_type: str) -> Refusal:
    refusal = Refusal(body, problem.status, headers, media_type)
    refusal.code = problem.code
    return refusal


def identified(problem: Problem, request: Request) -> Problem:
    return msgspec.structs.replace(problem, request_id=request.scope["state"]["request_id"])


async def relay_error(request: Request, error: Exception) -> Response:
    """For a failure that was raised before there was a stream. It makes a subject known as every first answer does."""
    made = answer(identified(cast(RelayError, error).problem, request), events=wants_events(request))
    if cookie := callers.cookie_of_stranger(request):
        made.headers["set-cookie"] = cookie
    return made


async def departed(_request: Request, _error: Exception) -> Response:
    """The client left while its request was being read: nobody is there to read an answer (nginx's own status)."""
    return Response(status_code=499)


async def http_error(request: Request, error: Exception) -> Response:
    """The framework's own refusals (no such path, wrong method) in the contract's shape."""
    refused = cast(HTTPException, error)
    headers = dict(refused.headers or {})
    match refused.status_code:
        case 404:
            known = "; of /v1 there are /chat/completions and /models" if request.url.path.startswith("/v1/") else ""
            problem = RelayError("not_found", f"no such path{known}", phase="admission").problem
        case 405:
            headers["allow"] = ", ".join(_methods(request.app.routes, request.scope))
            problem = invalid_request(f"the methods of this path are {headers['allow']}", status=405).problem
        case status:
            problem = invalid_request(str(refused.detail), status=status).problem
    made = answer(identified(problem, request), events=wants_events(request))
    made.headers.update(headers)
    return made


def _methods(routes: list[BaseRoute], scope: Scope) -> list[str]:
    """All that a path knows: the framework names those of the first route that has the path (RFC 9110 §15.5.6)."""
    mine = (route for route in routes if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE)
    return sorted({method for route in mine for method in route.methods or ()})
