"""What is published about the events is what is sent: the JSON Schema, the OpenAPI document, the browser's types."""

import asyncio
import copy
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final, get_args

import jsonschema_rs
import pytest
import schemathesis

from app.errors import CODES, Phase, Problem
from app.events import Delta, Passed
from app.stream import Waiting
from app.wire import native, schema
from tests.relay import DOCUMENTED, SSE, Relay, Response, ask, chat, closed, connect, event_of, fetch, running
from tests.upstream import Upstream, answer, chunk, delta, done, finish, hang, head, reset, usage, wait

PATH: Final = "/chat/events.schema.json"
ROOT: Final = Path(__file__).parents[1]
PROTOCOL: Final = ROOT / "docs" / "protocol.md"
TYPES: Final = ROOT / "app" / "static" / "relay-client.d.ts"
UNTOLD: Final = {"padding"}
"""What a reader of the browser's client has no use for; it may pass it over as what it does not know."""

OPEN: Final = jsonschema_rs.Draft202012Validator(schema.document())
DEFINITIONS: Final = schema.definitions("#/$defs/{name}")
EVENTS: Final = {
    part["properties"]["type"]["const"]: part["properties"]
    for name, part in DEFINITIONS.items()
    if name.endswith("Event") and name not in ("Event", "UnknownEvent")
}
EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "start": {"protocol": 1, "id": f"s_{'0' * 32}", "model": "m", "resumable": True, "seq": 0},
    "delta": {"content": "Hel", "seq": 1},
    "reasoning": {"reasoning": "Let me", "seq": 2},
    "refusal": {"refusal": "No", "seq": 3},
    "tool_call": {"tool_call": {"index": 0, "id": "call_1", "name": "f", "arguments": ""}, "seq": 4},
    "chunk": {"seq": 5},
    "done": {
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12, "source": "reported"},
        "timings": {"first_token_s": None, "total_s": 2.03},
        "seq": 6,
    },
    "error": {
        "error": Problem(code="internal", message="", type="relay_error", retryable=False, status=500).as_json(),
        "seq": 6,
    },
    "ping": {"phase": "waiting", "elapsed_s": 31.2},
    "live_only": {},
}


def example(kind: str, **changed: object) -> dict[str, Any]:
    """An event of the type; `usage__source="x"` changes a field of a field, `...` takes a field away."""
    event = {"type": kind, "content": ""} | copy.deepcopy(EXAMPLES[kind])
    for path, value in changed.items():
        *outer, name = path.split("__")
        holder = event
        for part in outer:
            holder = holder[part]
        holder[name] = value
        if value is ...:
            del holder[name]
    return event


def test_there_is_an_example_of_each_type() -> None:
    assert EXAMPLES.keys() == EVENTS.keys()


@pytest.mark.parametrize("kind", EXAMPLES)
@pytest.mark.parametrize("changed", [{}, {"seq": ...}])
def test_an_event_passes_and_after_live_only_without_its_seq(kind: str, changed: dict[str, Any]) -> None:
    event = example(kind, **(changed if "seq" in EXAMPLES[kind] else {}))
    assert (DOCUMENTED.is_valid(event), OPEN.is_valid(event)) == (True, True)


WRONG: Final[list[object]] = [
    *(example(kind, content=...) for kind in EXAMPLES),
    *(example(kind, content=None) for kind in EXAMPLES),
    *(example(kind, content="x") for kind in EXAMPLES if kind != "delta"),
    *(example(kind, **{name: ...}) for kind, fields in EXAMPLES.items() for name in fields if name != "seq"),
    *(example(kind, seq=seq) for kind in EXAMPLES for seq in (-1, "1", 1.5, None)),
    *(example(kind, seq=1) for kind in ("start", "ping", "live_only")),
    *(example("start", **{name: value}) for name, value in [("protocol", 2), ("id", "s_1"), ("resumable", "yes")]),
    *(example("start", padding=value) for value in ("", "x", 4096)),
    *(example(kind, **{name: ""}) for kind, name in [("delta", "content"), ("reasoning", "reasoning")]),
    *(example("tool_call", **{f"tool_call__{name}": ...}) for name in ("index", "arguments")),
    *(example("tool_call", **{f"tool_call__{name}": None}) for name in ("id", "name")),
    *(example("done", **{f"usage__{name}": ...}) for name in EXAMPLES["done"]["usage"]),
    *(example("done", **{f"timings__{name}": ...}) for name in EXAMPLES["done"]["timings"]),
    *(example("done", usage__source="guessed"), example("done", timings__total_s=None)),
    *(example("error", **{f"error__{name}": ...}) for name in EXAMPLES["error"]["error"]),
    *(example("error", error__code="nope"), example("error", error__phase="waiting")),
    *(example("error", error__retryable=1), example("error", error="internal")),
    *(example("ping", phase="stream"), example("ping", elapsed_s="31.2")),
    *(example("delta", type=...), example("delta", type=None), [], None, "[DONE]"),
]


