"""Bodies that are legal and made to hurt: ten MiB of the smallest values, of one number, of brackets without end.

A relay in a process of its own is asked for /healthz all the while on another connection: whatever holds its loop holds
that answer. The bounds are ten times what was measured on two cores, and more.
"""

import json
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from app.errors import RelayError
from app.request import openai
from app.values import MAX_VALUES, too_many
from tests.credentials import KEYS, bearer, hashes
from tests.hostile import Operated, operated, pulse
from tests.relay import ask, chat, connect, fetch, running
from tests.upstream import Upstream, answer

MiB: Final = 1024 * 1024
FULL_BYTES: Final = 10 * MiB - 1024
REFUSED_S: Final = 1.0
"""Twenty times what it takes to see that there is too much in a body."""

READ_S: Final = 5.0
"""Ten times what it takes to read as much as there may be in one, or to look through ten MiB of one string."""

CHAT: Final = b'{"message":"hi","model":"m",%b}'
MESSAGES: Final = b'{"model":"m","messages":[%b]}'
UI: Final = b'{"id":"c","model":"m","messages":[{"role":"user","parts":[{"type":"text","text":"hi"}]},%b]}'
UI_PARTS: Final = b'{"id":"c","model":"m","messages":[{"role":"user","parts":[%b]}]}'
RUN: Final = b'{"threadId":"t","runId":"r","forwardedProps":{"model":"m"},"messages":[%b]}'
CALLS: Final = b'{"role":"assistant","toolCalls":[%b]}'
NUMBERED: Final = b'"%05x":0'

