"""What is said, and how an answer ends: chunks → pieces and one end (contract §4, rules 2 to 8)."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.decode import Complete, Decoder, Limits
from app.decode.text import MAX_PIECE_CHARACTERS
from app.events import Delta, Reasoning, Refusal, Usage
from tests.decoding import EVENT_STREAM, LIMITS, chunk, decode, event, feed, stream

OPTIONAL = Limits(LIMITS.max_event_bytes, LIMITS.max_answer_bytes, finish_optional=True)
USAGE = {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12}


@pytest.mark.parametrize(
    "payload",
    [
        *(
            b"",
            b" ",
            b"null",
            b"1",
            b"-0.5",
            b"true",
            b'"text"',
            b"[]",
            b'[{"error":"x"}]',
            b": comment",
            b" :",
            b"NaN",
        ),
        *({}, {"choices": None}, {"choices": []}, {"choices": [None]}, {"choices": {}}, {"choices": ["a"]}, {"x": 1}),
        *({"choices": [{}]}, {"choices": [{"delta": None}]}, {"choices": [{"delta": "a"}]}, {"error": None}),
        *({"error": {}}, {"error": ""}, {"choices": [{"index": 1, "delta": {"content": "other"}}]}),
        *(chunk(""), chunk(None), chunk(7), chunk(content=""), chunk(content=None), chunk(content=7), chunk(role="x")),
        *(chunk(content=[]), chunk(content={"text": "x"}), chunk(tool_calls=[]), chunk(tool_calls=[None, {}])),
        *(chunk(tool_calls={}), chunk(function_call=None), chunk(function_call={}), chunk(refusal=None)),
        {"choices": [{"index": 1, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [{"index": 0, "message": {"content": "all of it"}, "delta": {}}]},
    ],
    ids=repr,
)
def test_what_carries_nothing_is_passed_over(payload: object) -> None:
    decoder = Decoder(LIMITS, content_type=EVENT_STREAM, content_encoding=None)
    assert feed(decoder, [event(payload)]) == []
    assert (decoder.answer.carrying, decoder.answer.finished, decoder.answer.end) == (False, False, None)
    assert decode(stream(payload, chunk(content="a"))).pieces == [Delta("a")]


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "a"},
        {"reasoning_content": "a"},
        {"reasoning": "a"},
        {"refusal": "a"},
        {"tool_calls": [{"index": 0, "id": "c"}]},
        {"content": "\ud83d"},
        {"content": [{"type": "text", "text": "a"}]},
    ],
)
def test_what_carries_something_says_so(delta: dict[str, Any]) -> None:
    decoder = Decoder(LIMITS, content_type=EVENT_STREAM, content_encoding=None)
    feed(decoder, [event(chunk(**delta))])
    assert decoder.answer.carrying
    assert not decoder.answer.finished


def test_a_finish_reason_carries_and_finishes() -> None:
    decoder = Decoder(LIMITS, content_type=EVENT_STREAM, content_encoding=None)
    feed(decoder, [event(chunk("stop"))])
    assert (decoder.answer.carrying, decoder.answer.finished, decoder.answer.end) == (True, True, None)


@pytest.mark.parametrize("name", [b"ping", b"keepalive", b"keep-alive", b"heartbeat", b"Ping"])
@pytest.mark.parametrize("payload", [b"{", b"[DONE]", b'{"error":"x"}', b""])
def test_keep_alive_events_are_passed_over_whatever_their_data(name: bytes, payload: bytes) -> None:
    answer = b"event: " + name + b"\ndata: " + payload + b"\n\n" + stream(chunk(content="a"))
    assert decode(answer).complete.finish_reason == "stop"


@pytest.mark.parametrize("payload", [b"{", b"oops", b"<html>", b"{'a':1}", b"[DONE", b'{"choices":[]} x', b'{"a":"\\'])
def test_what_is_no_json_is_a_protocol_error(payload: bytes) -> None:
    decoded = decode(stream(chunk(content="a"), payload, chunk(content="b")))
    assert (decoded.text, decoded.problem.code) == ("a", "upstream_protocol")


@pytest.mark.parametrize("opening", [b'{"x":', b'{"choices":'])
def test_json_too_deep_is_a_protocol_error(opening: bytes) -> None:
    payload = opening + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert decode(stream(payload)).problem.code == "upstream_protocol"


def test_no_depth_of_json_breaks_the_decoder() -> None:
    for depth in range(850, 1010):  # round the interpreter's own limit, where reading may work and walking may not
        part = b'{"choices":[{"delta":{"function_call":{"arguments":' + b"[" * depth + b"]" * depth + b"}}}]}"
        decode(stream(part))


@pytest.mark.parametrize("done", [b"[DONE]", b" [DONE]", b"[DONE] \t", b"\ndata: [DONE]"])
def test_white_space_round_done_is_ignored(done: bytes) -> None:
    assert decode(event(chunk("stop")) + b"data:" + done + b"\n\n" + stream(chunk(content="late"))).pieces == []


LATE = [
    event({"error": {"message": "boom", "code": 500}}),
    event({"object": "error", "code": 400}),
    event(b"garbage"),
    b"event: error\ndata: x\n\n",
    b"error: {}\n\n",
    event(chunk("error")),
    event(chunk(tool_calls=[{"index": 0, "id": "x" * 600}])),
    b"data: " + b"x" * 3000,
    event(chunk(content="y" * 1200)),
    b"",
]


@pytest.mark.parametrize("late", LATE)
@pytest.mark.parametrize("ending", [b"", event(b"[DONE]")])
def test_nothing_makes_a_failure_of_a_finished_answer(late: bytes, ending: bytes) -> None:
    limits = Limits(max_event_bytes=2000, max_answer_bytes=1000)
    decoded = decode(event(chunk("length", content="a")), late, ending, limits=limits)
    assert decoded.complete == Complete("length", None)
    assert decoded.text == "a"


def test_what_comes_between_finish_and_done_is_taken() -> None:
    late = [
        chunk("stop"),
        {"error": "boom"},
        b"garbage",
        chunk(content="b"),
        chunk("length"),
        {"choices": [], "usage": USAGE},
    ]
    decoded = decode(stream(*late, done=False) + event(b"[DONE]") + event(chunk(content="c")))
    assert decoded.text == "b"
    assert decoded.complete == Complete("length", Usage(**USAGE, source="reported"))


def test_an_error_in_the_chunk_that_finishes_is_a_failure() -> None:
    decoded = decode(stream({**chunk("stop", content="a"), "error": {"message": "boom"}}))
    assert (decoded.text, decoded.problem.code) == ("a", "upstream_error")


@pytest.mark.parametrize("reason", ["error", "insufficient_system_resource"])
def test_a_finish_reason_that_tells_a_failure_is_one(reason: str) -> None:
    problem = decode(stream(chunk(reason, content="a"))).problem
    assert (problem.code, problem.retryable) == ("upstream_error", True)


def test_an_end_without_finish_reason_is_whole_where_the_upstream_never_sends_one() -> None:
    said = stream(chunk(content="a"), {"usage": USAGE}, done=False)
    for ending in (b"", event(b"[DONE]")):
        whole = Complete("unknown", Usage(**USAGE, source="reported"))
        assert decode(said, ending, limits=OPTIONAL).complete == whole
        assert decode(ending, limits=OPTIONAL).problem.code == "upstream_truncated"  # nothing at all is no answer


def test_a_finish_reason_is_clipped() -> None:
    assert decode(stream(chunk("x" * 600), done=False)).complete.finish_reason == "x" * 512
    assert decode(stream(chunk("st\ud83d"), done=False)).complete.finish_reason == "st\ufffd"


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 12}, (5, 6, 12)),
        ({"prompt_tokens": 5, "completion_tokens": None}, (5, 0, 5)),
        ({"completion_tokens": 6.0, "prompt_tokens_details": {"cached_tokens": 1}}, (0, 6, 6)),
        ({"total_tokens": 0}, (0, 0, 0)),
        (None, (3, 9, 12)),
        ({}, (3, 9, 12)),
        ("x", (3, 9, 12)),
        ({"prompt_tokens": -1}, (3, 9, 12)),
        *(({"prompt_tokens": odd, "total_tokens": 1}, (3, 9, 12)) for odd in (True, 1.5, 2**80, [1], float("nan"))),
    ],
)
def test_the_last_usage_that_counts_something_wins(usage: object, counted: tuple[int, int, int]) -> None:
    decoded = decode(stream({"choices": [], "usage": USAGE}, {**chunk("stop"), "usage": usage}))
    assert decoded.complete.usage == Usage(*counted, source="reported")


def test_usage_is_found_where_groq_and_moonshot_put_it() -> None:
    for reporting in ({"x_groq": {"usage": USAGE}}, {"choices": [{"index": 0, "delta": {}, "usage": USAGE}]}):
        assert decode(stream(reporting)).complete.usage == Usage(**USAGE, source="reported")


def test_usage_is_known_before_the_end() -> None:
    decoder = Decoder(LIMITS, content_type=EVENT_STREAM, content_encoding=None)
    feed(decoder, [event({**chunk(content="a"), "usage": USAGE})])
    assert decoder.answer.usage == Usage(**USAGE, source="reported")


@pytest.mark.parametrize(
    ("delta", "reasoning", "text"),
    [
        ({"reasoning_content": "r", "reasoning": "r", "content": "a"}, "r", "a"),
        ({"reasoning_content": "", "reasoning": "r"}, "r", ""),
        ({"reasoning": {"odd": 1}, "content": "a"}, "", "a"),
        ({"content": [{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "a"}, "b"]}, "t", "ab"),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "t"}, {"type": "x"}]}]}, "t", ""),
        ({"content": [{"type": "reference", "reference_ids": [1]}, {"type": "text", "text": None}, 7]}, "", ""),
    ],
)
def test_text_and_reasoning_are_told_apart(delta: dict[str, Any], reasoning: str, text: str) -> None:
    decoded = decode(stream(chunk(**delta)))
    assert (decoded.reasoning, decoded.text) == (reasoning, text)


@pytest.mark.parametrize("index", [0, None, "0"])
def test_a_choice_without_a_proper_index_is_ours(index: object) -> None:
    choice = {"index": index, "delta": {"content": "a"}, "finish_reason": "stop"}
    assert decode(event({"choices": [choice]})).text == "a"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"a\xffb", "a\ufffdb"),
        (b"\xf0\x9f\x98a", "\ufffd\ufffd\ufffda"),
        (b"\xed\xa0\xbd\xed\xb8\x80", "\ufffd" * 6),
        (b"\xc0\x80", "\ufffd\ufffd"),
        (b"a\tb\x00", "a\tb\x00"),
        (b"\xe2\x80\xa8\xf0\x9f\x98\x80", "\u2028\U0001f600"),
    ],
)
def test_each_bad_byte_becomes_one_replacement_character(raw: bytes, text: str) -> None:
    answer = event(b'{"choices":[{"delta":{"content":"' + raw + b'"}}]}')
    assert decode(answer + event(chunk("stop"))).text == text


HALVES = [
    (["\ud83d", "\ude00!"], "\U0001f600!"),
    (["a\ud83d", "", "\ude00"], "a\U0001f600"),
    (["\ud83d", "a"], "\ufffda"),
    (["\ud83d", "\ud83d", "\ude00"], "\ufffd\U0001f600"),
    (["\ude00", "\ud83d"], "\ufffd\ufffd"),
    (["a\ud83db\ude00c"], "a\ufffdb\ufffdc"),
    (["\ud83d"], "\ufffd"),
]


@pytest.mark.parametrize(("deltas", "text"), HALVES)
@pytest.mark.parametrize("channel", ["content", "reasoning_content", "refusal"])
@pytest.mark.parametrize("ending", [b"", event(b"[DONE]"), event({"error": "boom"})])
def test_half_a_character_waits_for_its_other_half(deltas: list[str], text: str, channel: str, ending: bytes) -> None:
    decoded = decode(stream(*(chunk(**{channel: delta}) for delta in deltas), done=False) + ending)
    assert decoded.text + decoded.reasoning + decoded.refusal == text


def test_each_channel_waits_for_itself() -> None:
    parts = [chunk(content="\ud83d"), chunk(reasoning="\ud83d"), chunk(content="\ude00"), chunk(reasoning="r")]
    assert decode(stream(*parts)).pieces == [Delta("\U0001f600"), Reasoning("\ufffdr")]


@settings(deadline=None, max_examples=150)
@given(text=st.text(st.sampled_from("aé€😀\ud83d\ude00"), max_size=30), at=st.integers(0, 30), escaped=st.booleans())
def test_no_half_character_is_ever_passed_on(text: str, at: int, escaped: bool) -> None:
    def payload(part: str) -> bytes:
        return json.dumps(chunk(content=part), ensure_ascii=escaped).encode("utf-8", "surrogatepass")

    decoded = decode(stream(payload(text[:at]), payload(text[at:])))
    decoded.text.encode()
    assert all(piece.content for piece in decoded.pieces if isinstance(piece, Delta))
    if escaped:
        assert decoded.text == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@pytest.mark.parametrize(
    ("channel", "kind"), [("content", Delta), ("reasoning", Reasoning), ("refusal", Refusal)], ids=str
)
def test_long_text_comes_in_pieces_that_fit_into_a_line(channel: str, kind: type) -> None:
    text = "😀" * (2 * MAX_PIECE_CHARACTERS + 1)
    pieces = decode(stream(chunk(**{channel: text}))).pieces
    assert pieces == [kind(part) for part in (text[:5000], text[5000:10_000], text[10_000:])]
    assert all(len(json.dumps(getattr(piece, channel))) < 64 * 1024 - 512 for piece in pieces)


@settings(deadline=None, max_examples=200)
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["index", "delta", "content", "tool_calls", "id", "function", "name", "arguments", "type"]
                )
                | st.sampled_from(["finish_reason", "usage", "total_tokens", "error", "code", "text", "thinking"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_no_shape_of_json_is_more_than_the_decoder_can_take(value: object) -> None:
    for payload in ({"choices": value}, {"choices": [value]}, chunk(content=value), chunk(tool_calls=[value]), value):
        decode(stream(chunk(content="a"), payload, chunk("stop")))
        decode(json.dumps(payload).encode(), content_type="application/json")