@pytest.mark.parametrize("event", WRONG, ids=lambda event: json.dumps(event)[:60])
def test_what_is_nearly_an_event_is_none(event: object) -> None:
    assert (DOCUMENTED.is_valid(event), OPEN.is_valid(event)) == (False, False)


LATER: Final[list[object]] = [
    *(example(kind, later=1) for kind in EXAMPLES),
    *(example("delta", reasoning="Let me"), example("reasoning", refusal="No"), example("ping", finish_reason="stop")),
    *(example("delta", padding="0"), example("live_only", phase="waiting")),
    *(example("tool_call", tool_call__later=1), example("done", usage__later=1), example("done", timings__later=1)),
    *(example("error", error__later=1), example("error", error__status=500)),
    {"type": "later", "content": "", "seq": 3},
]


@pytest.mark.parametrize("event", LATER, ids=lambda event: json.dumps(event)[:60])
def test_what_a_later_version_may_add_passes_a_client_and_fails_a_test(event: object) -> None:
    assert (DOCUMENTED.is_valid(event), OPEN.is_valid(event)) == (False, True)


@pytest.mark.parametrize("code", CODES)
def test_every_code_is_documented_with_its_type(code: str) -> None:
    event = example("error", error__code=code, error__type=CODES[code].type)
    assert DOCUMENTED.is_valid(event)


def test_every_phase_is_documented() -> None:
    assert all(DOCUMENTED.is_valid(example("error", error__phase=phase)) for phase in (*get_args(Phase), None))
    assert all(DOCUMENTED.is_valid(example("ping", phase=phase)) for phase in get_args(Waiting))


@pytest.fixture(scope="module")
async def quiet() -> AsyncIterator[Relay]:
    """A relay that is asked for nothing of upstream."""
    async with running("http://127.0.0.1:9/v1") as relay:
        yield relay


@pytest.fixture(scope="module")
async def openapi(quiet: Relay) -> dict[str, Any]:
    _, body = await fetch(quiet.port, "GET", "/openapi.json")
    document: dict[str, Any] = json.loads(body)
    return document


def test_the_protocols_page_tells_where_it_is() -> None:
    assert f"`GET {PATH}`" in PROTOCOL.read_text(encoding="utf-8")


async def test_the_schema_is_served_to_be_kept_and_is_json_schema(quiet: Relay) -> None:
    response, body = await fetch(quiet.port, "GET", PATH)
    served = json.loads(body)
    assert (response.status, response.headers["content-type"]) == (200, "application/schema+json")
    assert response.headers["cache-control"] == "public, max-age=3600"
    assert (served, served["$schema"]) == (schema.document(), "https://json-schema.org/draft/2020-12/schema")
    jsonschema_rs.meta.validate(served)


async def test_openapi_has_the_same_schemas(openapi: dict[str, Any]) -> None:
    at_home = json.dumps(openapi["components"]["schemas"]).replace("#/components/schemas/", "#/$defs/")
    assert DEFINITIONS.items() <= json.loads(at_home).items()
    streams = [("/chat/stream", "post"), ("/chat/stream", "get"), ("/chat/stream/{stream_id}", "get")]
    for path, method in streams:
        answer = openapi["paths"][path][method]["responses"]["200"]
        assert answer["content"] == {"text/event-stream": {"schema": {"$ref": "#/components/schemas/Event"}}}
        assert "[DONE]" in answer["description"]


