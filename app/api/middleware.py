"""The ASGI edge: every request gets its id, every host is one of ours, and no exception of ours goes unanswered."""

import random
import re
from typing import Final

import structlog
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import problems
from app.api.callers import is_served
from app.errors import RelayError, invalid_request

_SANE: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)
SECURITY_HEADERS: Final = ((b"x-content-type-options", b"nosniff"), (b"cross-origin-resource-policy", b"same-origin"))
"""Of every answer: it is what it says it is, and no page elsewhere takes it in as a picture or a script."""

PROBES: Final = ("/healthz", "/readyz")
"""Asked by address, not by name, and they tell no secrets."""

KNOWN_HOSTS: Final = 64
KNOWN_HOST_LENGTH: Final = 255
"""To look at a name costs a tenth of a refusal: so many that were found to be served are remembered."""

logger = structlog.get_logger("app.api")


class Edge:
    """Pure ASGI: it costs a stream one call per request and one per send."""

    def __init__(self, app: ASGIApp, allowed_hosts: tuple[str, ...]) -> None:
        self._app = app
        self._allowed_hosts = allowed_hosts
        self._served: set[str] = set()

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
            self._admit(scope["path"], headers)
            await self._app(scope, receive, send_identified)
        except RelayError as error:
            await self._answer(error, scope, receive, send_identified)
        except Exception:
            logger.exception("internal", request_id=request_id, path=ascii(scope["path"][:200]))
            if started:
                raise
            fault = RelayError("internal", "a fault of the relay; quote the request id", phase="relay")
            await self._answer(fault, scope, receive, send_identified)

    def _admit(self, path: str, headers: Headers) -> None:
        hosts = headers.getlist("host")  # more than one is to be refused (RFC 9112 §3.2): which would we have checked?
        if path not in PROBES and not (len(hosts) == 1 and self._serves(hosts[0])):
            message = "this relay does not serve that host; its operator can name it in RELAY_ALLOWED_HOSTS"
            raise invalid_request(message, param="Host", status=400)

    def _serves(self, host: str) -> bool:
        if host in self._served:
            return True
        served = is_served(host, self._allowed_hosts)
        if served and len(self._served) < KNOWN_HOSTS and len(host) <= KNOWN_HOST_LENGTH:
            self._served.add(host)
        return served

    async def _answer(self, error: RelayError, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        problem = problems.identified(error.problem, request)
        response = problems.answer(problem, events=problems.wants_events(request))
        await response(scope, receive, send)


def _request_id(headers: Headers) -> str:
    asked = headers.get("x-request-id", "")
    return asked if _SANE.fullmatch(asked) else f"r_{random.getrandbits(96):024x}"  # nobody's secret
