"""Puts the parts together."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Final, Self

import msgspec
from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from sse_starlette.sse import AppStatus
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, ExceptionHandler

from app import __version__
from app.api import ag_ui, ai_sdk, document, openai, opening, page, problems, routes, routing, schema, tokens
from app.api.admin import Desk
from app.api.gate import Gate
from app.api.middleware import Edge
from app.api.unwinding import Unwinding
from app.catalogue import Catalogue
from app.charging import Charging
from app.door.doorkeeper import Doorkeeper
from app.errors import RelayError
from app.fleet import Fleet
from app.means import BeginTrace, Means, no_trace
from app.overview import Overview
from app.quotas.counting import counting
from app.settings import Settings, load
from app.streams import Streams
from app.summary import Afterwards, Listener
from app.telemetry import logs, stream_log, telling
from app.telemetry.metrics import Metrics
from app.telemetry.tracing import Tracing, tracing
from app.upstream.egress import proxy_to
from app.upstream.pool import Pool
from app.webhook.calls import Webhook

ROUTERS: Final = (
    *(routes.router, openai.router, ai_sdk.router, ag_ui.router),
    *(tokens.router, schema.router, page.router),
)

CORS_REQUEST_HEADERS: Final = (
    *("content-type", "authorization", "last-event-id", "idempotency-key", "x-request-id", "x-on-disconnect"),
    *(f"x-timeout-{name}" for name in ("connect", "first-token", "idle", "total")),
    *(f"x-stainless-{name}" for name in ("arch", "async", "lang", "os", "package-version", "retry-count")),
    *("openai-organization", "openai-project", "x-stainless-raw-response"),
    *("traceparent", "tracestate"),
    *("x-stainless-poll-helper", "x-stainless-custom-poll-interval"),
    *(f"x-stainless-{name}" for name in ("runtime", "runtime-version", "timeout", "read-timeout", "helper-method")),
)

NO_TELEMETRY: Final[TelemetryConfig] = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""FastAPI's own would tell others what requests hold; ours (app/telemetry) knows what may be told."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """The relay as an ASGI application; without `settings` it reads them from the environment."""
    chosen = settings or load()
    logs.configure(chosen)
    # sse-starlette would end every stream at once on SIGTERM; here streams finish, and server.py says until when.
    AppStatus.enable_automatic_graceful_drain = False
    made = Made.of(chosen)
    app = Application(
        title="sse-relay",
        version=__version__,
        lifespan=partial(_lifespan, chosen, made),
        docs_url=None,
        redoc_url=None,
        telemetry=NO_TELEMETRY,
        redirect_slashes=False,  # its Location would have our scheme and host, which are not those of a proxy
    )
    routing.route(app, *ROUTERS)
    app.add_exception_handler(RelayError, problems.relay_error)
    app.add_exception_handler(ClientDisconnect, problems.departed)
    app.add_exception_handler(HTTPException, problems.http_error)
    _fence(app, chosen)
    document.describe(app)
    return app


class Application(FastAPI):
    """With nothing around its router but what is ours: each layer is passed by every request, and by each send."""

    def build_middleware_stack(self) -> ASGIApp:
        """Without the framework's answers to faults, to bodies and for telemetry: Edge and telemetry/ are there."""
        handlers: dict[Any, ExceptionHandler] = dict(self.exception_handlers)
        app: ASGIApp = ExceptionMiddleware(self.router, handlers)
        for layer, arguments, named in reversed(self.user_middleware):
            app = layer(app, *arguments, **named)
        return app


def _fence(app: FastAPI, settings: Settings) -> None:
    """What a request passes before it comes to a route, the last first."""
    app.add_middleware(Gate)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=("GET", "POST", "DELETE", "OPTIONS"),
        allow_headers=CORS_REQUEST_HEADERS,
        allow_credentials=settings.cors_credentials,
        expose_headers=("x-stream-id", "x-request-id", "retry-after"),
    )
    app.add_middleware(Unwinding)
    app.add_middleware(Edge, allowed_hosts=settings.allowed_hosts)


