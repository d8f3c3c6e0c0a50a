"""An upstream that means harm, or is broken as if it did: bombs, answers without end, events made to be slow to read.

It can waste its own stream. It cannot have the loop, the memory, another's stream, or a header of the relay's answers.
"""

import asyncio
import gzip
import json
import time
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import pytest

from app.decode import from_status
from app.door.jwks import Unreadable, read
from tests.hostile import Operated, operated, pulse
from tests.relay import chat, connect, fetch, running
from tests.upstream import Answer, Step, Upstream, answer, chunk, close, done, event, finish, hang, head, repeat, send
from tests.upstream import status as refusal

MiB: Final = 1024 * 1024
EVENT_BYTES: Final = 4 * MiB
HELD_S: Final = 6.0
"""Several times what the worst event of 4 MiB takes to be read or refused: 1.1 s, of bytes that are no UTF-8."""

ROOM_BYTES: Final = 48 * MiB
"""What one answer may add to the process: five times what the worst does, which is twice an event's 4 MiB."""

SSE: Final = {"content-type": "text/event-stream"}
GZIP: Final = SSE | {"content-encoding": "gzip"}
DEFLATE: Final = SSE | {"content-encoding": "deflate"}
MOMENT: Final = {"first_token": 0.4, "total": 1}
"""For what ends by a limit alone; what is refused by a bound is given the time that it takes to be met."""


@pytest.fixture(scope="module")
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
async def relay(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Operated]:
    limits = {"RELAY_ATTEMPTS": "1", "RELAY_LOG_LEVEL": "error", "RELAY_MAX_ANSWER_BYTES": str(8 * MiB)}
    async with operated(tmp_path_factory.mktemp("upstreams"), upstream, **limits) as relay:
        yield relay


async def said(port: int, **fields: Any) -> tuple[int, bytes]:
    """The status and the body of a chat, whatever becomes of it."""
    async with asyncio.timeout(15), connect(port) as connection:
        response = await connection.request("POST", "/chat/stream", chat(**fields))
        return response.status, await response.read()


# Bombs, and answers that do not end.

TEXT: Final = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n'


def zeros(size: int) -> bytes:
    return gzip.compress(TEXT % (b"0" * size))


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


def of(headers: Mapping[str, str], *sent: bytes, forever: bytes = b"", code: int = 200) -> Answer:
    endless: Answer = (repeat(send(forever)),) if forever else (hang(),)
    return head(code, headers), *map(send, sent), *endless


EMPTY_BLOCKS: Final = b"\0\0\0\xff\xff" * 3000
SOME: Final = b"x" * 16_384
WHOLE: Final = {"content-type": "application/json", "content-encoding": "gzip"}
REFUSAL: Final = b'{"error":{"message":"'
ROLE: Final = b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n'
BOMBS: Final[dict[str, tuple[Callable[[], Answer], str]]] = {
    "one event": (lambda: of(GZIP, zeros(64 * MiB)), "upstream_protocol"),
    "deflated": (lambda: of(DEFLATE, zlib.compress(TEXT % (b"0" * 64 * MiB))), "upstream_protocol"),
    "deflated without a wrapper": (lambda: of(DEFLATE, raw_deflate(TEXT % (b"0" * 64 * MiB))), "upstream_protocol"),
    "many events": (lambda: of(GZIP, gzip.compress(TEXT % (b"0" * 1000) * 32_000)), "upstream_protocol"),
    "comments": (lambda: of(GZIP, gzip.compress(b": 0\n" * 8_000_000)), "upstream_timeout"),
    "blank lines": (lambda: of(GZIP, gzip.compress(b"\n" * 64 * MiB)), "upstream_timeout"),
    "a whole body": (lambda: of(WHOLE, zeros(64 * MiB)), "upstream_protocol"),
    "twice": (lambda: of(SSE | {"content-encoding": "gzip, gzip"}, gzip.compress(zeros(MiB))), "upstream_protocol"),
    "brotli": (lambda: of(SSE | {"content-encoding": "br"}, b"\x5b\xff\xff\xff"), "upstream_protocol"),
    "zstandard": (lambda: of(SSE | {"content-encoding": "zstd"}, b"\x28\xb5\x2f\xfd"), "upstream_protocol"),
    "members of nothing": (lambda: of(GZIP, forever=gzip.compress(b"") * 700), "upstream_timeout"),
    "blocks of nothing": (lambda: of(DEFLATE, b"\x78\x9c", forever=EMPTY_BLOCKS), "upstream_timeout"),
    "an endless name": (lambda: of(GZIP, b"\x1f\x8b\x08\x08" + b"\0" * 6, forever=SOME), "upstream_timeout"),
    "padding": (lambda: of(GZIP, gzip.compress(b""), forever=b"\0" * 16_384), "upstream_timeout"),
    "a line": (lambda: of(SSE, b"data: ", forever=SOME), "upstream_protocol"),
    "lines of nothing": (lambda: of(SSE, forever=b"data:\n" * 2700), "upstream_protocol"),
    "a comment": (lambda: of(SSE, b":", forever=SOME), "upstream_protocol"),
    "a page": (lambda: of({"content-type": "text/html"}, forever=SOME), "upstream_protocol"),
    "roles": (lambda: of(SSE, forever=ROLE * 200), "upstream_timeout"),
    "a refusal": (lambda: refusal(400, zeros(64 * MiB), {"content-encoding": "gzip"}), "upstream_rejected"),
    "an endless refusal": (lambda: of({}, REFUSAL, forever=SOME, code=400), "upstream_rejected"),
    "an endless failure": (lambda: of({}, forever=SOME, code=500), "upstream_unavailable"),
}


