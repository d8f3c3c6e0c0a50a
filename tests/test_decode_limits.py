"""What bounds a decoder, and the bodies that are compressed or no event stream (contract §4, rules 1, 5 and 9)."""

import gzip
import json
import tracemalloc
import zlib
from typing import Any

import pytest

from app.decode import Complete, Decoder, Limits
from app.decode.decoder import MAX_FRAMES_PER_CALL
from app.decode.inflate import Inflater
from app.events import Delta, Reasoning, Refusal, ToolCall, Usage
from tests.decoding import EVENT_STREAM, LIMITS, Decoded, chunk, decode, event, single_bytes, stream

MiB = 1024 * 1024
SMALL = Limits(max_event_bytes=1000, max_answer_bytes=10)


def deflated(data: bytes) -> bytes:
    raw = zlib.compressobj(wbits=-15)
    return raw.compress(data) + raw.flush()


def test_one_call_takes_64_frames_and_leaves_the_rest() -> None:
    answer = stream(*(chunk(content=str(number)) for number in range(150)))
    decoder = Decoder(LIMITS, content_type=EVENT_STREAM, content_encoding=None)
    taken = [len(decoder.receive_data(answer))]
    while decoder.backlog:
        taken.append(len(decoder.receive_data(b"")))
    assert taken == [MAX_FRAMES_PER_CALL, MAX_FRAMES_PER_CALL, 150 - 2 * MAX_FRAMES_PER_CALL]
    assert decoder.answer.end == Complete("stop", None)


def test_a_backlog_is_taken_at_the_end_too() -> None:
    answer = stream(*(chunk(content="a") for _ in range(150)))
    for content_encoding, body in ((None, answer), ("gzip", gzip.compress(answer))):
        decoder = Decoder(LIMITS, content_type=EVENT_STREAM, content_encoding=content_encoding)
        pieces = [*decoder.receive_data(body[:-1]), *decoder.receive_data(body[-1:])]
        assert decoder.backlog
        assert [*pieces, *decoder.receive_eof()] == [Delta("a")] * 150
        assert not decoder.backlog


def test_a_decoder_is_deaf_after_its_end() -> None:
    decoder = Decoder(LIMITS, content_type=EVENT_STREAM, content_encoding=None)
    decoder.receive_data(event(b"x") + event(chunk(content="a")))
    end = decoder.answer.end
    assert decoder.receive_data(stream(chunk(content="b"))) == decoder.receive_eof() == []
    assert (decoder.answer.end, decoder.backlog) == (end, False)


@pytest.mark.parametrize(
    "said",
    [
        {"content": "éééééa"},
        {"reasoning": "12345678901"},
        {"refusal": "12345678901"},
        {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "12345678901"}}]},
    ],
)
def test_an_answer_may_be_as_large_as_its_limit_and_no_larger(said: dict[str, Any]) -> None:
    [(channel, value)] = said.items()
    shorter = value[:-1] if isinstance(value, str) else [{**value[0], "function": {"arguments": "1234567890"}}]
    assert decode(stream(chunk(**{channel: shorter})), limits=SMALL).complete.finish_reason == "stop"
    assert decode(stream(chunk(**said)), limits=SMALL).problem.code == "upstream_protocol"


def test_the_limit_of_an_answer_holds_for_all_that_is_said() -> None:
    decoded = decode(stream(chunk(content="12345"), chunk(reasoning="12345"), chunk(refusal="1")), limits=SMALL)
    assert decoded.pieces == [Delta("12345"), Reasoning("12345")]
    assert decoded.problem.code == "upstream_protocol"


def test_an_event_too_large_keeps_what_came_before_it() -> None:
    answer = event(chunk(content="a")) + b"data: " + b"x" * 1000
    for reads in ([answer], [answer[:500], answer[500:]], single_bytes(answer)):
        decoded = decode(*reads, limits=SMALL)
        assert (decoded.text, decoded.problem.code) == ("a", "upstream_protocol")


ANSWER = stream(chunk(content="a" * 50_000), chunk(content="b"))


