"""The AI SDK dialect's bytes: parts that are opened, written and closed in order, the same however they are batched."""

import json
import tracemalloc
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import RelayError
from app.events import Delta, Done, Event, Failed, Passed, Reasoning, Refusal, Start, ToolCall, Usage
from app.wire.ai_sdk import MAX_INPUT_CHARACTERS, Message
from tests.test_wire_native import END, ENTRY, START

STREAM: st.SearchStrategy[list[Event]] = st.builds(
    lambda start, pieces, end: [start, *pieces, end], START, st.lists(ENTRY, max_size=12), END
)
SID = f"s_{'0123456789abcdef' * 2}"
USAGE = Usage(3, 9, 12, "reported")


def done(finish_reason: str = "stop") -> Done:
    return Done(finish_reason, USAGE, 0.1234, 2)


def failed(code: str = "upstream_timeout", message: str = "too late") -> Failed:
    return Failed(RelayError(code, message).problem)


def written(events: Sequence[Event], message: Message | None = None) -> bytes:
    message, seq, data = message or Message(), 0, b""
    while seq < len(events):
        body, count = message.encode(seq, events[seq:], None)
        data, seq = data + body, seq + count
    return data


def told(*events: Event, message: Message | None = None) -> list[dict[str, Any]]:
    """The parts of a stream: each is `data: `, one line of JSON, and a blank line."""
    *blocks, rest = written([Start(SID, "m", True), *events], message).decode("ascii").split("\n\n")
    assert rest == ""
    assert all(block.startswith("data: {") and "\n" not in block for block in blocks)
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def types(parts: Sequence[dict[str, Any]]) -> list[str]:
    return [part["type"] for part in parts]


def call(index: int, arguments: str = "", *, id: str | None = None, name: str | None = None) -> ToolCall:
    return ToolCall(index, id, name, arguments)


class Reader:
    """What the SDK's `processUIMessageStream` asks of a stream; it ends at the first part that is out of place."""

    def __init__(self) -> None:
        self.open: dict[str, str] = {}
        self.texts = {"text": "", "reasoning": ""}
        self.calls: dict[str, str] = {}
        self.closed: list[str] = []
        self.finished = False

    def read(self, part: dict[str, Any]) -> None:
        assert not self.finished
        kind, _, verb = part["type"].rpartition("-")
        match kind, verb:
            case "text" | "reasoning", "start":
                assert part["id"] not in self.open | dict.fromkeys(self.closed, "")
                self.open[part["id"]] = kind
            case "text" | "reasoning", "delta":
                assert self.open[part["id"]] == kind
                self.texts[kind] += part["delta"]
            case "text" | "reasoning", "end":
                assert self.open.pop(part["id"]) == kind
                self.closed.append(part["id"])
            case _:
                self.read_more(part)

    def read_more(self, part: dict[str, Any]) -> None:
        match part["type"]:
            case "tool-input-start":
                assert part["toolCallId"] not in self.calls
                assert part["dynamic"]
                self.calls[part["toolCallId"]] = ""
            case "tool-input-delta":
                self.calls[part["toolCallId"]] += part["inputTextDelta"]
            case "tool-input-available":
                assert isinstance(part["input"], dict)
            case "tool-input-error":
                assert part["input"] == self.calls[part["toolCallId"]]
            case "finish" | "abort" | "error":
                assert self.open == {}
                self.finished = True
            case kind:
                assert kind in ("start", "start-step", "finish-step")


@given(events=STREAM)
@settings(deadline=None)
def test_every_part_is_in_its_place_and_says_what_its_events_carry(events: list[Event]) -> None:
    reader = Reader()
    for part in told(*events[1:]):
        reader.read(part)
    assert reader.finished
    said = [event.piece if isinstance(event, Passed) else event for event in events]
    texts = ((e.content if isinstance(e, Delta) else e.refusal) for e in said if isinstance(e, Delta | Refusal))
    assert reader.texts["text"] == "".join(texts)
    assert reader.texts["reasoning"] == "".join(event.reasoning for event in said if isinstance(event, Reasoning))
    pieces: dict[int, str] = {}
    for event in said:
        if isinstance(event, ToolCall):
            pieces[event.index] = pieces.get(event.index, "") + event.arguments
    assert list(reader.calls.values()) == list(pieces.values())


