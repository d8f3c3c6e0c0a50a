"""Upstream's own chunks go on as they came, and anew only where a client of OpenAI's could not read them."""

import json
from typing import Any

import pytest

from app.decode import Complete, Limits
from app.decode.chunks import MAX_HELD_BACK
from app.decode.decoder import MAX_FRAMES_PER_CALL
from app.events import Delta, Passed, Passing
from tests.cases import CASES, Case
from tests.completions import read, strictly
from tests.decoding import Decoded, decode, event, single_bytes

PASSING = Passing(usage=True)
USAGE = {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12}
STREAMED = [case for case in CASES if 200 <= case.status < 300]
FINISH = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})


def chunk(delta: Any, **more: Any) -> bytes:
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return json.dumps(head | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} | more).encode()


def passed(*payloads: bytes, passing: Passing = PASSING, limits: Limits | None = None) -> Decoded:
    """What is passed on of these payloads and an end."""
    whole = b"".join(map(event, payloads)) + FINISH
    return decode(whole, passing=passing) if limits is None else decode(whole, passing=passing, limits=limits)


def decode_case(case: Case, *reads: bytes) -> Decoded:
    content_type, content_encoding = case.headers.get("content-type"), case.headers.get("content-encoding")
    return decode(
        *reads, status=case.status, content_type=content_type, content_encoding=content_encoding, passing=PASSING
    )


@pytest.mark.parametrize("case", STREAMED, ids=lambda case: case.name)
def test_the_chunks_of_every_recorded_answer_say_what_its_pieces_say(case: Case) -> None:
    decoded = decode_case(case, case.body)
    said = read(decoded.chunks)
    assert (said.text, said.reasoning, said.refusal) == (decoded.text, decoded.reasoning, decoded.refusal)
    calls = {index: {"name": name or "", "arguments": rest} for index, (_, name, rest) in decoded.tool_calls.items()}
    assert said.calls == calls
    if isinstance(decoded.end, Complete) and decoded.end.usage:
        counted = {name: getattr(decoded.end.usage, name) for name in USAGE}
        assert said.usage is None or {**said.usage, **counted} == said.usage


@pytest.mark.parametrize("case", STREAMED, ids=lambda case: case.name)
def test_cutting_upstreams_bytes_anywhere_changes_no_chunk(case: Case) -> None:
    assert decode_case(case, *single_bytes(case.body)) == decode_case(case, case.body)


@pytest.mark.parametrize(
    "payload",
    [
        chunk({"content": "Hi"}, obfuscation="aB3", system_fingerprint=None, x={"y": [1.50, 1e2]}),
        chunk({"reasoning_content": "Hm", "content": None}),
        chunk({"content": "é𝄞"}),
        b'{ "choices" : [ { "index":0, "delta":{"content":"\\u00e9"}, "logprobs":{"content":[]} } ] }',
        chunk(
            {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]}
        ),
        chunk({"audio": {"id": "a", "data": "AAAA", "transcript": "x"}}),
        chunk({"content": "Hi"}, usage=USAGE),
        json.dumps({"choices": [{"index": 1, "delta": {"content": "other"}, "finish_reason": None}]}).encode(),
        json.dumps({"choices": [], "prompt_filter_results": [{"prompt_index": 0}]}).encode(),
    ],
)
def test_a_chunk_that_can_be_read_goes_on_byte_for_byte(payload: bytes) -> None:
    assert passed(chunk({"role": "assistant"}), payload, chunk({"content": "."})).chunks[1] == payload


