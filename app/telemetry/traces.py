"""Traces by OpenTelemetry: a span for each generation, and one beneath it for each attempt at an upstream.

A span is made when its generation is over, from the times that were kept: a token costs nothing, and a stream what two
spans cost. Only ids are made before, since upstream is told of the span that it is asked in. Spans leave in a thread of
the SDK's; where they cannot, the oldest are lost, and streams know nothing of it.

The SDK reads its other variables (OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS …) by itself. The
provider is not made the process's: what else there is of OpenTelemetry in our libraries stays off.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Mapping
from typing import Final

import msgspec
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from app import __version__
from app.summary import Summary, Try
from app.telemetry import spans
from app.trace_context import RANDOM, SAMPLED, TraceContext, new_trace

FLUSH_SECONDS: Final = 3.0
"""What is left is given so long to leave when the process ends."""

SERVICE: Final = "sse-relay"
NANOSECONDS: Final = 1_000_000_000


class _Given(IdGenerator):
    """The ids that upstream has been told already."""

    trace_id = span_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id

    def is_trace_id_random(self) -> bool:
        return True


class Traces:
    """Keeps those that the sampler wants, which is asked when a generation begins. `endpoint` is OTLP's, without a
    path.
    """

    def __init__(self, endpoint: str) -> None:
        logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)  # each of its retries is a warning
        resource = _resource()
        self._ids: Final = _Given()
        self._sampler: Final = TracerProvider(resource=resource, shutdown_on_exit=False).sampler
        self._provider: Final = TracerProvider(
            sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False, id_generator=self._ids
        )
        self._exporter: Final = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer: Final = self._provider.get_tracer("sse-relay", __version__)

    def begin(self, parent: TraceContext | None, model: str) -> TraceContext:
        """`app.means.BeginTrace`."""
        made = new_trace() if parent is None else parent.child()
        result = self._sampler.should_sample(
            _context(parent), int(made.trace_id, 16), spans.name_of(model), SpanKind.CLIENT, spans.asked(model)
        )
        sampled = SAMPLED if result.decision is Decision.RECORD_AND_SAMPLE else 0
        return msgspec.structs.replace(made, flags=made.flags & RANDOM | sampled)

    def over(self, summary: Summary, took_s: float) -> None:
        """`app.summary.Afterwards`."""
        trace = summary.trace
        if trace is None or not trace.sampled:
            return
        began_s = time.time() - took_s - summary.total_s
        told = spans.generation(summary)
        span = self._span(trace, _context(summary.parent), spans.name_of(summary.model), told, began_s)
        if summary.attempts:
            span.add_event("admitted", timestamp=_ns(began_s + summary.queued_s))
        if summary.first_token_s is not None:
            span.add_event("first token", timestamp=_ns(began_s + summary.first_token_s))
        for tried in summary.course.tries:
            self._tried(trace, tried, began_s, ended_s=min(tried.ended_s, summary.total_s))
        _end(span, began_s + summary.total_s, failed=summary.code is not None)

    async def aclose(self) -> None:
        """What cannot leave in time is lost."""
        loop, left = asyncio.get_running_loop(), asyncio.Event()

        def leave() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # too late: the loop is closed
                loop.call_soon_threadsafe(left.set)

        # No thread of the loop's own: those are waited for when the process ends, however long an exporter takes.
        threading.Thread(target=leave, name="last traces", daemon=True).start()
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await left.wait()
        except TimeoutError:
            self._exporter.shutdown()  # type: ignore[no-untyped-call]  # and tries no more

    def _tried(self, trace: TraceContext, tried: Try, began_s: float, *, ended_s: float) -> None:
        if tried.span_id is None:
            return
        own = msgspec.structs.replace(trace, span_id=tried.span_id)
        told = spans.attempt(tried)
        span = self._span(own, _context(trace), f"attempt {tried.upstream}", told, began_s + tried.asked_s)
        _end(span, began_s + ended_s, failed=tried.outcome not in spans.WELL)

    def _span(
        self, own: TraceContext, above: Context, name: str, told: Mapping[str, spans.Value], began_s: float
    ) -> Span:
        self._ids.trace_id, self._ids.span_id = int(own.trace_id, 16), int(own.span_id, 16)
        return self._tracer.start_span(name, above, SpanKind.CLIENT, told, start_time=_ns(began_s))


def _end(span: Span, at_s: float, *, failed: bool) -> None:
    if failed:
        span.set_status(Status(StatusCode.ERROR))
    span.end(_ns(at_s))


def _context(span: TraceContext | None) -> Context:
    """What is beneath it has it for its parent."""
    if span is None:
        return Context()
    state = TraceState.from_header([span.state]) if span.state else None
    ids = int(span.trace_id, 16), int(span.span_id, 16)
    parent = SpanContext(*ids, is_remote=True, trace_flags=TraceFlags(span.flags), trace_state=state)
    return set_span_in_context(NonRecordingSpan(parent), Context())


def _resource() -> Resource:
    """OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, else our name."""
    found = Resource.create({})
    if not str(found.attributes[SERVICE_NAME]).startswith("unknown_service"):
        return found
    return found.merge(Resource({SERVICE_NAME: SERVICE, "service.version": __version__}))


def _ns(at_s: float) -> int:
    return int(at_s * NANOSECONDS)