class Made(msgspec.Struct, frozen=True):
    """What is made before there is a loop, so that a setting that cannot be used is known before anything starts."""

    doorkeeper: Doorkeeper
    pool: Pool
    metrics: Metrics
    webhook: Webhook | None
    traces: Tracing | None

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Raises `SettingsError`."""
        user_agent = f"sse-relay/{__version__}"
        webhook = settings.webhook
        proxy_of = partial(proxy_to, settings=settings)
        return cls(
            Doorkeeper(settings, proxy_of=proxy_of),
            Pool.of(settings, user_agent=user_agent),
            Metrics(settings),
            None if webhook is None else Webhook(webhook, user_agent=user_agent, proxy=proxy_of(webhook.url)),
            tracing(settings),
        )

    @property
    def listeners(self) -> list[Listener]:
        """Who is told of each generation that has ended."""
        return [self.metrics, *([self.webhook] if self.webhook else [])]

    @property
    def afterwards(self) -> list[Afterwards]:
        """Who is told when nothing of it remains."""
        return [self.metrics.over, stream_log.tell, *([self.traces.over] if self.traces else [])]

    @property
    def begin_trace(self) -> BeginTrace:
        return no_trace if self.traces is None else self.traces.begin


@asynccontextmanager
async def _lifespan(settings: Settings, made: Made, app: FastAPI) -> AsyncIterator[None]:
    pool = made.pool
    redis_url = None if settings.redis_url is None else settings.redis_url.get_secret_value()
    async with AsyncExitStack() as closing:
        closing.enter_context(made.metrics.loop_lag.watching())
        closing.push_async_callback(made.doorkeeper.aclose)
        closing.push_async_callback(pool.aclose)
        if made.webhook is not None:
            closing.push_async_callback(made.webhook.aclose)
        if made.traces is not None:
            closing.push_async_callback(made.traces.aclose)
        counted = counting(redis_url, settings.redis_prefix, lease_s=settings.redis_lease_seconds)
        quotas = await closing.enter_async_context(counted)
        if quotas.spend is not None:
            made.doorkeeper.spend = quotas.spend
        charging = Charging(quotas.rates)
        closing.push_async_callback(charging.aclose)
        fleet = _fleet(settings, Means.of(settings, pool, quotas.tallies, quotas.rates, made.begin_trace))
        closing.push_async_callback(fleet.aclose)
        closing.push_async_callback(fleet.streams.close)
        fleet.streams.listeners += [*made.listeners, charging]
        fleet.streams.afterwards += made.afterwards
        catalogue = Catalogue(pool, settings.default_model)
        app.state.parts = opening.Parts(settings, fleet.streams, fleet, catalogue, made.doorkeeper)
        overview = Overview(settings, fleet, pool.states, lambda: None if made.webhook is None else made.webhook.now())
        app.state.desk = Desk(overview, made.metrics)
        yield


def _fleet(settings: Settings, means: Means) -> Fleet:
    if settings.redis_url is None:
        telling.tell_of_siblings()
        return Fleet(Streams(means, settings), None)
    from app.elsewhere import Elsewhere  # who needs no Redis need not wait for its client, nor hold it
    from app.log.sharing import Sharing, Terms

    terms = Terms(
        url=settings.redis_url.get_secret_value(),
        prefix=settings.redis_prefix,
        lease_s=settings.redis_lease_seconds,
        keep_s=settings.redis_ttl_seconds,
    )
    sharing = Sharing(terms)
    streams = Streams(means, settings, sharing)
    wait_s = settings.wait_seconds
    elsewhere = Elsewhere(sharing, streams.budget, max_lag_bytes=settings.log_lag_bytes, wait_s=wait_s)
    streams.on_close = elsewhere.break_off
    sharing.start(cancel=streams.cancel)
    return Fleet(streams, elsewhere)