async def test_openapi_is_valid_and_complete(openapi: dict[str, Any]) -> None:
    schemathesis.openapi.from_dict(openapi).validate()
    assert openapi["openapi"].startswith("3.1.")
    for part in openapi["components"]["schemas"].values():
        jsonschema_rs.meta.validate({"$schema": schema.DIALECT} | part)
    for ref in refs_in(openapi):
        place = openapi
        for name in ref.removeprefix("#/").split("/"):
            place = place[name]


def refs_in(part: object) -> Iterator[str]:
    match part:
        case {"$ref": str(ref)}:
            yield ref
        case dict():
            for inner in part.values():
                yield from refs_in(inner)
        case list():
            for inner in part:
                yield from refs_in(inner)


def promised(openapi: dict[str, Any], operation: str, response: Response, body: bytes) -> int:
    """The status, of an answer that has the headers and the JSON that the document has for it."""
    method, path = operation.split(" ")
    answers = openapi["paths"][path][method.lower()]["responses"]
    told = answers.get(str(response.status)) or answers[f"{response.status // 100}XX"]
    assert {name.lower() for name in told["headers"]} - {"retry-after"} <= response.headers.keys()
    kind = response.headers.get("content-type", "").partition(";")[0]
    assert (kind in told["content"]) if "content" in told else body == b""
    if kind == "application/json":
        root = {"components": closed(openapi["components"]), **told["content"][kind]["schema"]}
        jsonschema_rs.Draft202012Validator(root).validate(json.loads(body))
    return response.status


