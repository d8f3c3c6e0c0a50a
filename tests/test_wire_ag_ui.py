"""The AG-UI dialect's bytes: the same in any batches, in an order that the protocol's own client takes."""

import json
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import RelayError
from app.events import Delta, Done, Event, Failed, Passed, Piece, Reasoning, Refusal, Start, ToolCall, Usage
from app.wire.ag_ui import METADATA, PING, PROTOCOL_VERSION, Events, Run
from tests.recipes import run_node
from tests.test_wire_native import CALL, ENTRY, STREAM, STREAM_ID

SCRIPT: Final = Path(__file__).parent / "clients" / "ag_ui.mjs"
RUN: Final = Run("thread", "run")
REPORTED: Final = Usage(3, 9, 12, "reported")
DONE: Final = Done("stop", REPORTED, 0.5, 1.2345)
CANCELLED: Final = Done("cancelled", Usage(3, 2, 5, "estimated"), None, 1.0)
FAILED: Final = Failed(RelayError("upstream_truncated", "it ended", phase="stream").problem)
ENDS: Final = (DONE, CANCELLED, FAILED)

FIRST, SECOND = ToolCall(0, "call_0", "look", '{"a"'), ToolCall(1, None, "find", "")
MORE: Final = ToolCall(0, None, None, ":1}")
PIECES: Final[tuple[Piece, ...]] = (Delta("text"), Refusal("no"), Reasoning("hm"), FIRST, SECOND)

RUNS: Final = st.builds(
    Run, st.text(), st.text(), st.none() | st.text(), st.frozensets(st.text()), st.tuples() | st.tuples(st.text())
)


def started() -> Start:
    return Start(STREAM_ID, "m", False)


def written(events: Iterable[Event], run: Run = RUN) -> bytes:
    encoder = Events(run)
    return b"".join(encoder.encode(seq, [event], None)[0] for seq, event in enumerate(events))


def told(*events: Event, run: Run = RUN) -> list[dict[str, Any]]:
    """The JSON of every event, behind the start."""
    *blocks, rest = written([started(), *events], run).decode("ascii").split("\n\n")
    assert rest == ""
    assert all(block.startswith("data: {") and "\n" not in block for block in blocks)
    return [json.loads(block.removeprefix("data: ")) for block in blocks[1:]]


def types(events: Sequence[dict[str, Any]]) -> str:
    return " ".join(event["type"] for event in events)


def broken_rule(events: Sequence[dict[str, Any]]) -> str | None:
    """The rule of the protocol that a run breaks: what is open is not opened, what is not is not gone on with."""
    still_open: set[tuple[str, str]] = set()
    for event in events:
        family, _, verb = event["type"].rpartition("_")
        part = (family, event.get("messageId") or event.get("toolCallId", ""))
        match verb:
            case "START" if part in still_open:
                return f"{part} is open"
            case "START":
                still_open.add(part)
            case "CONTENT" | "ARGS" | "END" if part not in still_open:
                return f"{part} is not open"
            case "END":
                still_open.remove(part)
            case "FINISHED" if still_open:
                return f"{still_open} are open at the end"
    return None if events[-1]["type"] in ("RUN_FINISHED", "RUN_ERROR") else "no end"


@given(events=STREAM, run=RUNS, data=st.data())
@settings(deadline=None)
def test_the_bytes_are_the_same_in_any_batches(events: list[Event], run: Run, data: st.DataObject) -> None:
    encoder, whole, seq = Events(run), b"", 0
    while seq < len(events):
        upto = data.draw(st.integers(seq + 1, len(events)))
        part, count = encoder.encode(seq, events[seq:upto], None)
        assert count > 0
        whole, seq = whole + part, seq + count
    assert whole == written(events, run)


@given(events=STREAM, run=RUNS)
@settings(deadline=None)
def test_every_stream_is_lines_of_ascii_json_in_the_protocol_s_order(events: list[Event], run: Run) -> None:
    stream = written(events, run)
    assert stream.isascii()
    assert b"\r" not in stream
    lines = [json.loads(block.removeprefix(b"data: ")) for block in stream.split(b"\n\n")[:-1]]
    assert lines[0]["type"] == "RUN_STARTED"
    assert broken_rule(lines) is None