@pytest.mark.parametrize("name", BOMBS)
async def test_a_bomb_goes_off_in_nobodys_hands(upstream: Upstream, relay: Operated, name: str) -> None:
    made, code = BOMBS[name]
    upstream.script(made())
    relay.forget_peak()
    before = relay.memory_bytes()
    async with pulse(relay.port) as felt:
        _, body = await said(relay.port, **({"timeouts": MOMENT} if code == "upstream_timeout" else {}))
    await upstream.wait_for(lambda seen: seen.active == 0)
    assert f'"code":"{code}"'.encode() in body
    assert relay.memory_bytes() - before < ROOM_BYTES
    assert felt.worst_s < HELD_S


WIRES: Final[dict[str, tuple[bytes, bytes]]] = {
    "headers": (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n" * 2500),
    "a header": (b"HTTP/1.1 200 OK\r\nx: ", SOME),
    "a reason": (b"HTTP/1.1 200 ", SOME),
    "promises": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 600),
    "an extension": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;x=", SOME),
    "a trailer": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: ", SOME),
    "trailers": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", b"x: y\r\n" * 2500),
    "chunks of a byte": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\n:\r\n" * 2500),
    "noise": (b"\0\xff\xfe", b"\0" * 16_384),
}


@pytest.mark.parametrize("name", WIRES)
async def test_an_answer_whose_framing_has_no_end_ends(upstream: Upstream, relay: Operated, name: str) -> None:
    first, forever = WIRES[name]
    upstream.script((send(first), repeat(send(forever))))
    relay.forget_peak()
    before = relay.memory_bytes()
    async with pulse(relay.port) as felt:
        status, body = await said(relay.port, timeouts=MOMENT)
    await upstream.wait_for(lambda seen: seen.active == 0)
    assert (status in (502, 504), json.loads(body)["error"]["retryable"]) == (True, True)
    assert relay.memory_bytes() - before < ROOM_BYTES
    assert felt.worst_s < HELD_S


# Events that are slow to read.