@pytest.mark.parametrize(
    ("content_encoding", "body"),
    [
        ("gzip", gzip.compress(ANSWER)),
        ("GZIP", gzip.compress(ANSWER[:60]) + bytes(9) + gzip.compress(ANSWER[60:]) + bytes(700)),
        (" x-gzip ", gzip.compress(ANSWER)),
        ("deflate", zlib.compress(ANSWER)),
        ("deflate", deflated(ANSWER)),
        ("deflate", zlib.compress(ANSWER) + b"more"),
        ("identity, gzip", gzip.compress(ANSWER)),
        ("identity", ANSWER),
        ("", ANSWER),
    ],
)
def test_encodings_are_undone_however_the_bytes_are_cut(content_encoding: str, body: bytes) -> None:
    whole = decode(body, content_encoding=content_encoding)
    assert whole == decode(*single_bytes(body), content_encoding=content_encoding) == decode(ANSWER)


def test_nothing_waits_in_an_inflater_that_says_so() -> None:
    packed = deflated(bytes(40_000))
    for size in range(len(packed) + 1):
        inflater = Inflater(gzip=False)
        inflater.receive(packed[:size])
        taken = b""
        while inflater.waiting:
            taken += inflater.take()
        assert len(taken) == len(zlib.decompressobj(-15).decompress(packed[:size]) if size > 1 else b"")


@pytest.mark.parametrize("content_encoding", ["br", "zstd", "compress", "gzip, gzip", "gzip, br"])
def test_an_encoding_that_was_not_asked_for_is_a_protocol_error(content_encoding: str) -> None:
    decoder = Decoder(LIMITS, content_type=EVENT_STREAM, content_encoding=content_encoding)
    assert decoder.answer.end is not None  # before a byte is read
    assert decode(content_encoding=content_encoding).problem.code == "upstream_protocol"


@pytest.mark.parametrize("position", [0, 3, 12, 60, 80, 110, -9, -6, -1])
def test_a_broken_compressed_answer_breaks_at_the_same_place_however_it_is_cut(position: int) -> None:
    parts = [chunk(content="a"), chunk(content="b"), chunk(reasoning="cde"), chunk(refusal="xyz" * 9)]
    body = bytearray(gzip.compress(stream(*parts), mtime=0))
    body[position] ^= 0xFF
    broken = bytes(body)
    whole = decode(broken, content_encoding="gzip")
    assert decode(*single_bytes(broken), content_encoding="gzip") == whole
    for at in range(len(broken)):
        assert decode(broken[:at], broken[at:], content_encoding="gzip") == whole


def test_a_checksum_that_does_not_match_is_no_failure_of_a_finished_answer() -> None:
    body = gzip.compress(stream(chunk(content="a"), done=False) + event(chunk("stop")))
    assert decode(body[:-8] + bytes(8), content_encoding="gzip").complete.finish_reason == "stop"


def test_a_compressed_answer_cut_short_is_not_whole_even_where_no_finish_reason_is_asked_for() -> None:
    optional = Limits(LIMITS.max_event_bytes, LIMITS.max_answer_bytes, finish_optional=True)
    body = gzip.compress(stream(chunk(content="a"), done=False))
    assert decode(body, content_encoding="gzip", limits=optional).complete.finish_reason == "unknown"
    assert decode(body[:-5], content_encoding="gzip", limits=optional).problem.code == "upstream_truncated"


BOMB_BYTES = 32 * MiB


