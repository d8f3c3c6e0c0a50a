"""Upstream's failures by the table of codes (contract §3), and what of its words a stranger may read."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.decode import from_status
from app.decode.scrub import MAX_WORDS_CHARACTERS, scrubbed
from app.errors import Problem
from tests.decoding import chunk, decode, event, stream

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)


def refused(status: int, body: object = b"", retry_after: str | None = None) -> Problem:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return from_status(status, raw, retry_after, now=NOW).problem


@pytest.mark.parametrize(
    ("statuses", "code", "status", "retryable"),
    [
        ([400, 404, 413, 422, 405, 418, 451, 499], "upstream_rejected", 400, False),
        ([401, 402, 403, 409], "upstream_error", 502, False),
        ([408, 504, 524], "upstream_timeout", 504, True),
        ([429], "rate_limited", 429, True),
        ([301, 302, 307, 308, 500, 502, 503, 520, 529, 599], "upstream_unavailable", 502, True),
    ],
)
def test_every_status_has_its_code(statuses: list[int], code: str, status: int, retryable: bool) -> None:
    for upstream_status in statuses:
        problem = refused(upstream_status, {"error": {"message": "words"}})
        assert (problem.code, problem.status, problem.retryable) == (code, status, retryable)
        assert problem.upstream_status == upstream_status


@pytest.mark.parametrize("error", [{"type": "insufficient_quota"}, {"code": "insufficient_quota"}])
def test_an_empty_account_is_not_a_rate_limit(error: dict[str, str]) -> None:
    for problem in (refused(429, {"error": error}), decode(stream({"error": {**error, "status": 429}})).problem):
        assert (problem.code, problem.status, problem.retryable) == ("upstream_error", 502, False)
        assert problem.upstream_status == 429


@pytest.mark.parametrize(
    ("retry_after", "wait_s"),
    [
        *(("7", 7.0), (" 0 ", 0.0), ("1.5", 1.5), ("999999999", 86_400.0)),
        *(("Sat, 21 Nov 2026 12:00:30 GMT", 30.0), ("Sat, 21 Nov 2026 12:00:30 -0000", 30.0)),
        *(("Saturday, 21-Nov-26 12:00:30 GMT", 30.0), ("Sat Nov 21 12:00:30 2026", 30.0)),
        *(("Sat, 21 Nov 2026 11:59:00 GMT", 0.0), ("Sun, 21 Nov 2027 12:00:00 GMT", 86_400.0)),
        *(
            (odd, None)
            for odd in (None, "", "-1", "soon", "nan", "inf", "1e3", "1_0", "٣", "Sat, 99 Nov 2026", "1" * 20)
        ),
    ],
)
def test_retry_after_is_seconds_or_a_date(retry_after: str | None, wait_s: float | None) -> None:
    assert refused(429, retry_after=retry_after).retry_after_s == wait_s


def test_a_date_means_nothing_without_a_clock() -> None:
    later = (NOW + timedelta(seconds=5)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    assert from_status(429, b"", later).problem.retry_after_s is None


@settings(deadline=None, max_examples=200)
@given(body=st.binary(max_size=80), retry_after=st.text(max_size=40), status=st.integers(300, 599))
def test_no_answer_is_too_odd_to_be_a_failure(body: bytes, retry_after: str, status: int) -> None:
    assert refused(status, body, retry_after).status in (400, 429, 502, 504)


REJECTED = ("upstream_rejected", 400, False)
NOT_OURS = ("upstream_error", 502, False)
LIMITED = ("rate_limited", 429, True)
FAILED = ("upstream_error", 502, True)
TIMED_OUT = ("upstream_timeout", 504, True)

IN_BAND: list[tuple[object, tuple[str, int, bool]]] = [
    *(({"error": {"code": number}}, REJECTED) for number in (400, 404, 413, 422, "400", 418)),
    *(
        ({"error": {"type": name}}, REJECTED)
        for name in ("invalid_request_error", "BadRequestError", "not_found_error")
    ),
    ({"error": {"code": "context_length_exceeded"}}, REJECTED),
    ({"error": {"status_code": 400, "code": "tool_use_failed"}}, REJECTED),
    ({"error": {"status": 400}}, REJECTED),
    ({"error": {"message": "m"}, "code": 400}, REJECTED),
    ({"object": "error", "code": 400, "message": "m"}, REJECTED),
    *(({"error": {"code": number}}, NOT_OURS) for number in (401, 402, 403, 409, "401")),
    ({"error": {"type": "invalid_request_error", "code": "invalid_api_key"}}, NOT_OURS),
    *(({"error": {"type": name}}, NOT_OURS) for name in ("authentication_error", "permission_error", "billing_error")),
    *(({"error": {"code": number}}, LIMITED) for number in (429, "429", 429.0)),
    *(({"error": {"type": name}}, LIMITED) for name in ("rate_limit_error", "RateLimitError", "rate_limit_exceeded")),
    ({"error": {"code": 502, "metadata": {"error_type": "rate_limit_exceeded"}}}, LIMITED),
    *(({"error": short}, LIMITED) for short in (429, "429", "rate_limit_exceeded")),
    ({"error": {"code": 408}}, TIMED_OUT),
    *(({"error": {"code": number}}, FAILED) for number in (500, 503, 504, "529", 0, -1, 1301, None, True, "x")),
    *(({"error": words}, FAILED) for words in ("boom", "it went wrong", True, 7, ["x"], {"message": "m"})),
    ({"error": {"type": "server_error", "code": 500, "message": "invalid_request_error"}}, FAILED),
    *(({"type": "error", "message": "m", "code": number}, kind) for number, kind in ((400, REJECTED), (None, FAILED))),
    ({"choices": [{"error": {"code": 429}, "logprobs": float("nan")}]}, LIMITED),
    ({"type": "error", "error": {"type": "overloaded_error"}}, FAILED),
    ({"choices": [{"index": 0, "delta": {}, "finish_reason": "error", "error": {"code": 429}}]}, LIMITED),
    ({"choices": [{"index": 0, "delta": {}, "finish_reason": "error"}], "error": {"code": 400}}, REJECTED),
]


def kind(problem: Problem) -> tuple[str, int, bool]:
    return problem.code, problem.status, problem.retryable


@pytest.mark.parametrize(("payload", "expected"), IN_BAND, ids=repr)
def test_an_error_in_the_stream_is_known_by_number_or_name(payload: object, expected: tuple[str, int, bool]) -> None:
    role = chunk(role="assistant", content="")
    assert kind(decode(stream(role, payload)).problem) == expected
    # A request that upstream began to answer was not the caller's to mend.
    after_content = NOT_OURS if expected == REJECTED else expected
    assert kind(decode(stream(chunk(content="a"), payload)).problem) == after_content


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (b'event: error\ndata: {"error":{"code":429}}\n\n', LIMITED),
        (b'event: error\ndata: {"code":400,"message":"m"}\n\n', REJECTED),
        (b'event: error\ndata: {"choices":[]}\n\n', FAILED),
        (b"event: error\ndata: out of memory\n\n", FAILED),
        (b"event: error\ndata: \xff\n\n", FAILED),
        (b"event: Error\ndata: [DONE]\n\n", FAILED),
        (b"event: error\n\n", FAILED),
        (b'error: {"code":400,"message":"m"}\n\n', REJECTED),
        (b"error: oops\n\n", FAILED),
        (b'event: error\ndata: {"error":' + b'{"error":' * 5000 + b"1" + b"}" * 5001 + b"\n\n", FAILED),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_an_error_event_is_an_error_whatever_its_data(frame: bytes, expected: tuple[str, int, bool]) -> None:
    assert kind(decode(frame + stream(chunk(content="a"))).problem) == expected


def test_the_number_is_told_where_it_is_known() -> None:
    assert decode(stream({"error": {"code": "503"}})).problem.upstream_status == 503
    assert decode(stream({"error": {"code": "overloaded"}})).problem.upstream_status is None


SECRET = "sk-proj-abcdefghijkl1234"


def test_words_are_passed_on_for_a_rejected_request_alone() -> None:
    error = {"message": f"The secret is {SECRET} and no word of it", "param": SECRET}
    problems = [refused(status, {"error": error}) for status in (301, 401, 408, 409, 429, 500, 503)]
    problems += [decode(stream({"error": {**error, "code": number}})).problem for number in (401, 408, 429, 500)]
    problems += [decode(stream(chunk(content="a"), {"error": {**error, "code": 400}})).problem]
    assert all("word" not in json.dumps(problem.as_json()) for problem in problems)
    rejected = [refused(400, {"error": error}), decode(stream({"error": {**error, "code": 400}})).problem]
    assert all("word" in problem.message and SECRET not in json.dumps(problem.as_json()) for problem in rejected)


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "too long"}},
        [{"error": {"message": "too long"}}],
        {"error": "too long"},
        {"object": "error", "message": "too long"},
        {"detail": "too long"},
        event({"error": {"message": "too long"}}),
    ],
    ids=repr,
)
def test_words_are_found_in_every_shape_of_body(body: object) -> None:
    assert refused(400, body).message == "too long"


@pytest.mark.parametrize(
    "body", [b"", b"<html>too long</html>", {"error": {"message": {"a": 1}}}, {"error": {"message": "\x00"}}]
)
def test_without_words_there_is_a_sentence_of_ours(body: object) -> None:
    assert refused(400, body).message == "upstream refused the request"


HEX = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("words", "secret"),
    [
        *((f"key {key} is wrong", key) for key in (SECRET, "sk-1", "sk-abc***********wxyz", "gsk_abcdefghij", HEX)),
        *((f"key {key} is wrong", key) for key in ("abcd****wxyz", "AIzaSyA1234567890abcdef", "hf_abcdefghijkl")),
        *((f"key {key} is wrong", key) for key in ("dGhpc2lzYXNlY3JldHRva2Vu", "AbCdEfGhIjKlMnOpQr")),
        ("basic QWxhZGRpbjpvcGVuIHNlc2FtZQ== is wrong", "QWxh"),
        ("Authorization: Bearer abc.def", "abc.def"),
        ("bearer   hunter2 refused", "hunter2"),
        ("token: ab12cd34 refused", "ab12cd34"),
        ("jwt eyJhbGciOi.eyJzdWIi.c2ln bad", "eyJzdWIi"),
        ("id 123e4567-e89b-12d3-a456-426614174000 bad", "426614174000"),
        *((f"in {owner} there", owner) for owner in ("org-AbC123", "proj_x1", "org-abcdefghijklmno", "proj-1")),
        *((f"see {url} there", "corp") for url in ("https://corp.example/a?b=c", "HTTP://corp:80", "wss://u:p@corp")),
        *((f"at {host} now", "corp") for host in ("corp.com", "a.corp.internal", "x.corp.svc.local:8000/v1")),
        *((f"at {host} now", "corp") for host in ("corp:8000", "www.corp", "gpu-1.rack2.corp", "a@corp", "corp.de.")),
        *((f"({host})", "corp") for host in ("corp.io:443", "'corp.ai/v1/chat'")),
        ("connect localhost refused", "localhost"),
        *((f"dial {address} failed", "10.") for address in ("10.0.0.1:80", "[::ffff:10.0.0.1]:80", "10.1.2.3/8")),
        *((f"dial {address} failed", "fe80") for address in ("fe80::1%eth0", "[fe80::1]:80", "1:2:3:4:5:6:7:fe80")),
        ("dial ::1, failed", "::1"),
        ("sk-\u200babc\u0000def", "abc"),
        ("x\n" * 700 + "sk-abc", "sk-a"),
        ("\x00" * 1190 + HEX, HEX[:8]),
        ("a" * 1190 + " sk-abcdefghijklmnop", "sk-a"),
    ],
    ids=repr,
)  # fmt: skip
def test_what_could_be_a_secret_is_removed(words: str, secret: str) -> None:
    assert secret not in scrubbed(words)


@pytest.mark.parametrize(
    "words",
    [
        "This model's maximum context length is 8192 tokens. However, you requested 9001 tokens (1 in messages).",
        "The model `meta-llama/Llama-3.3-70B-Instruct-Turbo` does not exist or you do not have access to it.",
        "Invalid value for 'messages.0.content': expected a string, e.g. 'a', or tools.0.function.name.",
        "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' with gpt-4.1-mini-2025-04-14.",
        "The model `us.anthropic.claude-3-5-sonnet-20241022-v2:0` or `gemma3:27b` is not found",
        "temperature: 2.5 is above 2.0; see std::vector, 50% and the internationalization limit",
    ],
)
def test_what_helps_the_caller_is_kept(words: str) -> None:
    assert scrubbed(words) == words


def test_words_are_one_line_of_300_characters() -> None:
    assert scrubbed("a\r\nb\x00\x1b[31m\u202ec\u2028d") == "a b[31mc d"
    assert scrubbed("word " * 100) == ("word " * 100)[: MAX_WORDS_CHARACTERS - 1] + "…"
    assert len(scrubbed("\ud800é" * 1000)) <= MAX_WORDS_CHARACTERS


@settings(deadline=None, max_examples=200)
@given(
    before=st.text(max_size=40), key=st.from_regex(r"sk-[A-Za-z0-9]{8,40}", fullmatch=True), after=st.text(max_size=40)
)
def test_no_key_passes_whatever_stands_round_it(before: str, key: str, after: str) -> None:
    assert key not in scrubbed(f"{before} {key} {after}")


@pytest.mark.parametrize("unit", ["a.", "a:", "1.", "-", "sk", "a-", "f::", "@", "*", "bearer ", "www.", "a/", "a.b-"])
def test_scrubbing_hostile_words_takes_no_time(unit: str) -> None:
    assert len(scrubbed(unit * 100_000)) <= MAX_WORDS_CHARACTERS  # the test's own time limit is the assertion


def test_unused_fields_are_left_for_the_relay() -> None:
    problem: dict[str, Any] = refused(400).as_json()
    assert (problem["phase"], problem["partial"], problem["request_id"]) == (None, False, None)