@given(events=STREAM, data=st.data())
@settings(deadline=None)
def test_the_bytes_are_the_same_in_any_batches(events: list[Event], data: st.DataObject) -> None:
    one_by_one = Message("m_1")
    pieces = [one_by_one.encode(seq, [event], None) for seq, event in enumerate(events)]
    assert [count for _, count in pieces] == [1] * len(events)
    cut, halves = data.draw(st.integers(0, len(events))), Message("m_1")
    whole = written(events, Message("m_1"))
    assert b"".join(piece for piece, _ in pieces) == whole
    assert written(events[:cut], halves) + written(events[cut:], halves) == whole
    assert whole.isascii()


def test_an_answer_of_every_kind_in_order() -> None:
    parts = told(
        *(Reasoning("Hm"), Reasoning("m."), Delta("Hel"), Passed(b"{}", None), Passed(b"{}", Delta("lo"))),
        *(call(0, id="call_1", name="f"), call(0, '{"a"'), call(0, ":1}"), done("tool_calls")),
    )
    named = {"toolCallId": "call_1", "toolName": "f", "dynamic": True}
    usage = {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12, "source": "reported"}
    metadata = {"model": "m", "usage": usage, "timings": {"first_token_s": 0.123, "total_s": 2}}
    assert parts == [
        {"type": "start", "messageId": SID},
        {"type": "start-step"},
        {"type": "reasoning-start", "id": "reasoning-1"},
        {"type": "reasoning-delta", "id": "reasoning-1", "delta": "Hm"},
        {"type": "reasoning-delta", "id": "reasoning-1", "delta": "m."},
        {"type": "reasoning-end", "id": "reasoning-1"},
        {"type": "text-start", "id": "text-2"},
        {"type": "text-delta", "id": "text-2", "delta": "Hel"},
        {"type": "text-delta", "id": "text-2", "delta": "lo"},
        {"type": "text-end", "id": "text-2"},
        {"type": "tool-input-start", **named},
        {"type": "tool-input-delta", "toolCallId": "call_1", "inputTextDelta": '{"a"'},
        {"type": "tool-input-delta", "toolCallId": "call_1", "inputTextDelta": ":1}"},
        {"type": "tool-input-available", **named, "input": {"a": 1}},
        {"type": "finish-step"},
        {"type": "finish", "finishReason": "tool-calls", "messageMetadata": metadata},
    ]


def test_a_refusal_is_text() -> None:
    parts = told(Delta("I "), Refusal("won't."), done())
    assert [part["delta"] for part in parts if part["type"] == "text-delta"] == ["I ", "won't."]
    assert types(parts).count("text-start") == 1


def test_interleaved_calls_are_told_apart_by_their_index() -> None:
    parts = told(
        call(0, '{"a":', id="x", name="f"),
        call(1, "{", id="y", name="g"),
        call(0, "1}"),
        call(1, "}"),
        done(),
    )
    inputs = [(part["toolName"], part["input"]) for part in parts if part["type"] == "tool-input-available"]
    assert inputs == [("f", {"a": 1}), ("g", {})]


def test_every_call_has_an_id_of_its_own_and_a_name() -> None:
    parts = told(call(0, id="same", name="f"), call(1, id="same", name="g"), call(2), call(1023, name="h"), done())
    starts = [(part["toolCallId"], part["toolName"]) for part in parts if part["type"] == "tool-input-start"]
    assert starts == [("same", "f"), (f"{SID}_1", "g"), (f"{SID}_2", "unknown"), (f"{SID}_1023", "h")]
    assert max(len(call_id) for call_id, _ in starts) <= 40