@pytest.mark.parametrize(
    ("payload", "delta"),
    [
        (chunk({"content": "Hi"}).replace(b'"created": 1', b'"created": NaN'), {"content": "Hi"}),
        (chunk({"content": [{"type": "text", "text": "Hi"}]}), {"content": "Hi"}),
        (chunk({"content": "a\ud83d"}), {"content": "a"}),
        (chunk({"content": "Hi"}).replace(b"Hi", b"H\xff"), {"content": "H\ufffd"}),
        (chunk(None), {}),
        (chunk({"content": "Hi"}).replace(b", ", b",\ndata: "), {"content": "Hi"}),
        (
            chunk({"tool_calls": [{"id": "c", "function": {"name": "f", "arguments": {"a": 1}}}]}),
            {
                "tool_calls": [
                    {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
                ]
            },
        ),
    ],
    ids=["NaN", "parts", "half a character", "bad UTF-8", "no delta", "two lines", "tool call without a number"],
)
def test_a_chunk_that_cannot_be_read_is_written_anew(payload: bytes, delta: object) -> None:
    written = strictly(passed(payload).chunks[0])
    assert written["choices"][0]["delta"] == delta
    assert (written["id"], written["model"]) == ("c1", "m")


def test_half_a_character_goes_on_with_its_other_half() -> None:
    decoded = passed(
        chunk({"content": "a\ud83d"}),
        chunk({"content": "\ude00b"}),
        chunk({"content": "\ud83d"}),
        chunk({"content": "c"}),
    )
    assert read(decoded.chunks).text == decoded.text == "a\U0001f600b\ufffdc"


@pytest.mark.parametrize("usage", [True, False])
def test_the_chunk_of_nothing_but_usage_is_passed_on_where_it_was_asked_for(usage: bool) -> None:
    counted = json.dumps({"id": "c1", "choices": [], "usage": USAGE}).encode()
    decoded = passed(chunk({"content": "Hi"}, usage=None), counted, passing=Passing(usage=usage))
    assert (counted in decoded.chunks) is usage
    assert decoded.complete.usage is not None
    assert decoded.complete.usage.total_tokens == 12


def test_an_error_is_never_passed_on_and_the_text_beside_it_is() -> None:
    failing = chunk({"content": " end"}, error={"message": "boom", "code": 500})
    decoded = decode(event(chunk({"content": "The"})), event(failing), passing=PASSING)
    assert decoded.problem.code == "upstream_error"
    assert read(decoded.chunks).text == "The end"
    assert not any(b"boom" in line for line in decoded.chunks)
    assert {strictly(line)["id"] for line in decoded.chunks} == {"c1"}


def test_nothing_goes_on_before_something_is_carried() -> None:
    role = chunk({"role": "assistant", "content": ""})
    assert decode(event(role), event({"error": {"message": "no"}}), passing=PASSING).chunks == ()
    assert passed(role, chunk({"content": "Hi"})).chunks[:2] == (role, chunk({"content": "Hi"}))


@pytest.mark.parametrize("index", [0, 1])
def test_what_is_passed_on_counts_towards_the_limit_of_an_answer(index: int) -> None:
    limits = Limits(max_event_bytes=10_000, max_answer_bytes=5_000)
    each = {"index": index, "delta": {"content": "x"}, "logprobs": {"content": ["x" * 1000]}}
    decoded = passed(*[json.dumps({"choices": [each]}).encode()] * 6, limits=limits)
    assert decoded.problem.code == "upstream_protocol"


def test_a_piece_that_was_cut_in_two_is_said_once() -> None:
    decoded = decode(event(chunk({"content": "x" * 12_000})) + FINISH, passing=PASSING)
    assert len(decoded.pieces) == 3
    assert len(decoded.chunks) == 2
    assert read(decoded.chunks).text == "x" * 12_000


def choice(index: int, content: str = "", finish: str | None = None) -> bytes:
    return event({"choices": [{"index": index, "delta": {"content": content}, "finish_reason": finish}]})


def test_several_choices_are_whole_when_all_are() -> None:
    both = Passing(usage=False, choices=2)
    begun = choice(0, "a") + choice(1, "b") + choice(0, finish="stop")
    assert decode(begun, passing=both).problem.code == "upstream_truncated"
    assert decode(begun, choice(1, finish="length"), passing=both).complete.finish_reason == "stop"
    # A service that knows no `n` answers once; nothing shows that before its end.
    assert decode(choice(0, "a", "stop"), passing=both).complete.finish_reason == "stop"


def test_a_choice_that_has_finished_stays_so() -> None:
    both = Passing(usage=False, choices=2)
    said = choice(1, "b", "stop") + choice(0, "a", "stop") + choice(1, "late") + choice(7, "nobody asked")
    assert decode(said, passing=both).complete.finish_reason == "stop"


@pytest.mark.parametrize("more", [{"finish_reason": "error"}, {"error": {"message": "boom", "code": 502}}])
def test_a_choice_that_fails_fails_the_answer(more: dict[str, Any]) -> None:
    failed = event({"choices": [{"index": 1, "delta": {}} | more]})
    decoded = decode(choice(1, "b") + failed + choice(0, "a", "stop"), passing=Passing(usage=False, choices=2))
    assert decoded.problem.code == "upstream_error"


def test_chunks_that_carry_nothing_are_held_back_up_to_a_bound() -> None:
    idle = json.dumps({"id": "c1", "choices": []}).encode()
    decoded = passed(*[idle] * 1000, chunk({"content": "Hi"}))
    assert len(decoded.chunks) <= MAX_HELD_BACK + MAX_FRAMES_PER_CALL + 2  # those of the last turn are not held back


@pytest.mark.parametrize("odd", [b"9" * 5000, b"[" * 600 + b"]" * 600], ids=["a long number", "a deep list"])
def test_what_cannot_be_written_anew_ends_the_answer(odd: bytes) -> None:
    payload = b'{"choices":[{"index":0,"delta":null}],"x":' + odd + b"}"
    assert passed(chunk({"content": "Hi"}), payload).problem.code == "upstream_protocol"


def test_a_whole_completion_becomes_one_chunk_of_all_its_choices() -> None:
    message = {"role": "assistant", "content": "Hi", "x": 1}
    completion = {
        "id": "c1",
        "object": "chat.completion",
        "choices": [
            {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None},
            {"index": 1, "message": message | {"content": "Ho"}, "finish_reason": "length"},
        ],
        "usage": USAGE,
    }
    decoded = decode(
        json.dumps(completion).encode(), content_type="application/json", passing=Passing(usage=True, choices=2)
    )
    [only] = map(strictly, decoded.chunks)
    assert [each["delta"] for each in only["choices"]] == [message, message | {"content": "Ho"}]
    assert (only["object"], only["usage"]) == ("chat.completion.chunk", USAGE)
    assert decoded.pieces == [Delta("Hi")]
    silent = decode(json.dumps(completion).encode(), content_type="application/json", passing=Passing(usage=False))
    assert "usage" not in strictly(silent.chunks[0])


def test_a_whole_completion_in_the_one_event_of_a_stream_is_read() -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}
    completion = {"id": "c1", "object": "chat.completion", "choices": [choice], "usage": USAGE}
    decoded = decode(event(completion), event(b"[DONE]"), passing=PASSING)
    assert decoded.text == read(decoded.chunks).text == "Hi"
    assert decode(event(completion)).text == "Hi"
    assert decoded.complete.finish_reason == "stop"


def test_nothing_is_kept_of_chunks_that_nobody_asked_for() -> None:
    assert not any(isinstance(piece, Passed) for piece in decode(event(chunk({"content": "Hi"})) + FINISH).pieces)
