"""Puts the parts together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI
from sse_starlette.sse import AppStatus
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from app import __version__
from app.api import ag_ui, ai_sdk, document, openai, opening, page, problems, routes, schema
from app.api.middleware import Edge
from app.catalogue import Catalogue
from app.errors import RelayError
from app.fleet import Fleet
from app.settings import Settings, load
from app.streams import Streams
from app.telemetry import logs, telling
from app.upstream.client import Upstream

CORS_REQUEST_HEADERS = (
    *("content-type", "authorization", "last-event-id", "idempotency-key", "x-request-id", "x-on-disconnect"),
    *(f"x-timeout-{name}" for name in ("connect", "first-token", "idle", "total")),
    *(f"x-stainless-{name}" for name in ("arch", "async", "lang", "os", "package-version", "retry-count")),
    *("openai-organization", "openai-project", "x-stainless-raw-response"),
    *("x-stainless-poll-helper", "x-stainless-custom-poll-interval"),
    *(f"x-stainless-{name}" for name in ("runtime", "runtime-version", "timeout", "read-timeout", "helper-method")),
)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The relay as an ASGI application; without `settings` it reads them from the environment."""
    chosen = settings or load()
    logs.configure(chosen)
    # sse-starlette would end every stream at once on SIGTERM; here streams finish, and server.py says until when.
    AppStatus.enable_automatic_graceful_drain = False
    lifespan = partial(_lifespan, chosen)
    app = FastAPI(
        title="sse-relay",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # its Location would have our scheme and host, which are not those of a proxy
    )
    routers = (routes.router, openai.router, ai_sdk.router, ag_ui.router, schema.router, page.router)
    for router in routers:
        app.include_router(router)
    app.add_exception_handler(RelayError, problems.relay_error)
    app.add_exception_handler(ClientDisconnect, problems.departed)
    app.add_exception_handler(HTTPException, partial(problems.http_error, routers))
    app.add_middleware(
        CORSMiddleware,
        allow_origins=chosen.cors_origins,
        allow_methods=("GET", "POST", "DELETE", "OPTIONS"),
        allow_headers=CORS_REQUEST_HEADERS,
        expose_headers=("x-stream-id", "x-request-id", "retry-after"),
    )
    app.add_middleware(Edge, allowed_hosts=chosen.allowed_hosts)
    document.describe(app)
    return app


@asynccontextmanager
async def _lifespan(settings: Settings, app: FastAPI) -> AsyncIterator[None]:
    key = settings.openai_api_key.get_secret_value() if settings.openai_api_key else None
    upstream = Upstream(settings.openai_base_url, key, user_agent=f"sse-relay/{__version__}")
    fleet = _fleet(settings, upstream)
    app.state.parts = opening.Parts(settings, fleet.streams, fleet, Catalogue(upstream, settings.default_model))
    try:
        yield
    finally:
        await fleet.streams.close()
        await fleet.aclose()
        await upstream.aclose()


def _fleet(settings: Settings, upstream: Upstream) -> Fleet:
    if settings.redis_url is None:
        telling.tell_of_siblings()
        return Fleet(Streams(upstream, settings), None)
    from app.elsewhere import Elsewhere  # who needs no Redis need not wait for its client, nor hold it
    from app.log.sharing import Sharing, Terms

    terms = Terms(
        url=settings.redis_url.get_secret_value(),
        prefix=settings.redis_prefix,
        lease_s=settings.redis_lease_seconds,
        keep_s=settings.redis_ttl_seconds,
    )
    sharing = Sharing(terms)
    streams = Streams(upstream, settings, sharing)
    elsewhere = Elsewhere(sharing, streams.budget, max_lag_bytes=settings.log_lag_bytes)
    streams.on_close = elsewhere.break_off
    sharing.start(cancel=streams.cancel)
    return Fleet(streams, elsewhere)
