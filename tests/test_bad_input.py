"""Whatever a client sends: a 4xx in the contract's shape that names what is wrong, and nothing begun upstream."""

import re
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

import pytest

from tests.relay import SSE, Connection, Relay, Response, chat, connect, event_of, running, subject
from tests.upstream import Upstream, answer

FIELDS = {"code", "message", "type", "param", "phase", "retryable", "partial", "upstream_status", "request_id"}
SHORT_SECONDS = 0.2
BODY_BYTES = 16 * 1024
STREAM_ID = "s_" + "0" * 32
HEAD = b"POST /chat/stream HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


class Served(NamedTuple):
    upstream: Upstream
    relay: Relay


@pytest.fixture(scope="module")
async def everything() -> AsyncIterator[Served]:
    limits = {"max_body_bytes": BODY_BYTES, "max_header_bytes": 8192, "body_timeout_seconds": SHORT_SECONDS}
    async with Upstream() as upstream, running(upstream.base_url, **limits) as relay:
        upstream.script(answer("never asked for"))
        yield Served(upstream, relay)


@pytest.fixture
def served(everything: Served) -> Iterator[Served]:
    """A relay with an upstream that would answer anything, and proof that it was not asked."""
    yield everything
    assert (everything.upstream.requests, everything.upstream.connections) == ([], set())
    assert everything.relay.streams.running == 0


async def problem(response: Response) -> Any:
    """The error object, when all is right about its outside."""
    assert response.headers["content-type"] == "application/json"
    body = await response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == FIELDS
    assert [body["error"][name] for name in ("retryable", "partial", "upstream_status")] == [False, False, None]
    return body["error"]


async def refused(connection: Connection, response: Response, *, code: str = "invalid_request") -> Any:
    """The error object of a refusal after which the connection serves on."""
    error = await problem(response)
    assert (error["code"], error["phase"]) == (code, "admission")
    assert error["request_id"] == response.headers["x-request-id"]
    assert response.headers["x-should-retry"] == "false"
    assert (await (await connection.request("GET", "/healthz")).json()) == {"status": "ok"}
    return error


BODIES: list[tuple[object, int, str, str]] = [
    (b"", 400, "body", "is not JSON"),
    (b"{", 400, "body", "is not JSON"),
    (b"message=hi", 400, "body", "is not JSON"),
    (b'{"message":"\xff"}', 400, "body", "is not JSON"),
    (b'{"message":"\\ud800"}', 400, "body", "is not JSON"),
    (b"[" * 1000, 400, "body", "recursion"),
    (b'{"message":"a","tools":' + b'[{"a":' * 500, 400, "body", "recursion"),
    (b"[]", 422, "body", "object"),
    (b"null", 422, "body", "object"),
    ({}, 422, "message", "either `message` or `messages`"),
    (chat(messages=[{"role": "user", "content": "hi"}]), 422, "message", "either"),
    ({"message": "hi"}, 422, "model", "no default model"),
    (chat(""), 422, "message", "at least 1"),
    ({"message": 5, "model": "m"}, 422, "message", "string"),
    ({"messages": [], "model": "m"}, 422, "messages", "at least 1"),
    ({"messages": "hi", "model": "m"}, 422, "messages", "array"),
    ({"messages": [{"content": "hi"}], "model": "m"}, 422, "messages.0.role", "required"),
    ({"messages": [{"role": "wizard"}], "model": "m"}, 422, "messages.0.role", "'assistant'"),
    ({"messages": [{"role": "user", "content": 5}], "model": "m"}, 422, "messages.0.content", "string"),
    ({"messages": [{"role": "user", "content": [5]}], "model": "m"}, 422, "messages.0.content.0", "object"),
    (chat(model=""), 422, "model", "at least 1"),
    (chat(model="m" * 257), 422, "model", "at most 256"),
    (chat(mesages=[]), 422, "mesages", "did you mean `messages`?"),
    (chat(temprature=1), 422, "temprature", "did you mean `temperature`?"),
    (chat(zzzzzz=1), 422, "zzzzzz", "unknown field `zzzzzz`"),
    (chat() | {"x" * 2000: 1}, 422, "x" * 128, "unknown field"),
    (chat() | {f"x{n}": n for n in range(300)}, 422, "x0", "unknown field"),
    (chat() | {f"x{n}": n for n in range(1001)}, 422, "body", "1001 faults"),
    ({"messages": [5] * 5000, "model": "m"}, 422, "messages.0", "object"),
    (chat(stop=[5] * 5000), 422, "stop.0", "string"),
    (chat(stream=True), 422, "stream", "the relay's to set"),
    (chat(stream_options={}), 422, "stream_options", "the relay's to set"),
    (chat(n=2), 422, "n", "1"),
    (chat(temperature="hot"), 422, "temperature", "number"),
    (chat(max_tokens=1.5), 422, "max_tokens", "integer"),
    (chat(max_tokens=0), 422, "max_tokens", "greater"),
    (chat(stop=5), 422, "stop", "string"),
    (chat(tools={}), 422, "tools", "array"),
    (chat(tool_choice=5), 422, "tool_choice", "string"),
    (chat(logit_bias={"5": "x"}), 422, "logit_bias.5", "number"),
    (chat(metadata={"a": 1}), 422, "metadata.a", "string"),
    (chat(temperature=float("nan")), 422, "temperature", "finite"),
    (chat(temperature=float("inf")), 422, "temperature", "finite"),
    (chat(response_format={"a": float("nan")}), 422, "response_format.a", "not JSON"),
    (chat(tools=[{"a": [float("inf")]}]), 422, "tools.0.a", "not JSON"),
    (b'{"message":"a","model":"m","tool_choice":{"a":1e999}}', 422, "tool_choice.a", "not JSON"),
    (b'{"messages":[{"role":"user","name":1e999}],"model":"m"}', 422, "messages.0.name", "not JSON"),
    (b'{"message":"a","model":"m","temperature":1e999}', 422, "temperature", "finite"),
    (b'{"message":"a","model":"m","max_tokens":-' + b"9" * 4000 + b"}", 422, "max_tokens", "greater"),
    (chat(timeouts=5), 422, "timeouts", "object"),
    (chat(timeouts={"idel": 1}), 422, "timeouts.idel", "did you mean `idle`?"),
    (chat(timeouts={"idle": 0}), 422, "timeouts.idle", "greater than 0"),
    (chat(timeouts={"connect": 30.5}), 422, "timeouts.connect", "at most 30 s"),
    (chat(timeouts={"first_token": 301}), 422, "timeouts.first_token", "at most 300 s"),
    (chat(timeouts={"idle": 301}), 422, "timeouts.idle", "at most 300 s"),
    (chat(timeouts={"total": 1e9}), 422, "timeouts.total", "at most 3600 s"),
    (chat(on_disconnect="stay"), 422, "on_disconnect", "'cancel', 'wait' or 'continue'"),
]