@given(pieces=st.lists(ENTRY, max_size=12), known=st.frozensets(st.text(max_size=1)))
@settings(deadline=None)
def test_each_call_has_an_id_of_its_own(pieces: list[Event], known: frozenset[str]) -> None:
    opened = [
        e["toolCallId"] for e in told(*pieces, run=Run("t", "r", call_ids=known)) if e["type"].endswith("L_START")
    ]
    said = (piece.piece if isinstance(piece, Passed) else piece for piece in pieces)
    assert len(opened) == len({call.index for call in said if isinstance(call, ToolCall)})
    assert len({*opened}) == len(opened)
    assert known.isdisjoint(opened)
    assert all(opened)


@given(calls=st.lists(CALL, max_size=12))
@settings(deadline=None)
def test_the_arguments_of_each_call_are_its_own_however_they_interleave(calls: list[ToolCall]) -> None:
    events = told(*calls, DONE)
    order = [event["toolCallId"] for event in events if event["type"] == "TOOL_CALL_START"]
    indexes = list(dict.fromkeys(call.index for call in calls))
    for call_id, index in zip(order, indexes, strict=True):
        heard = (e["delta"] for e in events if e["type"] == "TOOL_CALL_ARGS" and e["toolCallId"] == call_id)
        assert "".join(heard) == "".join(call.arguments for call in calls if call.index == index)


async def test_the_protocol_s_own_client_takes_every_order_of_pieces() -> None:
    """All orders of up to four pieces, each with each end, without an error or a warning, as the message they are."""
    orders = [(list(pieces), end) for n in range(5) for pieces in product(PIECES, repeat=n) for end in ENDS]
    streams = [written([started(), *pieces, end]).decode("ascii") for pieces, end in orders]
    ran = await run_node(SCRIPT.read_text(), "", "", files={"streams.json": json.dumps(streams)})
    runs = json.loads(ran.stdout)
    assert len(runs) == len(orders) > 2000
    for (pieces, end), run in zip(orders, runs, strict=True):
        assert (run["error"], run["warnings"]) == (None, []), (pieces, end, run)
        assert ending(run) == {DONE: "success", CANCELLED: "cancelled", FAILED: "upstream_truncated"}[end]
        assert message(run) == expected(pieces)
        assert bool(run["calls"]) == (end is DONE and bool(expected(pieces)[2]))


def ending(run: dict[str, Any]) -> str:
    [outcome] = [*(outcome for outcome, _ in run["ended"]), *([run["failed"]["code"]] if run["failed"] else [])]
    return str(outcome)


def message(run: dict[str, Any]) -> tuple[str, str, dict[str, str]]:
    """Text, reasoning and the arguments of calls by name. All text and calls are in one message."""
    answers = [message for message in run["messages"] if message["role"] == "assistant"]
    assert [answer["id"] for answer in answers] in ([], [STREAM_ID])
    answer = answers[0] if answers else {}
    thoughts = "".join(message["content"] for message in run["messages"] if message["role"] == "reasoning")
    calls = {call["function"]["name"]: call["function"]["arguments"] for call in answer.get("toolCalls", [])}
    return answer.get("content", ""), thoughts, calls


def expected(pieces: Sequence[Event]) -> tuple[str, str, dict[str, str]]:
    text = reasoning = ""
    calls: dict[str, str] = {}
    for piece in pieces:
        match piece:
            case Delta(content=said) | Refusal(refusal=said):
                text += said
            case Reasoning(reasoning=said):
                reasoning += said
            case ToolCall(name=str() as name, arguments=arguments):
                calls[name] = calls.get(name, "") + arguments
    return text, reasoning, calls


def test_text_that_goes_on_behind_something_else_is_the_same_message() -> None:
    events = told(Delta("a"), Reasoning("hm"), Delta("b"), FIRST, Delta("c"), MORE, DONE)
    assert types(events) == (
        "TEXT_MESSAGE_START TEXT_MESSAGE_CONTENT TEXT_MESSAGE_END "
        "REASONING_START REASONING_MESSAGE_START REASONING_MESSAGE_CONTENT REASONING_MESSAGE_END REASONING_END "
        "TEXT_MESSAGE_START TEXT_MESSAGE_CONTENT TEXT_MESSAGE_END TOOL_CALL_START TOOL_CALL_ARGS "
        "TEXT_MESSAGE_START TEXT_MESSAGE_CONTENT TOOL_CALL_ARGS TEXT_MESSAGE_END TOOL_CALL_END RUN_FINISHED"
    )
    assert {event["messageId"] for event in events if event["type"].startswith("TEXT_")} == {STREAM_ID}