def many(template: bytes, item: bytes, between: bytes = b",") -> bytes:
    return template.replace(b"%b", between.join([item] * ((EVENT_BYTES - 1000) // (len(item) + len(between)))))


DELTA: Final = b'{"choices":[{"index":0,"delta":{%b}}]}'
SAYS: Final = DELTA.replace(b"%b", b'"content":"%b"')
SLOW: Final[dict[str, Callable[[], bytes]]] = {
    "choices": lambda: many(b'{"choices":[%b]}', b"{}"),
    "parts with text": lambda: many(
        DELTA.replace(b"%b", b'"tool_calls":[%b]'), b'{"index":0,"function":{"arguments":"a"}}'
    ),
    "parts of no strict JSON": lambda: many(b'{"a":NaN,' + DELTA.replace(b"%b", b'"tool_calls":[%b]')[1:], b"{}"),
    "parts of a text": lambda: many(DELTA.replace(b"%b", b'"content":[%b]'), b'{"type":"text","text":"a"}'),
    "sounds": lambda: many(DELTA.replace(b"%b", b'"audio":[%b]'), b"[]"),
    "bytes that are no UTF-8": lambda: many(SAYS, b"\xff", b""),
    "long numbers": lambda: many(b'{"a":NaN,"b":[%b]}', b"9" * 4000),
    "brackets": lambda: b'{"a":' + b"[" * (EVENT_BYTES - 1000),
    "words of an error": lambda: many(b'{"error":{"message":"%b"}}', b"a.b-c:", b""),
}


@pytest.mark.parametrize("path", ["/chat/stream", "/v1/chat/completions"])
async def test_an_event_made_to_be_slow_holds_nobody_up(upstream: Upstream, relay: Operated, path: str) -> None:
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    body |= {"stream": True} if path.startswith("/v1") else {}
    for name, slow in SLOW.items():
        upstream.script((head(), send(b"data: " + slow() + b"\n\n"), chunk("and more"), finish(), done()))
        async with pulse(relay.port) as felt, asyncio.timeout(30), connect(relay.port) as connection:
            response = await connection.request("POST", path, body)
            await response.read()
        assert response.status in (200, 502), name
        assert felt.worst_s < HELD_S, name


WORDS: Final = [b"a-", b"1:", b"_", b"a.", b"@", b"*", b"bearer ", b"aaaa:", b"%20", b"0123456789abcdef", b"::", b"sk-"]


@pytest.mark.parametrize("unit", WORDS, ids=repr)
def test_no_words_are_slow_to_clean(unit: bytes) -> None:
    """Of an error's words as many as are read at all, of the kind that patterns look at again and again."""
    body = json.dumps({"error": {"message": (unit * 40_000).decode()[:60_000] + "!"}}).encode()
    begun = time.process_time()
    problem = from_status(400, body, None).problem
    assert time.process_time() - begun < 1
    assert len(problem.message) <= 300


# Lists of models, and of keys.

LISTS: Final[dict[str, Callable[[], Answer]]] = {
    "a bomb": lambda: refusal(200, gzip.compress(b'{"data":[' + b" " * 64 * MiB), {"content-encoding": "gzip"}),
    "without an end": lambda: (head(200, {}), send(b'{"data":['), repeat(send(b'{"id":"a"},' * 1000))),
    "of too many": lambda: refusal(200, b'{"data":[' + b'{"id":"a"},' * 500_000 + b"0]}"),
    "nested": lambda: refusal(200, b"[" * MiB),
    "a number": lambda: refusal(200, b'{"data":[' + b"9" * 4 * MiB + b"]}"),
}


@pytest.mark.parametrize("name", LISTS)
async def test_a_list_of_models_that_is_none_is_refused_in_a_moment(
    upstream: Upstream, relay: Operated, name: str
) -> None:
    upstream.script(LISTS[name]())
    relay.forget_peak()
    before = relay.memory_bytes()
    async with pulse(relay.port) as felt:
        response, body = await fetch(relay.port, "GET", "/v1/models")
    assert (response.status, json.loads(body)["error"]["code"]) == (502, "upstream_protocol")
    assert relay.memory_bytes() - before < ROOM_BYTES
    assert felt.worst_s < HELD_S


DOCUMENTS: Final = {
    "beginnings": b"-----BEGIN PUBLIC KEY-----\n" * 9000,
    "beginnings of other kinds": b"".join(b"-----BEGIN A%d-----\n" % at for at in range(9000)),
    "brackets": b'{"keys":' + b"[" * 250_000,
    "a deep key": b'{"keys":[{"kty":' + b'{"a":' * 50_000,
    "empty keys": b'{"keys":[' + b"{}," * 80_000 + b"{}]}",
    "a long number": b'{"keys":[{"kty":"RSA","n":"AQAB","e":' + b"9" * 250_000 + b"}]}",
    "large exponents": json.dumps({"keys": [{"kty": "RSA", "n": "_" * 2730, "e": "_" * 2730}] * 40}).encode(),
    "points that are on no curve": json.dumps(
        {"keys": [{"kty": "EC", "crv": "P-521", "x": "_" * 88, "y": "_" * 88}] * 99}
    ).encode(),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_document_of_keys_is_slow_to_read(name: str) -> None:
    assert len(DOCUMENTS[name]) <= 256 * 1024
    begun = time.process_time()
    with pytest.raises(Unreadable):
        read(DOCUMENTS[name])
    assert time.process_time() - begun < 1


# What of an upstream's answer reaches a client.

FORGED: Final = {
    "set-cookie": "relay_subject=" + "e" * 32,
    "access-control-allow-origin": "*",
    "access-control-allow-credentials": "true",
    "x-stream-id": "s_" + "e" * 32,
    "x-request-id": "r_forged",
    "location": "https://evil.example/",
    "content-security-policy": "default-src *",
    "cache-control": "public, max-age=9999",
    "clear-site-data": '"*"',
    "refresh": "0; url=https://evil.example/",
    "x-forged": "1",
}


@pytest.mark.parametrize("status", [200, 400, 429, 500])
async def test_no_header_of_upstreams_is_passed_on(status: int) -> None:
    async with Upstream() as upstream, running(upstream.base_url, attempts=1, log_level="error") as relay:
        upstream.script((head(status, SSE | FORGED), chunk("ok"), finish(), done()))
        async with connect(relay.port) as connection:
            headers = {"origin": "https://evil.example"}
            response = await connection.request("POST", "/chat/stream", chat(), headers)
            await response.read()
        told = "\n".join(f"{name}: {value}" for name, value in response.headers.items())
    assert not [f"{name}: {value}" for name, value in FORGED.items() if f"{name}: {value}" in told]
    assert "evil" not in told


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    """It would carry the prompt, and the key, to wherever upstream says: to what listens on loopback, for one."""
    async with Upstream() as upstream, Upstream() as elsewhere, running(upstream.base_url, attempts=1) as relay:
        upstream.script((head(status, {"location": f"{elsewhere.base_url}/chat/completions"}, close=True), close()))
        _, body = await said(relay.port)
        assert json.loads(body)["error"]["code"] == "upstream_unavailable"
        assert (len(upstream.requests), elsewhere.requests, len(elsewhere.connections)) == (1, [], 0)


INJECTED: Final = '\n\ndata: [DONE]\n\nevent: error\ndata: {"type":"error"}\r\rid: forged\u2028\0'
DIALECTS: Final[dict[str, dict[str, Any]]] = {
    "/chat/stream": chat(),
    "/v1/chat/completions": {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True},
    "/api/chat": {"id": "c", "model": "m", "messages": [{"role": "user", "parts": [{"type": "text", "text": "hi"}]}]},
    "/ag-ui": {
        "threadId": "t",
        "runId": "r",
        "messages": [{"id": "1", "role": "user", "content": "hi"}],
        "forwardedProps": {"model": "m"},
    },
}


def saying(**delta: object) -> Step:
    return event({"id": INJECTED, "model": INJECTED, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})


@pytest.mark.parametrize("path", DIALECTS)
async def test_no_event_can_be_put_into_an_answer(path: str) -> None:
    function = {"name": INJECTED, "arguments": INJECTED}
    steps = [
        saying(content=INJECTED, reasoning_content=INJECTED, refusal=INJECTED),
        saying(tool_calls=[{"index": 0, "id": INJECTED, "type": "function", "function": function}]),
        event({"choices": [{"index": 0, "delta": {}, "finish_reason": INJECTED}]}),
    ]
    async with Upstream() as upstream, running(upstream.base_url, log_level="error") as relay:
        upstream.script((head(), *steps, done()))
        async with connect(relay.port) as connection:
            response = await connection.request("POST", path, DIALECTS[path])
            body = await response.read()
    lines = body.split(b"\n")
    assert not [line for line in lines if line and not line.startswith((b"data: ", b": "))]
    assert lines.count(b"data: [DONE]") == (0 if path == "/ag-ui" else 1)
    assert not set(body) & {0, 13}
    events = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
    assert not [each for each in events if each.get("type") == "error"]


async def test_after_all_that_an_ordinary_answer_comes_through(upstream: Upstream, relay: Operated) -> None:
    upstream.script(answer("Hel", "lo"))
    status, body = await said(relay.port)
    assert (status, body.count(b"[DONE]")) == (200, 1)