WORST: Final[dict[str, tuple[str, bytes, bytes]]] = {
    "tools": ("/chat/stream", CHAT.replace(b"%b", b'"tools":[%b]'), b'{"":0}'),
    "messages": ("/chat/stream", MESSAGES, b'{"role":"user"}'),
    "fields of a message": ("/chat/stream", MESSAGES.replace(b"%b", b'{"role":"user",%b}'), NUMBERED),
    "OpenAI's messages": ("/v1/chat/completions", MESSAGES, b'{"":0}'),
    "OpenAI's fields": ("/v1/chat/completions", b'{"model":"m","messages":[{}],%b}', NUMBERED),
    "fields of lists": ("/v1/chat/completions", b'{"model":"m","messages":[{}],%b}', b'"%05x":[]'),
    "UI parts": ("/api/chat", UI_PARTS, b'{"type":"text","text":""}'),
    "UI steps": ("/api/chat", UI.replace(b"%b", b'{"role":"assistant","parts":[%b]}'), b'{"type":"step-start"}'),
    "AG-UI messages": ("/ag-ui", RUN, b'{"role":"user","content":""}'),
    "AG-UI calls": ("/ag-ui", RUN.replace(b"%b", CALLS), b'{"id":"","function":{"name":"","arguments":""}}'),
}
WHOLES: Final[dict[str, tuple[str, bytes, int]]] = {
    "brackets": ("/chat/stream", b"[" * FULL_BYTES, 413),
    "braces": ("/v1/chat/completions", b'{"":' * (FULL_BYTES // 4), 413),
    "a deep tool": ("/chat/stream", CHAT.replace(b"%b", b'"tools":[' + b'{"a":[' * 100_000), 413),
    "brackets below the bound": ("/ag-ui", b"[" * MAX_VALUES, 400),
    "a number": ("/chat/stream", CHAT.replace(b"%b", b'"seed":' + b"9" * FULL_BYTES), 413),
    "a fraction": ("/chat/stream", CHAT.replace(b"%b", b'"temperature":0.' + b"9" * FULL_BYTES), 413),
    "long numbers": ("/v1/chat/completions", MESSAGES.replace(b"%b", b'{"a":[' + b"9" * 4000 + b",1]}"), 200),
    "a string": ("/chat/stream", b'{"model":"m","message":"' + b"x" * FULL_BYTES + b'"}', 200),
    "escapes": ("/chat/stream", b'{"model":"m","message":"' + b"\\u0001" * (FULL_BYTES // 6) + b'"}', 200),
    "quotes": ("/chat/stream", b'{"model":"m","message":"' + b'\\"' * (FULL_BYTES // 2) + b'"}', 200),
    "a string without an end": ("/chat/stream", b'"' + b'\\"' * (FULL_BYTES // 2), 400),
    "backslashes": ("/chat/stream", b"\\" * FULL_BYTES, 400),
    "spaces": ("/api/chat", b" " * FULL_BYTES, 400),
    "NULs": ("/ag-ui", b"\0" * FULL_BYTES, 400),
    "a field of 9 MiB": ("/chat/stream", CHAT.replace(b"%b", b'"' + b"x" * (9 * MiB) + b'":1'), 422),
}


@pytest.fixture(scope="module")
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as upstream:
        upstream.script(answer("ok"))
        yield upstream


@pytest.fixture(scope="module")
async def relay(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Operated]:
    folder = tmp_path_factory.mktemp("bodies")
    async with operated(folder, upstream, RELAY_ATTEMPTS="1", RELAY_LOG_LEVEL="error") as relay:
        yield relay


def filled(template: bytes, item: bytes, *, items: int) -> bytes:
    pieces = (item % at if b"%" in item else item for at in range(items))
    return template.replace(b"%b", b",".join(pieces))


def as_full_as_may_be(template: bytes, item: bytes) -> bytes:
    """But for a few."""
    counted = next(most for most in range(1, 50) if not too_many(b" " * 60 + item + b",", most))
    return filled(template, item, items=MAX_VALUES // counted - 50)


async def answered(port: int, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
    """The status, and what a refusal says; a stream is not read to its end."""
    async with connect(port) as connection:
        response = await connection.request("POST", path, body)
        return response.status, (await response.json())["error"] if response.status >= 400 else {}


@pytest.mark.parametrize("name", WORST)
async def test_a_body_of_many_values_is_refused_in_a_moment(relay: Operated, name: str) -> None:
    path, template, item = WORST[name]
    body = filled(template, item, items=(FULL_BYTES - len(template)) // (len(item) + 2))
    async with pulse(relay.port) as felt:
        status, error = await answered(relay.port, path, body)
    assert (status, error["code"], error["param"]) == (413, "invalid_request", "body")
    assert f"at most {MAX_VALUES} values" in error["message"]
    assert felt.worst_s < REFUSED_S


@pytest.mark.parametrize("name", WORST)
async def test_the_most_that_a_body_may_hold_holds_nobody_up_for_long(relay: Operated, name: str) -> None:
    path, template, item = WORST[name]
    body = as_full_as_may_be(template, item)
    assert not too_many(body)
    async with pulse(relay.port) as felt:
        status, _ = await answered(relay.port, path, body)
    assert status in (200, 422)
    assert felt.worst_s < READ_S


@pytest.mark.parametrize("name", WHOLES)
async def test_a_body_of_one_kind_is_answered_and_holds_nobody_up(relay: Operated, name: str) -> None:
    path, body, expected = WHOLES[name]
    async with pulse(relay.port) as felt:
        status, _ = await answered(relay.port, path, body)
    assert status == expected
    assert felt.worst_s < READ_S


HEADS: Final = {
    "cookies": b"cookie: " + b"a=b;" * 15_000,
    "addresses": b"x-forwarded-for: " + b"127.0.0.1," * 6000,
    "an address": b"x-forwarded-for: " + b":" * 60_000,
    "tags": b"if-none-match: " + b"a," * 30_000,
    "an origin": b"origin: http://" + b"[" * 60_000,
    "a host": b"x: " + b"y" * 50_000,
    "names": b"a:b\r\n" * 10_000 + b"c:d",
    "a credential": b"authorization: Bearer " + b"a." * 30_000,
    "a cursor": b"last-event-id: s_" + b"0" * 60_000,
    "a query": b"",
}


@pytest.mark.parametrize("name", HEADS)
async def test_a_head_as_large_as_may_be_holds_nobody_up(relay: Operated, name: str) -> None:
    query = b"?" + b"message=a&" * 6000 if name == "a query" else b""
    lines = [b"GET /chat/stream%b HTTP/1.1" % query, b"host: localhost", HEADS[name], b"", b""]
    async with pulse(relay.port) as felt, connect(relay.port) as connection:
        connection.writer.write(b"\r\n".join(line for line in lines[:3] if line) + b"\r\n\r\n")
        response = await connection.head()
    assert response.status in (400, 403, 422)
    assert felt.worst_s < REFUSED_S


# What is counted, and what is not.


def test_what_a_string_holds_is_not_counted() -> None:
    text = ',{}[]"\\,' * MAX_VALUES
    assert not too_many(json.dumps({"messages": [{"role": "user", "content": text}]}).encode())
    assert not too_many(b'"' + b'\\"' * 10 * MAX_VALUES)


@pytest.mark.parametrize("unit", [b"1,", b'"",', b"[],", b"{},", b"9" * 16, b'"a":1,', b"[", b"{"], ids=repr)
def test_every_way_to_many_values_is_counted(unit: bytes) -> None:
    assert not too_many(unit * 100, 1000)
    assert too_many(unit * 1001, 1000)


# What was checked is what is sent.

TWICE: Final = {
    "a model": (b'"model":"cheap","model":"dear"', "/v1/chat/completions", "forbidden"),
    "an escaped name": (b'"model":"cheap","mod\\u0065l":"dear"', "/v1/chat/completions", "forbidden"),
    "a length": (b'"model":"cheap","max_tokens":5,"max_tokens":5000', "/v1/chat/completions", "invalid_request"),
    "a name in capitals": (b'"model":"cheap","MAX_TOKENS":5000', "/v1/chat/completions", "invalid_request"),
    "a NUL behind a name": (b'"model":"cheap","max_tokens\\u0000":5000', "/v1/chat/completions", "invalid_request"),
    "another service's name": (b'"model":"cheap","models":["dear"]', "/v1/chat/completions", "invalid_request"),
    "a length of text": (b'"model":"cheap","max_tokens":"5000"', "/chat/stream", "invalid_request"),
    "a length that is true": (b'"model":"cheap","max_tokens":true', "/chat/stream", "invalid_request"),
    "an answer too many": (b'"model":"cheap","n":100', "/v1/chat/completions", "invalid_request"),
}


@pytest.mark.parametrize("name", TWICE)
async def test_no_way_of_writing_gets_past_what_a_caller_may_have(name: str) -> None:
    fields, path, code = TWICE[name]
    body = b'{"messages":[{"role":"user","content":"hi"}],' + fields + b"}"
    keys = {"web": hashes(KEYS[0]) | {"models": ["cheap"], "caps": {"max_tokens": 10, "n": 1}}}
    async with Upstream() as upstream, running(upstream.base_url, keys=keys, log_level="error") as relay:
        _, refused = await fetch(relay.port, "POST", path, body, bearer(KEYS[0]))
        assert json.loads(refused)["error"]["code"] == code
        assert upstream.requests == []


async def test_of_a_field_that_is_sent_twice_upstream_sees_the_one_that_was_checked() -> None:
    keys = {"web": hashes(KEYS[0]) | {"models": ["cheap"], "caps": {"max_tokens": 10}}}
    async with Upstream() as upstream, running(upstream.base_url, keys=keys, log_level="error") as relay:
        upstream.script(answer("ok"))
        body = b'{"model":"dear","max_tokens":5000,"message":"hi","model":"cheap","max_tokens":5}'
        response, _ = await ask(relay.port, body, headers=bearer(KEYS[0]))
        [request] = upstream.requests
    assert (response.status, request.body["model"], request.body["max_tokens"]) == (200, "cheap", 5)


@pytest.mark.parametrize("text", [r"\ud800", r"\udfff\ud800", r"\u0000", r"\u2028", r"\ufeff"], ids=repr)
async def test_odd_characters_reach_upstream_whole_or_not_at_all(text: str) -> None:
    async with Upstream() as upstream, running(upstream.base_url, log_level="error") as relay:
        upstream.script(answer("ok"))
        response, _ = await ask(relay.port, f'{{"model":"m","message":"a{text}b"}}'.encode())
        said = [request.body["messages"][0]["content"] for request in upstream.requests]
    surrogate = text.startswith((r"\ud8", r"\udf"))
    assert (response.status, said) == ((400, []) if surrogate else (200, [json.loads(f'"a{text}b"')]))


@pytest.mark.parametrize("body", [b"NaN", b'{"messages":[NaN]}', b'{"messages":[{"a":Infinity}]}', b"\xef\xbb\xbf{}"])
def test_what_is_no_json_is_not_made_any(body: bytes) -> None:
    with pytest.raises(RelayError):
        openai.parse(body)


async def test_a_chat_of_nothing_odd_is_answered_after_all_that(relay: Operated) -> None:
    response, _ = await ask(relay.port, chat())
    assert response.status == 200
