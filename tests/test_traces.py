"""Traces: what a collector gets of a stream, what upstream is told of it, and that streams know nothing of either."""

import re
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from app.main import create_app
from app.settings import SettingsError, load
from app.settings.listing import effective
from app.telemetry import traces
from app.trace_context import TraceContext, received
from tests.relay import ask, chat, connect, event_of, fetch, running, settings_for, text_of
from tests.served import ROOT, SERVE, served
from tests.upstream import Upstream, answer, chunk, hang, head, pause, reset, status
from tests.webhook_receiver import Receiver
from tests.webhook_receiver import status as replied

TRACE: Final = "0af7651916cd43dd8448eb211c80319c"
CALLER: Final = "b7ad6b7169203331"
PARENT: Final = f"00-{TRACE}-{CALLER}-01"
SECONDS: Final = 1_000_000_000
SECRETS: Final = ("a secret prompt", "a secret answer", "test-key")


class Spans:
    """A collector: the spans that came to it, by name and as plain values."""

    def __init__(self) -> None:
        self.receiver: Final = Receiver(replied(200, {"content-type": "application/x-protobuf"}))

    @property
    def url(self) -> str:
        return self.receiver.url.removesuffix("/hook").replace("localhost", "127.0.0.1")

    @property
    def resources(self) -> list[dict[str, Any]]:
        return [attributes(each.resource.attributes) for page in self._pages for each in page.resource_spans]

    @property
    def all(self) -> list[Any]:
        assert {call.line for call in self.receiver.received} <= {"POST /v1/traces HTTP/1.1"}
        scopes = [scope for page in self._pages for each in page.resource_spans for scope in each.scope_spans]
        return [span for scope in scopes for span in scope.spans]

    def named(self, name: str) -> Any:
        [found] = [span for span in self.all if span.name == name]
        return found

    @property
    def _pages(self) -> list[Any]:
        return [ExportTraceServiceRequest.FromString(call.body) for call in self.receiver.received]


def attributes(pairs: Sequence[Any]) -> dict[str, Any]:
    return {pair.key: plain(pair.value) for pair in pairs}


def plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(each) for each in value.array_value.values]
    return getattr(value, kind)


def told(upstream: Upstream, number: int = 0) -> str:
    return upstream.requests[number].headers["traceparent"]


# What a collector gets


async def test_each_request_to_upstream_carries_a_span_of_its_own() -> None:
    spans = Spans()
    async with spans.receiver, Upstream() as upstream:
        upstream.script(answer("Hello"), answer("Hello"))
        async with running(upstream.base_url, otel_exporter_otlp_endpoint=spans.url) as relay:
            for _ in range(2):
                await ask(relay.port, chat())
    assert told(upstream, 0) != told(upstream, 1)


async def test_a_stream_is_a_span_beneath_its_callers_with_its_attempt_beneath_it() -> None:
    spans = Spans()
    async with spans.receiver, Upstream() as upstream:
        upstream.script(answer("Hel", "lo", usage=(5, 2)))
        async with running(upstream.base_url, otel_exporter_otlp_endpoint=spans.url) as relay:
            headers = {"traceparent": PARENT, "tracestate": "a=1, b=2", "x-request-id": "r1"}
            response, _ = await ask(relay.port, chat(), headers=headers)
    stream, attempt = spans.named("chat m"), spans.named("attempt default")
    assert (stream.trace_id.hex(), stream.parent_span_id.hex()) == (TRACE, CALLER)
    assert (attempt.trace_id.hex(), attempt.parent_span_id) == (TRACE, stream.span_id)
    assert len({stream.span_id, attempt.span_id}) == 2
    assert told(upstream) == f"00-{TRACE}-{attempt.span_id.hex()}-01"
    assert upstream.requests[0].headers["tracestate"] == stream.trace_state == attempt.trace_state == "a=1,b=2"
    assert (stream.kind, attempt.kind) == (stream.SPAN_KIND_CLIENT, stream.SPAN_KIND_CLIENT)
    assert (stream.status.code, attempt.status.code) == (0, 0)
    known = attributes(stream.attributes)
    assert [known.pop(name) >= 0 for name in ("gen_ai.response.time_to_first_chunk", "relay.longest_gap_s")]
    assert 0 <= known.pop("relay.queued_s") < 1
    assert known == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "m",
        "gen_ai.request.stream": True,
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 2,
        "relay.usage_source": "reported",
        "relay.stream": response.headers["x-stream-id"],
        "relay.request_id": "r1",
        "relay.caller": "anonymous",
        "relay.upstream": "default",
        "relay.cause": "finished",
        "relay.attempts": 1,
        "relay.pieces": 2,
        "relay.resumes": 0,
        "relay.live_only": False,
    }
    asked = attributes(attempt.attributes)
    assert 0 <= asked.pop("relay.connect_s") < 1
    assert asked == {"relay.upstream": "default", "relay.outcome": "finished"}
    [resource] = spans.resources
    assert (resource["service.name"], resource["telemetry.sdk.language"]) == ("sse-relay", "python")