@pytest.mark.parametrize(("body", "status", "param", "words"), BODIES, ids=lambda value: repr(value)[:40])
async def test_a_bad_body_is_refused_by_name(served: Served, body: object, status: int, param: str, words: str) -> None:
    async with connect(served.relay.port) as connection:
        response = await connection.request("POST", "/chat/stream", body)
        error = await refused(connection, response)
    assert (response.status, error["param"]) == (status, param)
    assert words in error["message"]


HEADERS: list[tuple[dict[str, str], int, str]] = [
    ({"content-type": "text/plain"}, 415, "Content-Type"),
    ({"content-type": "application/x-www-form-urlencoded"}, 415, "Content-Type"),
    ({"content-type": "multipart/form-data; boundary=x"}, 415, "Content-Type"),
    ({"content-type": "application/jsonp"}, 415, "Content-Type"),
    ({"content-type": ""}, 415, "Content-Type"),
    ({"last-event-id": "garbage"}, 400, "Last-Event-ID"),
    ({"last-event-id": f"{STREAM_ID}.-1"}, 400, "Last-Event-ID"),
    ({"last-event-id": f"{STREAM_ID}.01"}, 400, "Last-Event-ID"),
    ({"last-event-id": f"{STREAM_ID}.99999999999"}, 400, "Last-Event-ID"),
    ({"last-event-id": f"{STREAM_ID}.1, {STREAM_ID}.2"}, 400, "Last-Event-ID"),
    ({"last-event-id": "\u0661\xe9"}, 400, "Last-Event-ID"),
    ({"last-event-id": "x" * 4000}, 400, "Last-Event-ID"),
    (subject("a") | {"idempotency-key": ""}, 400, "Idempotency-Key"),
    (subject("a") | {"idempotency-key": "two words"}, 400, "Idempotency-Key"),
    (subject("a") | {"idempotency-key": "k" * 256}, 400, "Idempotency-Key"),
    (subject("a") | {"idempotency-key": "\xe9"}, 400, "Idempotency-Key"),
    ({"idempotency-key": "of-nobody"}, 400, "Idempotency-Key"),
    ({"x-on-disconnect": "stay"}, 422, "X-On-Disconnect"),
]