@pytest.mark.parametrize(
    "filling", [b"data: " + b"a" * 1018, b": " + b"a" * 1022, b"\n" * 1024, event(chunk(content="a"))]
)
def test_a_bomb_meets_the_limits_before_memory(filling: bytes) -> None:
    packer = zlib.compressobj(9, wbits=31)
    block = filling * (MiB // len(filling))
    bomb = b"".join(packer.compress(block) for _ in range(BOMB_BYTES // MiB)) + packer.flush()
    decoder = Decoder(Limits(MiB, MiB), content_type=EVENT_STREAM, content_encoding="gzip")
    tracemalloc.start()
    try:
        decoder.receive_data(bomb)
        for _ in range(200):
            decoder.receive_data(b"")
        assert tracemalloc.get_traced_memory()[1] < len(bomb) * 3 + 6 * MiB
    finally:
        tracemalloc.stop()
    assert decoder.backlog or decoder.answer.end is not None


def body_of(document: object, **headers: Any) -> Decoded:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    decoded = decode(body, **{"content_type": "application/json", **headers})
    assert decode(*single_bytes(body), **{"content_type": "application/json", **headers}) == decoded
    return decoded


USAGE = {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12}
MESSAGE = {
    "role": "assistant",
    "content": "hi",
    "reasoning_content": "hm",
    "refusal": "no",
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}


def test_a_whole_completion_comes_as_its_pieces_and_done() -> None:
    other = {"index": 1, "message": {"content": "other"}, "finish_reason": "length"}
    completion = {"choices": [other, {"index": 0, "message": MESSAGE, "finish_reason": "stop"}], "usage": USAGE}
    decoded = body_of(completion)
    assert decoded.pieces == [Reasoning("hm"), Delta("hi"), Refusal("no"), ToolCall(0, "c", "f", "{}")]
    assert decoded.end == Complete("stop", Usage(**USAGE, source="reported"))


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON", "text/plain", "x"])
def test_a_completion_is_known_by_its_body(content_type: str) -> None:
    completion = json.dumps({"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}).encode()
    for body in (completion, b"\xef\xbb\xbf \n" + completion + b"\n"):
        assert body_of(body, content_type=content_type).text == "hi"
    assert body_of(gzip.compress(completion), content_encoding="gzip").text == "hi"


def test_a_completion_without_finish_reason_is_truncated() -> None:
    completion = {"choices": [{"message": {"content": "hi"}, "finish_reason": None}]}
    assert (body_of(completion).text, body_of(completion).problem.code) == ("hi", "upstream_truncated")


@pytest.mark.parametrize(
    ("document", "code", "status"),
    [
        ({"error": {"message": "no", "code": 400}}, "upstream_rejected", 400),
        ({"error": "model not found"}, "upstream_error", 502),
        ({"object": "error", "message": "slow", "code": 429}, "rate_limited", 429),
        ({"choices": [{"message": {"content": "a"}, "finish_reason": "error"}]}, "upstream_error", 502),
    ],
)
def test_an_error_in_a_body_is_an_error_by_the_table(document: object, code: str, status: int) -> None:
    problem = body_of(document).problem
    assert (problem.code, problem.status) == (code, status)


@pytest.mark.parametrize(
    "body",
    [
        *(
            b"",
            b"  ",
            b"<!doctype html><p>502",
            b"null",
            b"[]",
            b"{}",
            b'"error"',
            b'{"error":null}',
            b'{"choices":[]}',
        ),
        *(b'{"choices":[{"message":null}]}', b'{"choices":[{"index":1,"message":{}}]}', b'{"a":1}\n{"a":2}\n'),
        *(b'{"choices":[{"message":{"content":"cut', b'{"choices":[{"delta":{"content":"a"}}]}', b"[" * 100_000),
        stream(chunk(content="a")),
    ],
    ids=lambda body: repr(body[:30]),
)
def test_any_other_body_is_a_protocol_error(body: bytes) -> None:
    decoded = decode(body, content_type="text/html")
    assert (decoded.pieces, decoded.problem.code) == ([], "upstream_protocol")


def test_a_body_is_bounded() -> None:
    decoder = Decoder(SMALL, content_type="application/json", content_encoding=None)
    for _ in range(3):
        decoder.receive_data(b" " * 500)
    assert decoder.answer.end is not None
    assert decode(b" " * 1001, content_type="text/html", limits=SMALL).problem.code == "upstream_protocol"


@pytest.mark.parametrize(
    "content_type", [None, "", "Text/Event-Stream", "text/event-stream; charset=utf-8", " text/event-stream;"]
)
def test_an_event_stream_is_known_by_its_type_or_by_none(content_type: str | None) -> None:
    assert decode(stream(chunk(content="a")), content_type=content_type).text == "a"


@pytest.mark.parametrize("status", [204, 205])
def test_no_content_is_a_protocol_error(status: int) -> None:
    problem = decode(status=status, content_type=None).problem
    assert (problem.code, problem.status) == ("upstream_protocol", 502)