async def test_what_is_told_of_times_is_when_it_was() -> None:
    spans = Spans()
    async with spans.receiver, Upstream() as upstream:
        begun, *rest = answer("Hel", "lo")
        upstream.script((begun, pause(0.1), *rest))
        async with running(upstream.base_url, otel_exporter_otlp_endpoint=spans.url) as relay:
            before_s = time.time()
            await ask(relay.port, chat())
            after_s = time.time()
    stream, attempt = spans.named("chat m"), spans.named("attempt default")
    admitted, first = stream.events
    assert (admitted.name, first.name) == ("admitted", "first token")
    moments = [stream.start_time_unix_nano, admitted.time_unix_nano, attempt.start_time_unix_nano]
    moments += [first.time_unix_nano, attempt.end_time_unix_nano, stream.end_time_unix_nano]
    assert moments == sorted(moments)
    assert before_s - 0.01 < moments[0] / SECONDS < moments[-1] / SECONDS - 0.1 < after_s - 0.09


async def test_every_attempt_has_a_span_of_its_own_that_its_upstream_was_told_of() -> None:
    spans = Spans()
    async with spans.receiver, Upstream() as first, Upstream() as second:
        first.script(status(500))
        second.script((head(), chunk("Hel"), reset()))
        tables = {"a": {"base_url": first.base_url}, "b": {"base_url": second.base_url, "priority": 1}}
        async with running("http://x", upstreams=tables, otel_exporter_otlp_endpoint=spans.url) as relay:
            await ask(relay.port, chat())
    stream, at_first, at_second = (spans.named(name) for name in ("chat m", "attempt a", "attempt b"))
    assert stream.parent_span_id == b""
    for upstream, attempt in ((first, at_first), (second, at_second)):
        assert told(upstream) == f"00-{stream.trace_id.hex()}-{attempt.span_id.hex()}-03"
        assert attempt.parent_span_id == stream.span_id
        assert attributes(attempt.attributes)["error.type"] == "upstream_unavailable"
    assert at_first.end_time_unix_nano <= at_second.start_time_unix_nano
    assert [span.status.code for span in (stream, at_first, at_second)] == [2, 2, 2]
    known = attributes(stream.attributes)
    assert (known["error.type"], known["relay.attempts"], known["relay.upstream"]) == ("upstream_unavailable", 2, "b")


async def test_a_stream_that_was_stopped_is_no_error_and_one_that_never_began_asked_nobody() -> None:
    spans = Spans()
    async with spans.receiver, Upstream() as upstream:
        upstream.script((head(), chunk("Hel"), hang()))
        own: dict[str, Any] = {"max_streams": 1, "queue_timeout_seconds": 0.01, "hold_status_seconds": 0}
        async with (
            running(upstream.base_url, otel_exporter_otlp_endpoint=spans.url, **own) as relay,
            connect(relay.port) as connection,
        ):
            response = await connection.request("POST", "/chat/stream", chat())
            blocks = response.blocks()
            assert [event_of(await anext(blocks))["type"] for _ in range(2)] == ["start", "delta"]
            await ask(relay.port, chat(model="late"))
            await fetch(relay.port, "DELETE", f"/chat/stream/{response.headers['x-stream-id']}")
            assert [block async for block in blocks][-1] == "data: [DONE]"
    stopped, attempt, late = (spans.named(name) for name in ("chat m", "attempt default", "chat late"))
    known = attributes(stopped.attributes)
    assert (known["relay.cause"], known["gen_ai.response.finish_reasons"]) == ("deleted", ["cancelled"])
    assert known["relay.usage_source"] == "estimated"
    assert attributes(attempt.attributes)["relay.outcome"] == "deleted"
    assert (stopped.status.code, attempt.status.code, late.status.code) == (0, 0, 2)
    waited = attributes(late.attributes)
    assert (waited["error.type"], waited["relay.attempts"], len(late.events)) == ("overloaded", 0, 0)
    assert "gen_ai.usage.input_tokens" not in waited


async def test_no_prompt_answer_or_key_is_in_a_trace() -> None:
    spans = Spans()
    async with spans.receiver, Upstream() as upstream:
        upstream.script(answer("a secret answer", finish="a secret answer"), model="m" * 200)
        upstream.script(status(400, b'{"error": {"message": "a secret prompt"}}'), model="refused")
        async with running(upstream.base_url, otel_exporter_otlp_endpoint=spans.url) as relay:
            for model in ("m" * 200, "refused"):
                await ask(relay.port, chat("a secret prompt", model=model, system="a secret prompt"))
    whole = b"".join(call.body for call in spans.receiver.received)
    assert len(spans.all) == 4
    assert [secret for secret in SECRETS if secret.encode() in whole] == []
    long = spans.named(f"chat {'m' * 128}")
    assert attributes(long.attributes)["gen_ai.response.finish_reasons"] == ["other"]