@pytest.mark.parametrize(("headers", "status", "param"), HEADERS, ids=lambda value: repr(value)[:60])
async def test_a_bad_header_is_refused_by_name(
    served: Served, headers: dict[str, str], status: int, param: str
) -> None:
    async with connect(served.relay.port) as connection:
        response = await connection.request("POST", "/chat/stream", chat(), headers)
        error = await refused(connection, response)
    assert (response.status, error["param"]) == (status, param)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("", "message"),
        ("message=", "message"),
        ("message=hi", "model"),
        ("message=hi&modle=m", "modle"),
        ("message=hi&model=m&temperature=hot", "temperature"),
        ("message=hi&model=m&temperature=nan", "temperature"),
        ("message=hi&model=m&max_tokens=1.5", "max_tokens"),
        (f"message=hi&model=m&max_tokens={'9' * 5000}", "max_tokens"),
        ("message=hi&model=m&on_disconnect=stay", "on_disconnect"),
        ("x" * 1000 + "=1", "x" * 64),
    ],
    ids=lambda value: value[:40],
)
async def test_a_bad_query_is_refused_by_name(served: Served, query: str, param: str) -> None:
    async with connect(served.relay.port) as connection:
        response = await connection.request("GET", f"/chat/stream?{query}", headers={"sec-fetch-site": "same-origin"})
        error = await refused(connection, response)
    assert (response.status, error["param"]) == (422, param)


@pytest.mark.parametrize("after", ["", "x", "1.5", "-2", "01", "99999999999", "%00", "%EF%BC%91"])
async def test_a_bad_cursor_is_refused_by_name(served: Served, after: str) -> None:
    async with connect(served.relay.port) as connection:
        response = await connection.request("GET", f"/chat/stream/{STREAM_ID}?after={after}")
        error = await refused(connection, response)
    assert (response.status, error["param"]) == (400, "after")


async def test_who_reads_events_is_refused_in_an_event(served: Served) -> None:
    async with connect(served.relay.port) as connection:
        response = await connection.request("POST", "/chat/stream", chat(n=2), SSE)
        assert (response.status, response.headers["content-type"]) == (422, "text/event-stream; charset=utf-8")
        body = (await response.read()).decode()
    error, done, rest = body.split("\n\n")
    assert (event_of(error)["error"].keys(), event_of(error)["error"]["param"]) == (FIELDS, "n")
    assert (done, rest) == ("data: [DONE]", "")


DECLARED = b"content-length: %d\r\n\r\n" % (BODY_BYTES + 1)
CHUNKED = b"transfer-encoding: chunked\r\n\r\n%x\r\n%b" % (BODY_BYTES + 1, b" " * (BODY_BYTES + 1))


@pytest.mark.parametrize("framed", [DECLARED, CHUNKED], ids=["declared", "chunked"])
async def test_a_body_over_the_cap_is_413(served: Served, framed: bytes) -> None:
    async with connect(served.relay.port) as connection:
        connection.writer.write(HEAD + framed)
        response = await connection.head()
        error = await problem(response)
        assert await connection.rest() == b""
    assert (response.status, error["param"]) == (413, "body")
    assert f"at most {BODY_BYTES} bytes" in error["message"]


async def test_a_body_at_the_cap_is_read(served: Served) -> None:
    async with connect(served.relay.port) as connection:
        response = await connection.request("POST", "/chat/stream", b" " * BODY_BYTES)
        assert (await refused(connection, response))["message"].startswith("the body is not JSON")


async def test_a_slow_body_is_given_up(served: Served) -> None:
    async with connect(served.relay.port) as connection:
        connection.writer.write(HEAD + b'content-length: 9\r\n\r\n{"mess')
        response = await connection.head()
        error = await problem(response)
        assert (response.status, error["param"]) == (400, "body")
        assert "within 0.2 s" in error["message"]
        assert await connection.rest() == b""


PATHS = [
    ("/chat/stream", "GET, POST"),
    (f"/chat/stream/{STREAM_ID}", "DELETE, GET"),
    (f"/chat/stream/{STREAM_ID}/result", "GET"),
    (f"/chat/stream/{STREAM_ID}/cancel", "POST"),
    ("/chat/events.schema.json", "GET"),
    ("/v1/chat/completions", "POST"),
    ("/api/chat", "POST"),
    ("/api/chat/c/stream", "DELETE, GET"),
    ("/ag-ui", "POST"),
    ("/v1/models", "GET"),
    ("/v1/models/m", "GET"),
    ("/healthz", "GET"),
    ("/readyz", "GET"),
    ("/openapi.json", "GET, HEAD"),
]