def test_each_stretch_of_reasoning_is_a_message_of_its_own() -> None:
    events = told(Reasoning("a"), Delta("b"), Reasoning("c"), Reasoning("d"), DONE)
    spans = [event["messageId"] for event in events if event["type"] == "REASONING_START"]
    assert spans == [f"{STREAM_ID}.r0", f"{STREAM_ID}.r1"]
    said = [(e["messageId"], e["delta"]) for e in events if e["type"] == "REASONING_MESSAGE_CONTENT"]
    assert said == [(spans[0], "a"), (spans[1], "c"), (spans[1], "d")]


def test_calls_belong_to_the_answer_s_message_also_where_it_has_no_text() -> None:
    events = told(FIRST, SECOND, DONE)
    parents = [event["parentMessageId"] for event in events if event["type"] == "TOOL_CALL_START"]
    assert parents == [STREAM_ID, STREAM_ID]
    assert events[-1]["outcome"] == {"type": "success", "pendingToolCallIds": ["call_0", f"{STREAM_ID}.t1"]}


@pytest.mark.parametrize("end", [CANCELLED, FAILED])
def test_a_call_that_was_cut_off_is_not_closed(end: Done | Failed) -> None:
    """A client may act on what is closed, and takes arguments that are no JSON for none."""
    assert types(told(Delta("a"), FIRST, Delta("b"), end)).endswith("TEXT_MESSAGE_CONTENT TEXT_MESSAGE_END RUN_ERROR")


def test_an_id_that_the_conversation_knows_is_not_used_again() -> None:
    events = told(FIRST, MORE, run=Run("t", "r", call_ids=frozenset({"call_0"})))
    assert {event["toolCallId"] for event in events} == {f"{STREAM_ID}.t0"}


def test_a_run_begins_with_the_client_s_ids_and_the_stream_s() -> None:
    run = Run("T", "R", "P", skipped=("messages.0.content.1",))
    assert json.loads(written([started()], run).removeprefix(b"data: ")) == {
        "type": "RUN_STARTED",
        "threadId": "T",
        "runId": "R",
        "protocolVersion": PROTOCOL_VERSION,
        "parentRunId": "P",
        "metadata": {
            METADATA: {"id": STREAM_ID, "model": "m", "resumable": False, "skipped": ["messages.0.content.1"]}
        },
    }
    assert b"parentRunId" not in written([started()])


def test_the_end_tells_what_was_used_and_why_it_ended() -> None:
    [finished] = told(DONE)
    timings = {"first_token_s": 0.5, "total_s": 1.234}
    usage = {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12, "source": "reported"}
    assert finished == {
        "type": "RUN_FINISHED",
        "threadId": "thread",
        "runId": "run",
        "usage": [{"model": "m", "inputTokens": 3, "outputTokens": 9, "totalTokens": 12}],
        "metadata": {METADATA: {"finish_reason": "stop", "usage": usage, "timings": timings}},
    }


def test_an_estimate_is_not_told_as_a_provider_s_usage() -> None:
    [error] = told(CANCELLED)
    assert (error["type"], error["code"]) == ("RUN_ERROR", "cancelled")
    assert "usage" not in error
    assert error["metadata"][METADATA]["usage"]["source"] == "estimated"


def test_a_count_that_the_protocol_has_no_room_for_is_left_out() -> None:
    """Its clients fail the whole run over one."""
    [finished] = told(Done("stop", Usage(2**53, 9, 12, "reported"), None, 1))
    assert finished["usage"] == [{"model": "m", "outputTokens": 9}]


def test_a_failure_is_the_error_object_in_the_protocol_s_words() -> None:
    [error] = told(FAILED)
    assert (error["message"], error["code"]) == ("it ended", "upstream_truncated")
    assert error["metadata"] == {METADATA: FAILED.error.as_json()}


def test_a_chunk_that_is_passed_on_is_the_piece_it_holds() -> None:
    assert told(Passed(b"{}", Delta("a")), Passed(b"{}", None), DONE) == told(Delta("a"), DONE)


def test_a_ping_is_a_comment_and_nothing_follows_the_end() -> None:
    encoder = Events(RUN)
    assert encoder.ping("streaming", 1.0) == PING == b": ping\n\n"
    assert {encoder.end(end) for end in ENDS} == {b""}
