"""The native dialect's bytes: pure, ASCII, one JSON object a line, the same however they are batched."""

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.decode.answer import MAX_CHARACTERS_BESIDE_A_PIECE
from app.decode.text import MAX_PIECE_CHARACTERS
from app.decode.tools import MAX_NAME_CHARACTERS
from app.errors import CODES, Problem
from app.events import Delta, Done, Event, Failed, Passed, Reasoning, Refusal, Start, ToolCall, Usage
from app.wire import native
from app.wire.dialect import MAX_WRITE_BYTES

STREAM_ID = f"s_{'0123456789abcdef' * 2}"
LINE_BYTES = 64 * 1024
WIDEST = "\U0001f389"

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
COUNT = st.integers(0, 2**53)
SECONDS = st.floats(0, 86_400)
PROBLEM = st.builds(
    Problem,
    code=st.sampled_from(sorted(CODES)),
    message=TEXT,
    type=TEXT,
    param=st.none() | TEXT,
    phase=st.sampled_from([None, "admission", "connect", "first_token", "stream", "relay"]),
    retryable=st.booleans(),
    partial=st.booleans(),
    upstream_status=st.none() | st.integers(400, 599),
    request_id=st.none() | TEXT,
    status=st.just(500),
)
USAGE = st.builds(Usage, COUNT, COUNT, COUNT, st.sampled_from(["reported", "estimated"]))
CALL = st.builds(ToolCall, st.integers(0, 1024), st.none() | TEXT, st.none() | TEXT, TEXT)
PIECE = st.one_of(*(st.builds(kind, TEXT) for kind in (Delta, Reasoning, Refusal)), CALL)
ENTRY = PIECE | st.builds(Passed, st.binary(max_size=8), st.none() | PIECE)
START = st.builds(Start, st.just(STREAM_ID), TEXT, st.booleans())
END = st.builds(Done, TEXT, USAGE, st.none() | SECONDS, SECONDS) | st.builds(Failed, PROBLEM)
STREAM: st.SearchStrategy[list[Event]] = st.builds(
    lambda start, pieces, end: [start, *pieces, end], START, st.lists(ENTRY, max_size=8), END
)


def whole(shape: native.Shape, events: Sequence[Event], live_from: int | None = None) -> bytes:
    """All the events, in as many writes as it takes."""
    written, seq = b"", 0
    while seq < len(events):
        data, count = shape.encode(seq, events[seq:], live_from)
        assert count > 0
        written, seq = written + data, seq + count
    return written


def carried(event: Event) -> dict[str, Any]:
    """What the JSON says of an event beside `type` and `content`."""
    match said(event):
        case None | Passed():
            return {}
        case Start(id=stream_id, model=model, resumable=resumable):
            return {"protocol": 1, "id": stream_id, "model": model, "resumable": resumable}
        case Delta():
            return {}
        case Reasoning(reasoning=text):
            return {"reasoning": text}
        case Refusal(refusal=text):
            return {"refusal": text}
        case ToolCall(index=index, id=call_id, name=name, arguments=arguments):
            named = {key: value for key, value in (("id", call_id), ("name", name)) if value is not None}
            return {"tool_call": {"index": index, **named, "arguments": arguments}}
        case Failed(error=problem):
            return {"error": problem.as_json()}
        case Done(finish_reason=reason, usage=usage, first_token_s=first, total_s=total):
            rounded = {"first_token_s": None if first is None else round(first, 3), "total_s": round(total, 3)}
            return {"finish_reason": reason, "usage": native.usage_json(usage), "timings": rounded}


def said(event: Event) -> Event | None:
    """What the native dialect has a word for: upstream's own chunk is not its business."""
    return event.piece if isinstance(event, Passed) else event


def kind_of(event: Event | None) -> str:
    return "chunk" if event is None else str(type(event).__struct_config__.tag)


def content_of(event: Event | None) -> str:
    return event.content if isinstance(event, Delta) else ""


@given(events=STREAM, ids=st.booleans())
@settings(deadline=None)
def test_every_event_is_one_line_of_ascii_json_that_says_what_it_carries(events: list[Event], ids: bool) -> None:
    written = whole(native.Shape(STREAM_ID, ids=ids), events)
    assert written.isascii()
    assert b"\r" not in written
    *blocks, last = written.decode("ascii").split("\n\n")
    assert last == ""
    told = [json.loads(block.split("\n")[0].removeprefix("data: ")) for block in blocks]
    assert told == [
        {"type": kind_of(said(event)), "content": content_of(said(event))} | carried(event) | {"seq": seq}
        for seq, event in enumerate(events)
    ]


@given(events=STREAM, ids=st.booleans(), live_from=st.none() | st.integers(1, 10), data=st.data())
@settings(deadline=None)
def test_the_bytes_are_the_same_in_any_batches(
    events: list[Event], ids: bool, live_from: int | None, data: st.DataObject
) -> None:
    shape = native.Shape(STREAM_ID, ids=ids, padding_bytes=7)
    one_by_one = [shape.encode(seq, [event], live_from) for seq, event in enumerate(events)]
    assert [count for _, count in one_by_one] == [1] * len(events)
    cut = data.draw(st.integers(0, len(events)))
    halves = whole(shape, events[:cut], live_from) + b"".join(part for part, _ in one_by_one[cut:])
    assert halves == b"".join(part for part, _ in one_by_one) == whole(shape, events, live_from)