async def test_the_names_of_all_that_is_told_are_documented() -> None:
    document = (ROOT / "docs/tracing.md").read_text()
    source = (ROOT / "app/telemetry/spans.py").read_text()
    named = set(re.findall(r'"((?:gen_ai|relay|error)\.[\w.]+)"', source))
    assert named == set(re.findall(r"^\| `((?:gen_ai|relay|error)\.[\w.]+)`", document, re.MULTILINE))


async def test_the_sdks_own_variables_hold_and_fastapi_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = Spans()
    async with spans.receiver, Upstream() as upstream:
        for name, value in (
            ("OTEL_SERVICE_NAME", "ours"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x"),
            ("OTEL_TRACES_SAMPLER", "parentbased_always_off"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", spans.url),
            ("FASTAPI_OTEL_AUTO_CONFIGURE", "true"),
        ):
            monkeypatch.setenv(name, value)
        upstream.script(answer("Hello"))
        upstream.script(answer("Hello"))
        async with running(upstream.base_url) as relay:
            await ask(relay.port, chat())
            await ask(relay.port, chat(), headers={"traceparent": PARENT})
    assert told(upstream, 0).endswith("-02")
    assert {span.trace_id.hex() for span in spans.all} == {TRACE}
    assert len(spans.all) == 2
    assert {resource["service.name"] for resource in spans.resources} == {"ours"}
    assert {call.headers["authorization"] for call in spans.receiver.received} == {"Bearer x"}


# What upstream is told


async def test_where_the_caller_keeps_no_trace_none_is_kept_and_upstream_is_told_so() -> None:
    spans = Spans()
    async with spans.receiver, Upstream() as upstream:
        upstream.script(answer("Hello"))
        async with running(upstream.base_url, otel_exporter_otlp_endpoint=spans.url) as relay:
            await ask(relay.port, chat(), headers={"traceparent": f"{PARENT[:-2]}00"})
    assert re.fullmatch(f"00-{TRACE}-[0-9a-f]{{16}}-00", told(upstream))
    assert CALLER not in told(upstream)
    assert spans.all == []


async def test_without_traces_upstream_is_told_nothing_of_its_callers() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(answer("Hello"))
        await ask(relay.port, chat(), headers={"traceparent": PARENT, "tracestate": "a=1"})
    assert not {"traceparent", "tracestate"} & upstream.requests[0].headers.keys()


async def test_an_operators_own_header_wins() -> None:
    spans = Spans()
    async with spans.receiver, Upstream() as upstream:
        upstream.script(answer("Hello"))
        tables = {"a": {"base_url": upstream.base_url, "headers": {"traceparent": "none"}}}
        async with running("http://x", upstreams=tables, otel_exporter_otlp_endpoint=spans.url) as relay:
            await ask(relay.port, chat())
    assert told(upstream) == "none"


GOOD: Final = TraceContext(TRACE, CALLER, 1)


@pytest.mark.parametrize(
    ("parents", "found"),
    [
        ([PARENT], GOOD),
        ([f"00-{TRACE}-{CALLER}-ff"], msgspec.structs.replace(GOOD, flags=3)),
        ([f"00-{TRACE}-{CALLER}-00"], msgspec.structs.replace(GOOD, flags=0)),
        ([f"01-{TRACE}-{CALLER}-01"], GOOD),
        ([f"01-{TRACE}-{CALLER}-01-more"], GOOD),
        ([], None),
        ([""], None),
        ([PARENT, PARENT], None),
        ([f"{PARENT}-more"], None),
        ([f"{PARENT}-"], None),
        ([f"01-{TRACE}-{CALLER}-01more"], None),
        ([f"ff-{TRACE}-{CALLER}-01"], None),
        ([PARENT.upper()], None),
        ([f"00-{TRACE.upper()}-{CALLER}-01"], None),
        ([f"00-{TRACE}-{CALLER.upper()}-01"], None),
        ([f" {PARENT}"], None),
        ([f"{PARENT}\n"], None),
        ([f"00-{'0' * 32}-{CALLER}-01"], None),
        ([f"00-{TRACE}-{'0' * 16}-01"], None),
        ([f"00-{TRACE[1:]}-{CALLER}-01"], None),
        ([f"00-{TRACE}-{CALLER}-1"], None),
        ([f"00-{TRACE}-{CALLER}-0g"], None),
        ([f"00-{'٣' * 32}-{CALLER}-01"], None),
    ],
)
def test_only_a_good_traceparent_is_a_parent(parents: list[str], found: TraceContext | None) -> None:
    assert received(parents, []) == found


@pytest.mark.parametrize(
    ("states", "found"),
    [
        (["a=1"], "a=1"),
        (["a=1,b=2", "c=3"], "a=1,b=2,c=3"),
        (["a=1 ,\t b=2,,"], "a=1,b=2"),
        (["1t@sys=v w"], "1t@sys=v w"),
        ([",".join(f"k{n}=v" for n in range(32))], ",".join(f"k{n}=v" for n in range(32))),
        ([",".join(f"k{n}=v" for n in range(33))], ""),
        (["a=1,a=2"], ""),
        (["a=1,b"], ""),
        (["a="], ""),
        (["A=1"], ""),
        (["a=b=c"], ""),
        (["a=é"], ""),
        (["a=" + "x" * 256], "a=" + "x" * 256),
        (["a=" + "x" * 257], ""),
        (["a=" + "x" * 250, "b=" + "x" * 250, "c=" + "x" * 20], ""),
    ],
)
def test_a_tracestate_is_passed_on_whole_or_not_at_all(states: list[str], found: str) -> None:
    assert received([PARENT], states) == msgspec.structs.replace(GOOD, state=found)


async def test_a_bad_parent_begins_a_trace_of_its_own() -> None:
    spans = Spans()
    async with spans.receiver, Upstream() as upstream:
        upstream.script(answer("Hello"))
        async with running(upstream.base_url, otel_exporter_otlp_endpoint=spans.url) as relay:
            await ask(relay.port, chat(), headers={"traceparent": PARENT.upper(), "tracestate": "a=1"})
    stream = spans.named("chat m")
    assert (stream.parent_span_id, stream.trace_state) == (b"", "")
    assert stream.trace_id.hex() != TRACE
    assert "tracestate" not in upstream.requests[0].headers


# What streams know of it


@pytest.mark.parametrize("how", ["closed", "hang", "refuses"])
async def test_a_collector_that_is_away_disturbs_no_stream(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "FLUSH_SECONDS", 0.2)
    collector = Receiver("hang" if how == "hang" else replied(503))
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    async with collector, Upstream() as upstream:
        port = port if how == "closed" else collector.port
        upstream.script(answer("Hel", "lo"))
        async with running(upstream.base_url, otel_exporter_otlp_endpoint=f"http://127.0.0.1:{port}") as relay:
            _, events = await ask(relay.port, chat())
            ending_s = time.monotonic()
        assert time.monotonic() - ending_s < 2
    assert (text_of(events), events[-1]["type"]) == ("Hello", "[DONE]")


MISSING: Final = ("opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.proto")
"""What the extra brings; some of OpenTelemetry is there without it, since FastAPI needs it."""


async def test_without_the_extra_a_relay_runs(tmp_path: Path) -> None:
    block = f"import sys\nsys.modules.update(dict.fromkeys({MISSING}))\n"
    (tmp_path / "sitecustomize.py").write_text(block)
    async with Upstream() as upstream:
        upstream.script(answer("Hel", "lo"))
        path = f"{tmp_path}:{ROOT}"
        async with served(tmp_path, upstream, *SERVE, PYTHONPATH=path, RELAY_DEFAULT_MODEL="m") as relay:
            _, events = await ask(relay.port, chat())
    assert text_of(events) == "Hello"


def test_where_the_extra_is_missed_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {*MISSING, *(name for name in sys.modules if name.startswith(MISSING))}:
        monkeypatch.setitem(sys.modules, name, None)  # as in a process that never had it
    monkeypatch.delitem(sys.modules, "app.telemetry.traces")
    with pytest.raises(SettingsError) as caught:
        create_app(settings_for("http://x", otel_exporter_otlp_endpoint="http://127.0.0.1:4318"))
    [message] = caught.value.messages
    assert message.startswith('OTEL_EXPORTER_OTLP_ENDPOINT: traces need an extra: `pip install "sse-relay[otel]"`')


def test_an_endpoint_is_a_url_whose_password_is_told_to_nobody() -> None:
    settings = settings_for("http://x", otel_exporter_otlp_endpoint="http://user:secret@collector:4318")
    [row] = [row for row in effective(settings) if row.variable == "OTEL_EXPORTER_OTLP_ENDPOINT"]
    assert row.value == "http://…@collector:4318"
    with pytest.raises(SettingsError) as caught:
        load(otel_exporter_otlp_endpoint="user:secret@collector:4317")
    assert caught.value.messages == ("OTEL_EXPORTER_OTLP_ENDPOINT: must be an http:// or https:// URL",)