def test_a_name_that_comes_late_is_told_in_the_end() -> None:
    parts = told(call(0, "{}", id="x"), call(0, name="f"), done())
    assert [part["toolName"] for part in parts if "toolName" in part] == ["unknown", "f"]


BAD_ARGUMENTS = [
    *("[1]", "null", '"text"', "{", "{'a': 1}", '{"a": NaN}', '{"a": 1e999}', "{}{}", "[" * 100_000, "\ufeff{}"),
    *('{"a": {"__proto__": 1}}', r'{"\u005f_proto__": 1}', '{"constructor": {"prototype": {}}}'),
]


@pytest.mark.parametrize("arguments", BAD_ARGUMENTS, ids=lambda arguments: arguments[:16])
def test_arguments_that_are_no_object_are_an_error_with_their_text(arguments: str) -> None:
    [part] = [part for part in told(call(0, arguments, id="x", name="f"), done()) if "input" in part]
    assert (part["type"], part["input"], part["toolName"]) == ("tool-input-error", arguments, "f")
    assert part["errorText"]


@pytest.mark.parametrize("arguments", ["", " \n", "{}", '{"constructor": 1, "prototype": {}}', '{"a": "__proto__"}'])
def test_arguments_are_what_their_json_says(arguments: str) -> None:
    [part] = [part for part in told(call(0, arguments, id="x", name="f"), done()) if "input" in part]
    assert (part["type"], part["input"]) == ("tool-input-available", json.loads(arguments.strip() or "{}"))


def test_a_call_beyond_the_bound_of_arguments_is_an_error_and_no_call_without_them() -> None:
    piece = " " * (MAX_INPUT_CHARACTERS // 4)
    pieces = [call(0, "{}"), *[call(0, piece)] * 3, call(1, "{}"), *[call(1, piece)] * 2, call(2, "{}")]
    parts = told(*pieces, done())
    assert [(part["type"], part["input"]) for part in parts if "input" in part] == [
        ("tool-input-available", {}),
        ("tool-input-error", "{}"),
        ("tool-input-error", ""),
    ]
    assert [part["inputTextDelta"] for part in parts if "inputTextDelta" in part] == [p.arguments for p in pieces]


def test_arguments_in_single_characters_cost_a_reader_no_more_than_whole_ones() -> None:
    message = Message()
    message.encode(0, [Start(SID, "m", True), call(0, id="c", name="f")], None)
    tracemalloc.start()
    for at in range(100_000):
        message.encode(0, [call(0, chr(0x4E00 + at % 1000))], None)  # kept one by one they are 80 bytes each
    kept_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept_bytes < 2_000_000


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        *(("stop", "stop"), ("length", "length"), ("content_filter", "content-filter")),
        *(("tool_calls", "tool-calls"), ("function_call", "tool-calls")),
        *(("unknown", "other"), ("eos", "other"), ("interrupted", "other")),
    ],
)
def test_a_finish_reason_is_one_of_the_sdks(reason: str, said: str) -> None:
    assert told(done(reason))[-1]["finishReason"] == said


def test_a_failure_closes_what_is_open_and_says_code_and_message() -> None:
    parts = told(call(0, '{"a', id="x", name="f"), Delta("Half"), failed())
    assert types(parts)[-3:] == ["text-delta", "text-end", "error"]
    assert parts[-1]["errorText"] == "upstream_timeout: too late"
    assert not any("input" in part for part in parts)


def test_a_cancel_closes_what_is_open_and_is_an_abort() -> None:
    parts = told(Reasoning("Hm"), done("cancelled"))
    assert types(parts)[-2:] == ["reasoning-end", "abort"]


def test_an_answer_may_continue_a_message() -> None:
    assert told(done(), message=Message("m_1"))[0] == {"type": "start", "messageId": "m_1"}


def test_a_ping_is_a_comment_and_the_end_is_always_told() -> None:
    assert Message().ping("waiting", 31.2) == b": ping\n\n"
    assert {Message().end(end) for end in (done(), done("cancelled"), failed())} == {b"data: [DONE]\n\n"}
