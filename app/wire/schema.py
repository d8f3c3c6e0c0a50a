"""The native dialect's events as JSON Schema 2020-12, for validators, generators of types, and this project's tests.

It is open, as clients are to be: fields and types of later versions pass. What one event cannot show stands in words:
that `seq` is missing from `live_only` on, that one `done` or `error` ends a stream.
"""

from collections.abc import Callable
from typing import Any, Final, get_args

import msgspec

from app.errors import CODES, Phase
from app.events import Usage
from app.wire.native import PROTOCOL

Schema = dict[str, Any]

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
PING_PHASES: Final = ("queued", "connecting", "waiting", "streaming")

FRAMING: Final = (
    "Server-sent events: `data: `, one line of ASCII JSON, and a blank line; LF only, no `event:` lines, no comments. "
    "Each of these JSON texts is one Event. With ids, an event that is kept also has `id: <stream>.<seq>` after its "
    "`data:` line, and the first one `retry:`. One `done` or `error` ends a stream; after it comes `data: [DONE]`, "
    "which is no JSON and has no id. Without `[DONE]` the connection was lost, not the stream."
)

TEXT: Final = {"type": "string"}
PIECE: Final = {"type": "string", "minLength": 1}
EMPTY: Final = {"type": "string", "const": ""}
FLAG: Final = {"type": "boolean"}
COUNT: Final = {"type": "integer", "minimum": 0}
SECONDS: Final = {"type": "number", "minimum": 0}
SEQ: Final = COUNT | {"description": "0, 1, 2 … without gaps; absent in what cannot be resumed, after `live_only`"}


def document() -> Schema:
    """The schema as it is served: one JSON text, one event."""
    return {
        "$schema": DIALECT,
        "title": f"An event of sse-relay's native dialect, protocol {PROTOCOL}",
        "description": FRAMING,
        "$ref": "#/$defs/Event",
        "$defs": definitions("#/$defs/{name}"),
    }


def definitions(ref: str) -> dict[str, Schema]:
    """Every schema under its name, `Event` above all; `ref` says where they stand, as in `#/$defs/{name}`."""

    def to(name: str) -> Schema:
        return {"$ref": ref.format(name=name)}

    events = {_name(event): event for event in (*_kept(to), *_passing())}
    kinds = [_kind(event) for event in events.values()]
    event = {
        "description": (
            "One event. `content` is a string in each: joined, they are the answer's text. Pass over types and fields "
            "that you do not know."
        ),
        "oneOf": [to(name) for name in (*events, "UnknownEvent")],
    }
    return {"Event": event} | events | {"UnknownEvent": _unknown(kinds)} | _parts(ref)


def object_of(fields: Schema, description: str, *, optional: Schema | None = None) -> Schema:
    """An object with these fields, of which all but the `optional` are always there."""
    return {
        "type": "object",
        "description": description,
        "required": [*fields],
        "properties": fields | (optional or {}),
    }


def or_null(schema: Schema) -> Schema:
    return schema | {"type": [schema["type"], "null"]}


def _kept(to: Callable[[str], Schema]) -> list[Schema]:
    """What a log keeps, and a reader that comes back gets again."""
    padding = {"type": "string", "pattern": "^0+$", "description": "for proxies that hold back small frames"}
    start: Schema = {
        "protocol": {"type": "integer", "const": PROTOCOL},
        "id": {"type": "string", "pattern": "^s_[0-9a-f]{32}$"},
        "model": TEXT,
        "resumable": FLAG,
    }
    zero = {"seq": {"type": "integer", "const": 0}, "padding": padding}
    reason = PIECE | {"description": "upstream's own; `cancelled` after a stop, `unknown` where upstream gave none"}
    end = {"finish_reason": reason, "usage": to("Usage"), "timings": to("Timings")}
    seq = {"seq": SEQ}
    return [
        _event("start", "The first event.", start, zero),
        _event("delta", "A piece of the answer's text.", {"content": PIECE}, seq),
        _event("reasoning", "A piece of what the model thinks before it answers.", {"reasoning": PIECE}, seq),
        _event("refusal", "A piece of the model's refusal.", {"refusal": PIECE}, seq),
        _event("tool_call", "A piece of a tool call.", {"tool_call": to("ToolCallPiece")}, seq),
        _event("chunk", "What this dialect has no word for, in a stream that was begun in OpenAI's.", {}, seq),
        _event("done", "The end: the answer is whole, or was stopped.", end, seq),
        _event("error", "The end: the answer is not whole, and why.", {"error": to("Problem")}, seq),
    ]


def _passing() -> list[Schema]:
    """What is said to those who listen, and not kept."""
    ping: Schema = {"phase": {"enum": [*PING_PHASES]}, "elapsed_s": SECONDS}
    never = {"seq": False}
    return [
        _event("ping", "Nothing has been said for a while; what the stream waits for.", ping, never),
        _event("live_only", "From here on the stream cannot be resumed.", {}, never),
    ]


def _event(kind: str, description: str, fields: Schema, optional: Schema) -> Schema:
    named = {"type": {"type": "string", "const": kind}, "content": EMPTY}
    return object_of(named | fields, description, optional=optional)


def _kind(event: Schema) -> str:
    return str(event["properties"]["type"]["const"])


def _name(event: Schema) -> str:
    return "".join(word.title() for word in _kind(event).split("_")) + "Event"


def _unknown(kinds: list[str]) -> Schema:
    later = {"type": "string", "not": {"enum": kinds}}
    return object_of({"type": later, "content": TEXT}, "A type of a later version: pass over it.")


def _parts(ref: str) -> dict[str, Schema]:
    call = {"index": COUNT, "arguments": TEXT | {"description": "JSON text; the pieces are to be joined"}}
    timings = {"first_token_s": or_null(SECONDS), "total_s": SECONDS}
    first = "`id` and `name` come with the first piece of a call."
    _, usage = msgspec.json.schema_components((Usage,), ref_template=ref)
    return usage | {
        "ToolCallPiece": object_of(call, first, optional={"id": TEXT, "name": TEXT}),
        "Timings": object_of(timings, "Since the request was taken; `first_token_s` is null where no token came."),
        "Problem": _problem(),
    }


def _problem() -> Schema:
    fields = {
        "code": {"enum": [*CODES]},
        "message": TEXT,
        "type": {"enum": sorted({code.type for code in CODES.values()})},
        "param": or_null(TEXT) | {"description": "the field or header at fault"},
        "phase": {"enum": [*get_args(Phase), None]},
        "retryable": FLAG | {"description": "whether the same request may succeed later"},
        "partial": FLAG | {"description": "whether text had come"},
        "upstream_status": or_null({"type": "integer"}),
        "request_id": or_null(TEXT),
    }
    return object_of(fields, "Why there is no whole answer; the same over HTTP and in a stream.")