EVERYTHING: Final = (
    head(),
    delta(reasoning_content="Let me"),
    chunk("Hel"),
    delta(refusal="No"),
    delta(tool_calls=[{"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}]),
    delta(tool_calls=[{"index": 0, "function": {"arguments": '{"a"'}}]),
)


STREAM: Final = "/chat/stream"
BY_ID: Final = "/chat/stream/{stream_id}"
ANSWERS: Final = [
    (f"GET {STREAM}", "", "?message=hi&model=m", 200),
    (f"GET {STREAM}", "", "?modle=m", 422),
    (f"GET {BY_ID}", "whole", "", 200),
    (f"GET {BY_ID}", "whole", "?after=6", 204),
    (f"GET {BY_ID}", "whole", "?after=x", 400),
    (f"GET {BY_ID}", "live", "", 410),
    (f"GET {BY_ID}", "", "", 404),
    (f"GET {BY_ID}/result", "whole", "", 200),
    (f"GET {BY_ID}/result", "cut", "", 200),
    (f"GET {BY_ID}/result", "live", "", 410),
    (f"GET {BY_ID}/result", "", "", 404),
    (f"DELETE {BY_ID}", "whole", "", 202),
    (f"DELETE {BY_ID}", "", "", 404),
    (f"POST {BY_ID}/cancel", "whole", "", 202),
    (f"POST {BY_ID}/cancel", "", "", 404),
    (f"GET {PATH}", "", "", 200),
    ("GET /healthz", "", "", 200),
    ("GET /readyz", "", "", 200),
]
"""Operation, of which stream, query, status."""


async def test_what_is_answered_is_what_openapi_promises(openapi: dict[str, Any]) -> None:
    async with Upstream() as upstream, running(upstream.base_url, attempts=1) as relay:
        upstream.script(
            (*EVERYTHING, finish("tool_calls"), usage(3, 9), done()), (*EVERYTHING, reset()), answer("Hello")
        )
        asked = {"whole": chat(), "cut": chat(), "live": chat(on_disconnect="cancel")}
        begun = {which: (await ask(relay.port, body, headers=SSE))[0] for which, body in asked.items()}

        async def status(operation: str, which: str, query: str) -> int:
            method, path = operation.split(" ")
            url = path.replace("{stream_id}", begun[which].headers["x-stream-id"] if which else "s_0") + query
            return promised(
                openapi, operation, *await fetch(relay.port, method, url, headers={"sec-fetch-site": "same-origin"})
            )

        assert [(*row, await status(*row)) for *row, _ in ANSWERS] == ANSWERS
        for body, wanted in [(chat(), 200), ({"modle": "m"}, 422)]:
            answered = await fetch(relay.port, "POST", STREAM, body)
            assert promised(openapi, f"POST {STREAM}", *answered) == wanted
        relay.streams.draining = True
        assert await status("GET /readyz", "", "") == 503


async def test_streams_with_everything_are_documented() -> None:
    """`event_of` raises where one is not."""
    silent, long = asyncio.Event(), [chunk("x" * 1000) for _ in range(20)]
    settings = {"first_frame_padding_bytes": 16, "heartbeat_seconds": 0.05, "log_stream_bytes": 4096}
    async with Upstream() as upstream, running(upstream.base_url, log_lag_bytes=4096, **settings) as relay:
        upstream.script((*EVERYTHING, wait(silent), *long, finish(), usage(3, 9)), (*EVERYTHING, reset()))
        async with connect(relay.port) as connection:
            blocks = (await connection.request("POST", "/chat/stream", chat(), SSE)).blocks()
            events = [event_of(await anext(blocks))]
            while events[-1]["type"] != "ping":
                events.append(event_of(await anext(blocks)))
            silent.set()
            events += [event_of(block) async for block in blocks]
        _, failed = await ask(relay.port, chat())
    kinds = {event["type"] for event in events + failed}
    assert "padding" in events[0]
    assert kinds == EVENTS.keys() - {"chunk"} | {"[DONE]"}


def test_what_has_no_word_here_is_documented() -> None:
    """In a stream that was begun in OpenAI's dialect."""
    entries = [Passed(b"{}", None), Passed(b"{}", Delta("Hel"))]
    written, _ = native.Shape("s_1", ids=False).encode(1, entries, None)
    assert [event_of(block)["type"] for block in written.decode().split("\n\n")[:-1]] == ["chunk", "delta"]


async def test_a_stream_that_was_stopped_is_documented() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as connection:
        upstream.script((head(), chunk("Hel"), hang()))
        response = await connection.request("POST", "/chat/stream", chat(), SSE)
        await fetch(relay.port, "DELETE", f"/chat/stream/{response.headers['x-stream-id']}")
        assert (await response.events())[-2]["finish_reason"] == "cancelled"


DECLARED: Final = re.sub(r"/\*\*.*?\*/", "", TYPES.read_text(encoding="utf-8"), flags=re.DOTALL)


def declared(start: str) -> str:
    """A declaration of the browser's types, up to the next."""
    return DECLARED.partition(start)[2].partition("\n\n")[0]


def fields_in(text: str) -> dict[str, bool]:
    """The fields of an object type, and whether each is optional; those of objects inside it are left out."""
    inside = re.sub(r"\{[^{}]*\}", "", text[text.index("{") + 1 : text.rindex("}")])
    return {name: bool(optional) for name, optional in re.findall(r"(\w+)(\??):", inside)}


def test_the_browsers_types_are_the_documented_ones() -> None:
    kept = fields_in(declared("interface Kept"))
    variants = declared("export type RelayEvent =").split("\n  | ")[1:]
    told = {
        variant.partition('type: "')[2].partition('"')[0]: fields_in(variant).keys()
        | (kept.keys() if variant.startswith("(Kept") else set())
        for variant in variants
    }
    assert told.keys() <= EVENTS.keys() <= told.keys() | UNTOLD
    for kind, fields in told.items():
        documented = {name for name, part in EVENTS[kind].items() if part is not False}
        assert fields <= documented <= fields | UNTOLD, kind


@pytest.mark.parametrize("name", ["Usage", "ToolCallPiece", "Problem"])
def test_the_browsers_objects_are_the_documented_ones(name: str) -> None:
    part = DEFINITIONS[name]
    documented = {field: field not in part["required"] for field in part["properties"]}
    assert fields_in(declared(f"export interface {name}")) == documented


def test_the_browsers_phases_are_the_documented_ones() -> None:
    assert re.findall(r'"(\w+)"', declared("export type Phase")) == [*get_args(Phase)]
    ping = declared("export type RelayEvent").partition('type: "ping"')[2].partition("elapsed_s")[0]
    assert re.findall(r'"(\w+)"', ping) == [*schema.PING_PHASES]
