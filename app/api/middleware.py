"""The ASGI edge: every request gets its id, every host is one of ours, and no exception of ours goes unanswered."""

import re
import secrets
from typing import Final

import structlog
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import problems
from app.api.callers import is_served
from app.errors import RelayError, invalid_request
from app.turns import OPENINGS_PER_LOOP, Turns

_SANE: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)
OPENINGS: Final = ("/chat/stream", "/v1/chat/completions", "/api/chat", "/ag-ui")
"""Where streams begin: a herd of them waits its turn here, so that probes and stops pass it."""

SECURITY_HEADERS: Final = ((b"x-content-type-options", b"nosniff"), (b"cross-origin-resource-policy", b"same-origin"))
"""Of every answer: it is what it says it is, and no page elsewhere takes it in as a picture or a script."""

PROBES: Final = ("/healthz", "/readyz")
"""Asked by address, not by name, and they tell no secrets."""

logger = structlog.get_logger("app.api")


class Edge:
    """Pure ASGI: it costs a stream one call per request and one per send."""

    def __init__(self, app: ASGIApp, allowed_hosts: tuple[str, ...]) -> None:
        self._app = app
        self._allowed_hosts = allowed_hosts
        self._openings = Turns(OPENINGS_PER_LOOP)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_identified(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"].append((b"x-request-id", request_id.encode("ascii")))
                message["headers"] += SECURITY_HEADERS
            await send(message)

        try:
            await self._admit(scope["path"], headers)
            await self._app(scope, receive, send_identified)
        except RelayError as error:
            await self._answer(error, scope, receive, send_identified)
        except Exception:
            logger.exception("internal", request_id=request_id, path=ascii(scope["path"][:200]))
            if started:
                raise
            fault = RelayError("internal", "a fault of the relay; quote the request id", phase="relay")
            await self._answer(fault, scope, receive, send_identified)

    async def _admit(self, path: str, headers: Headers) -> None:
        hosts = headers.getlist("host")  # more than one is to be refused (RFC 9112 §3.2): which would we have checked?
        if path not in PROBES and not (len(hosts) == 1 and is_served(hosts[0], self._allowed_hosts)):
            message = "this relay does not serve that host; its operator can name it in RELAY_ALLOWED_HOSTS"
            raise invalid_request(message, param="Host", status=400)
        if path in OPENINGS:
            await self._openings.take()

    async def _answer(self, error: RelayError, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        problem = problems.identified(error.problem, request)
        response = problems.answer(problem, events=problems.wants_events(request))
        await response(scope, receive, send)


def _request_id(headers: Headers) -> str:
    asked = headers.get("x-request-id", "")
    return asked if _SANE.fullmatch(asked) else f"r_{secrets.token_hex(12)}"
