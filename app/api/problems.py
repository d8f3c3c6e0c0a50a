"""Failures as HTTP answers: the contract's error object, in JSON or, for a client that reads events, as a stream."""

import json
import math
from typing import Any, cast

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from app.errors import Problem, RelayError, invalid_request
from app.wire import native


def accepts_events(request: Request) -> bool:
    return "text/event-stream" in request.headers.get("accept", "").lower()


def answer(problem: Problem, *, events: bool) -> Response:
    """With `events` the status is the same and the body an `error` event: some clients retry whatever is no stream."""
    headers = {"cache-control": "no-store", "vary": "Accept"}
    if problem.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(problem.retry_after_s))
    if not problem.retryable:
        headers["x-should-retry"] = "false"
    if problem.status == 413:
        headers["connection"] = "close"
    if events:
        return Response(native.failure(problem), problem.status, headers, native.CONTENT_TYPE)
    body = json.dumps({"error": problem.as_json()}, separators=(",", ":"))
    return Response(body, problem.status, headers, "application/json")


def identified(problem: Problem, request: Request) -> Problem:
    return msgspec.structs.replace(problem, request_id=request.scope["state"]["request_id"])


async def relay_error(request: Request, error: Exception) -> Response:
    """For a failure that was raised before there was a stream."""
    problem = identified(cast(RelayError, error).problem, request)
    return answer(problem, events=accepts_events(request))


async def http_error(request: Request, error: Exception) -> Response:
    """The framework's own refusals (no such path, wrong method) in the contract's shape."""
    refused = cast(HTTPException, error)
    if refused.status_code == 404:
        problem = RelayError("not_found", "no such path", phase="admission").problem
    else:
        problem = invalid_request(str(refused.detail), status=refused.status_code).problem
    made = answer(identified(problem, request), events=False)
    made.headers.update(cast(dict[str, Any], refused.headers or {}))
    return made
