"""Whether traces are kept. What keeps them is an extra, and is imported only then."""

from typing import Protocol

from app.settings import Settings, SettingsError
from app.summary import Summary
from app.trace_context import TraceContext


class Tracing(Protocol):
    def begin(self, parent: TraceContext | None, model: str) -> TraceContext:
        """A generation's span, beneath its caller's."""
        ...

    def over(self, summary: Summary, took_s: float) -> None: ...
    async def aclose(self) -> None: ...


def tracing(settings: Settings) -> Tracing | None:
    """Raises SettingsError where traces are asked for and the extra is not installed."""
    if settings.otel_exporter_otlp_endpoint is None:
        return None
    try:
        from app.telemetry.traces import Traces
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        words = 'traces need an extra: `pip install "sse-relay[otel]"`, or leave the variable out'
        raise SettingsError([f"OTEL_EXPORTER_OTLP_ENDPOINT: {words}"]) from None
    return Traces(settings.otel_exporter_otlp_endpoint)
