"""The operator's endpoints, on a socket of their own: metrics, readiness in detail, what runs, and how to stop it.

They know no caller and ask for no key: who reaches the socket is the operator, which is why it is on loopback unless
he says otherwise, and never part of the public port.
"""

import re
from collections.abc import Callable
from ipaddress import ip_address
from typing import Final, Protocol, cast

import msgspec
from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.api import problems, routing
from app.api.callers import guard, is_served
from app.api.middleware import Edge
from app.errors import RelayError, invalid_request
from app.overview import Now, Overview
from app.settings import Settings

STARTING_RETRY_SECONDS: Final = 1.0
NO_STORE: Final = {"cache-control": "no-store"}

_ADDRESS: Final = re.compile(r"(\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<four>[0-9.]+))(:[0-9]{1,5})?", re.ASCII)

router = routing.router()


class Metrics(Protocol):
    """What writes the metrics down, as text of a content type."""

    @property
    def content_type(self) -> str: ...
    async def exposition(self, now: Now) -> bytes: ...


class Desk(msgspec.Struct, frozen=True):
    """What the operator has before him."""

    overview: Overview
    metrics: Metrics


def admin_app(settings: Settings, desk: Callable[[], Desk | None]) -> FastAPI:
    """`desk` gives None until the relay has started. A star among the names is for callers, who prove who they are."""
    names = tuple(name for name in settings.allowed_hosts if name != "*")
    app = FastAPI(title="sse-relay admin", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.desk = desk
    routing.route(app, router)
    app.add_exception_handler(HTTPException, problems.http_error)
    app.add_middleware(_Edge, allowed_hosts=names)
    return app


@router.get("/metrics", summary="Metrics for Prometheus")
async def metrics(request: Request) -> Response:
    desk = _desk(request)
    content = await desk.metrics.exposition(desk.overview.now())
    return Response(content, headers=NO_STORE | {"content-type": desk.metrics.content_type})


@router.get("/healthz", summary="Whether the process answers")
async def healthz(_request: Request) -> Response:
    return JSONResponse({"status": "ok"}, headers=NO_STORE)


@router.get("/readyz", summary="Whether new streams may come, and why not")
async def readyz(request: Request) -> Response:
    now = _desk(request).overview.now()
    return JSONResponse(_detail(now), 200 if now.status == "ready" else 503, NO_STORE)


@router.get("/streams", summary="The streams that are generated here now, the oldest first")
async def streams(request: Request) -> Response:
    shown = _desk(request).overview.streams()
    return JSONResponse({"streams": msgspec.to_builtins(shown)}, headers=NO_STORE)


@router.delete("/streams/{stream_id}", summary="Stop a stream")
async def stop(request: Request, stream_id: str) -> Response:
    guard(request, (), proof=False)  # the operator's browser may be on any page
    if not _desk(request).overview.stop(stream_id):
        raise RelayError("not_found", "no such stream runs here", phase="admission")
    return JSONResponse({"id": stream_id}, 202, NO_STORE)


class _Edge(Edge):
    """Scrapers and probes go by address: a Host that is one cannot be a stranger's name that points here."""

    def _admit(self, path: str, headers: Headers) -> None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not (_is_address(hosts[0]) or is_served(hosts[0], self._allowed_hosts)):
            message = "this is not the name of this relay; its operator can name it in RELAY_ALLOWED_HOSTS"
            raise invalid_request(message, param="Host", status=400)


def _is_address(host: str) -> bool:
    found = _ADDRESS.fullmatch(host)
    try:
        return found is not None and bool(ip_address(found["six"] or found["four"]))
    except ValueError:
        return False


def _desk(request: Request) -> Desk:
    desk = cast("Callable[[], Desk | None]", request.app.state.desk)()
    if desk is None:
        message = "the relay is starting"
        raise RelayError("overloaded", message, phase="admission", retry_after_s=STARTING_RETRY_SECONDS)
    return desk


def _detail(now: Now) -> dict[str, object]:
    upstreams = [
        {
            "name": upstream.name,
            "state": upstream.state,
            "streams": upstream.in_use,
            "max_streams": upstream.max_streams,
            "failures": upstream.failures,
            "opens_in_s": round(upstream.opens_in_s, 3),
            "rests_s": round(upstream.rests_s, 3),
        }
        for upstream in now.upstreams
    ]
    return {
        "status": now.status,
        "draining": now.status == "draining",
        "shared_log": now.shared_log,
        "streams": {"running": now.streams, "max": now.max_streams},
        "queue": {"waiting": now.queued, "max": now.max_queued},
        "log": {"bytes": now.log_bytes, "max_bytes": now.max_log_bytes},
        "upstreams": upstreams,
        "webhook": msgspec.to_builtins(now.webhook),
    }