@pytest.mark.parametrize(("path", "allowed"), PATHS)
async def test_a_wrong_method_is_told_the_right_ones(served: Served, path: str, allowed: str) -> None:
    async with connect(served.relay.port) as connection:
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} - {*allowed.split(", ")}:
            response = await connection.request(method, path)
            error = await refused(connection, response)
            assert (response.status, response.headers["allow"]) == (405, allowed)
            assert allowed in error["message"]


@pytest.mark.parametrize("path", ["/chat/stream?message=hi&model=m", f"/chat/stream/{STREAM_ID}", "/nope"])
async def test_head_starts_nothing_and_has_no_body(served: Served, path: str) -> None:
    async with connect(served.relay.port) as connection:
        response = await connection.request("HEAD", path)
        assert response.status in (404, 405)
        assert (await connection.request("GET", "/healthz")).status == 200


@pytest.mark.parametrize(
    "path",
    ["/nope", "/chat", "/chat/stream/", "/CHAT/STREAM", "/chat/stream//result", "/%2e%2e/etc/passwd", "/chat/a/b"],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
async def test_an_unknown_path_is_404(served: Served, method: str, path: str) -> None:
    async with connect(served.relay.port) as connection:
        response = await connection.request(method, path)
        error = await refused(connection, response, code="not_found")
    assert (response.status, error["message"]) == (404, "no such path")


@pytest.mark.parametrize(
    "stream_id", [STREAM_ID, "x", "%00", "%0d%0aset-cookie:a=b", "s_" + "9" * 3000, "%ff", "..%2f.."]
)
async def test_an_unknown_stream_is_404(served: Served, stream_id: str) -> None:
    asked = [("GET", ""), ("GET", "/result"), ("DELETE", ""), ("POST", "/cancel")]
    async with connect(served.relay.port) as connection:
        for method, rest in asked:
            response = await connection.request(method, f"/chat/stream/{stream_id}{rest}")
            await refused(connection, response, code="not_found")
            assert response.status == 404


NOT_HTTP = {
    "words": b"hello\r\n\r\n",
    "TLS": bytes.fromhex("16030100a5010000a103"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "unknown method": b"BREW /chat/stream HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "path of bytes": b"GET /\xff HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "space in a name": HEAD + b"x y: z\r\n\r\n",
    "NUL in a value": HEAD + b"x-request-id: a\0b\r\n\r\n",
    "CR in a value": HEAD + b"x-request-id: a\rset-cookie: b\r\n\r\n",
    "folded value": HEAD + b"x-request-id: a\r\n b\r\n\r\n",
    "negative length": HEAD + b"content-length: -1\r\n\r\n",
    "length beyond numbers": HEAD + b"content-length: 99999999999999999999999\r\n\r\n",
    "two lengths": HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\n",
    "length and chunks": HEAD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks that are none": HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    "long value": HEAD + b"x: " + b"y" * 9000 + b"\r\n\r\n",
    "long path": b"GET /" + b"y" * 9000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "many names": HEAD + b"x: y\r\n" * 2000 + b"\r\n",
    "upgrade with a body": HEAD + b"connection: upgrade\r\nupgrade: h2c\r\ncontent-length: 2\r\n\r\n{}",
}


@pytest.mark.parametrize("data", NOT_HTTP.values(), ids=NOT_HTTP.keys())
async def test_what_is_no_http_is_told_so_and_ended(served: Served, data: bytes) -> None:
    async with connect(served.relay.port) as connection:
        connection.writer.write(data)
        response = await connection.head()
        error = await problem(response)
        assert await connection.rest() == b""
    assert (response.status, response.headers["connection"], error["code"]) == (400, "close", "invalid_request")


@pytest.mark.parametrize("given", ["a", "req-1.2:3_4", "A" * 128])
async def test_a_sane_request_id_is_kept(served: Served, given: str) -> None:
    async with connect(served.relay.port) as connection:
        response = await connection.request("POST", "/chat/stream", b"", {"x-request-id": given})
        assert (await refused(connection, response))["request_id"] == given


@pytest.mark.parametrize("given", ["", "A" * 129, "a b", "<script>", "\xe9", "{}", "a\tb", "a,b"])
async def test_an_insane_request_id_is_replaced(served: Served, given: str) -> None:
    async with connect(served.relay.port) as connection:
        response = await connection.request("POST", "/chat/stream", b"", {"x-request-id": given})
        assert re.fullmatch("r_[0-9a-f]{24}", (await refused(connection, response))["request_id"])