def test_ids_follow_their_data_and_retry_stands_in_the_start_block() -> None:
    events: list[Event] = [
        Start(STREAM_ID, "m", True),
        Delta("a"),
        Done("stop", Usage(1, 2, 3, "reported"), None, 0.1234),
    ]
    written = whole(native.Shape(STREAM_ID, ids=True), events).decode()
    usage = '{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3,"source":"reported"}'
    timings = '{"first_token_s":null,"total_s":0.123}'
    assert written == (
        f'data: {{"type":"start","content":"","protocol":1,"id":"{STREAM_ID}","model":"m","resumable":true,"seq":0}}\n'
        f"id: {STREAM_ID}.0\nretry: 2000\n\n"
        f'data: {{"type":"delta","content":"a","seq":1}}\nid: {STREAM_ID}.1\n\n'
        f'data: {{"type":"done","content":"","finish_reason":"stop","usage":{usage},"timings":{timings},"seq":2}}\n'
        f"id: {STREAM_ID}.2\n\n"
    )
    plain = whole(native.Shape(STREAM_ID, ids=False), events).decode()
    assert plain == re.sub("\n(id|retry): .*", "", written)


def test_padding_is_in_the_first_event_alone() -> None:
    events: list[Event] = [Start(STREAM_ID, "m", True), Delta("a")]
    bare, padded = (whole(native.Shape(STREAM_ID, ids=True, padding_bytes=size), events) for size in (0, 2048))
    assert len(padded) == len(bare) + 2048 + len(',"padding":""')
    assert padded.endswith(bare.split(b"\n\n")[1] + b"\n\n")


def test_from_live_only_on_events_have_neither_seq_nor_id() -> None:
    events: list[Event] = [Start(STREAM_ID, "m", True), *map(Delta, "abc")]
    blocks = whole(native.Shape(STREAM_ID, ids=True), events, live_from=2).decode().split("\n\n")
    assert [block.count("\nid: ") for block in blocks[:2]] == [1, 1]
    assert blocks[2:] == [
        'data: {"type":"live_only","content":""}',
        'data: {"type":"delta","content":"b"}',
        'data: {"type":"delta","content":"c"}',
        "",
    ]


LONGEST = [
    Delta(WIDEST * MAX_PIECE_CHARACTERS),
    Reasoning(WIDEST * MAX_PIECE_CHARACTERS),
    Refusal("\x7f\x00" * (MAX_PIECE_CHARACTERS // 2)),
    ToolCall(1023, WIDEST * MAX_CHARACTERS_BESIDE_A_PIECE, "", WIDEST * MAX_PIECE_CHARACTERS),
    ToolCall(1023, WIDEST * MAX_NAME_CHARACTERS, WIDEST * MAX_NAME_CHARACTERS, ""),
    Start(STREAM_ID, WIDEST * 256, True),
    Done(WIDEST * MAX_NAME_CHARACTERS, Usage(2**53, 2**53, 2**53, "estimated"), 1e5 / 3, 1e5 / 3),
]


@pytest.mark.parametrize("event", LONGEST, ids=lambda event: type(event).__name__)
def test_the_longest_line_is_under_64_kib(event: Event) -> None:
    seq = 0 if isinstance(event, Start) else 2**31
    written, _ = native.Shape(STREAM_ID, ids=True, padding_bytes=32 * 1024).encode(seq, [event], None)
    assert max(map(len, written.split(b"\n"))) < LINE_BYTES


@given(sizes=st.lists(st.integers(1, MAX_PIECE_CHARACTERS), min_size=1, max_size=60))
@settings(deadline=None, max_examples=50)
def test_a_write_takes_what_fits_into_64_kib_and_at_least_one(sizes: list[int]) -> None:
    shape = native.Shape(STREAM_ID, ids=True)
    events = [Delta(WIDEST * size) for size in sizes]
    data, count = shape.encode(1, events, None)
    assert data == b"".join(shape.encode(1 + at, [event], None)[0] for at, event in enumerate(events[:count]))
    assert count == 1 or len(data) <= MAX_WRITE_BYTES
    assert shape.encode(1, [Delta("x" * LINE_BYTES)], None)[1] == 1
    if count < len(events):
        assert len(data) + len(shape.encode(1 + count, [events[count]], None)[0]) > MAX_WRITE_BYTES


def test_a_ping_and_a_failure_before_the_stream_are_plain_events() -> None:
    assert native.Shape(STREAM_ID, ids=True).ping("waiting", 31.24) == (
        b'data: {"type":"ping","content":"","phase":"waiting","elapsed_s":31.2}\n\n'
    )
    problem = Problem(code="internal", message="\u00e9", type="relay_error", retryable=False, status=500)
    event, end, nothing = native.failure(problem).decode("ascii").split("\n\n")
    assert json.loads(event.removeprefix("data: ")) == {"type": "error", "content": "", "error": problem.as_json()}
    assert (end, nothing) == ("data: [DONE]", "")
