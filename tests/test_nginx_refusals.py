"""What nginx itself refuses, told as the relay tells it: status, code, whether and when to come back."""

import contextlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from app.errors import CODES, RelayError
from app.settings import MiB
from tests.nginx import SHIPPED, shipped, values
from tests.nginx_process import Nginx
from tests.relay import SSE, Relay, Response, chat, connect, event_of, fetch, running
from tests.upstream import Upstream, answer, hang, silent

DEADLINE_S: Final = 5.0
MOST_REQUESTS: Final = 3000
BURST: Final = 201
ID: Final = {"x-request-id": "r-1"}


@pytest.fixture(scope="module")
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
async def relay(upstream: Upstream) -> AsyncIterator[Relay]:
    async with running(upstream.base_url, log_level="error") as relay:
        yield relay


@pytest.fixture
async def nginx(relay: Relay) -> AsyncIterator[Nginx]:
    async with shipped([relay.port]) as nginx:
        yield nginx


def refused(response: Response, body: bytes, code: str, status: int) -> None:
    """The contract's error object, as this code has it wherever it is raised."""
    assert (response.status, response.headers["content-type"]) == (status, "application/json")
    error = json.loads(body)["error"]
    assert error.keys() == RelayError(code, "").problem.as_json().keys()
    means = CODES[code]
    assert (error["code"], error["type"], error["retryable"]) == (code, means.type, means.retryable)
    assert error["request_id"] == response.headers["x-request-id"]
    assert ("retry-after" in response.headers) == means.retryable
    assert response.headers.get("x-should-retry") == (None if means.retryable else "false")
    assert response.headers["cache-control"] == "no-store"


def asking(size: int) -> bytes:
    """A chat of so many bytes."""
    body = json.dumps(chat("")).encode()
    return body.replace(b'""', b'"%s"' % (b"x" * (size - len(body))), 1)


async def test_a_body_of_ten_mebibytes_passes_and_what_is_larger_is_refused(upstream: Upstream, nginx: Nginx) -> None:
    upstream.script(answer("Hello"))
    async with connect(nginx.port) as client:
        passed = await client.request("POST", "/chat/stream", asking(10 * MiB))
        assert passed.status == 200
        assert [event_of(block)["type"] async for block in passed.blocks()][-1] == "[DONE]"
        by_the_relay = await client.request("POST", "/chat/stream", asking(10 * MiB + 1))
        error = (await by_the_relay.json())["error"]
        assert (by_the_relay.status, error["code"], "10485760" in error["message"]) == (413, "invalid_request", True)
    response, body = await fetch(nginx.port, "POST", "/chat/stream", asking(11 * MiB + 1), ID)
    refused(response, body, "invalid_request", 413)
    assert response.headers["x-request-id"] == "r-1"


async def test_too_many_open_streams_of_an_address(upstream: Upstream, nginx: Nginx) -> None:
    upstream.script((hang(),))
    [most] = [int(value.split()[1]) for value in values("limit_conn")]
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(nginx.port)) for _ in range(most)]
        for client in clients:
            client.write("POST", "/chat/stream", chat())
        await upstream.wait_for(lambda u: u.active == most)
        response, body = await fetch(nginx.port, "POST", "/chat/stream", chat())
        refused(response, body, "rate_limited", 429)
        await stopping_gets_through(nginx)
        clients[0].close()
        await upstream.wait_for(lambda u: u.active == most - 1)
        upstream.script(answer("Hello"))
        response, _ = await fetch(nginx.port, "POST", "/chat/stream", chat())
        assert response.status == 200
        limited = [line["limited"] for line in await nginx.log(1)]
        assert limited[0] == "connections"


async def stopping_gets_through(nginx: Nginx) -> None:
    """As far as the relay, which knows no such stream."""
    unknown = f"/chat/stream/s_{'0' * 32}"
    for method, path in (("DELETE", unknown), ("POST", f"{unknown}/cancel")):
        response, body = await fetch(nginx.port, method, path)
        assert (response.status, json.loads(body)["error"]["code"]) == (404, "not_found")


async def test_too_many_requests_of_an_address(nginx: Nginx) -> None:
    answers = [answered async for answered in flood(nginx.port)]
    assert [response.status for response, _ in answers[:BURST]] == [200] * BURST
    refused(*answers[-1], "rate_limited", 429)
    page, _ = await fetch(nginx.port, "GET", "/static/page.js")
    assert page.status == 200  # the page's files are not counted


async def flood(port: int) -> AsyncIterator[tuple[Response, bytes]]:
    """Requests on twenty connections, till one is refused."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(port)) for _ in range(20)]
        for _ in range(MOST_REQUESTS // len(clients)):
            for client in clients:
                client.write("GET", "/healthz")
            for client in clients:
                response = await client.head()
                yield response, await response.read()
                if response.status != 200:
                    return


async def test_no_relay_answers(upstream: Upstream) -> None:
    faster = {r"proxy_read_timeout 60s": "proxy_read_timeout 200ms"}
    async with Upstream() as stuck:
        stuck.script(silent())
        port = int(stuck.base_url.split(":")[2].split("/")[0])
        async with shipped([port], changes=faster) as nginx:
            response, body = await fetch(nginx.port, "POST", "/chat/stream", chat(), ID)
            refused(response, body, "upstream_timeout", 504)
            assert stuck.opened == 1
    async with shipped([port]) as nginx:  # where nobody listens any more
        response, body = await fetch(nginx.port, "POST", "/v1/chat/completions", {})
        refused(response, body, "upstream_unavailable", 502)
        await told_as_events(nginx)


async def told_as_events(nginx: Nginx) -> None:
    async with connect(nginx.port) as client:
        response = await client.request("GET", "/chat/stream?message=hi", None, SSE)
        told = await response.read()
    assert (response.status, response.headers["content-type"]) == (502, "text/event-stream; charset=utf-8")
    error, end = [event_of(block) for block in told.decode().split("\n\n")[:-1]]
    assert (error["type"], error["error"]["code"], end["type"]) == ("error", "upstream_unavailable", "[DONE]")
    assert int(response.headers["retry-after"]) > 0


@pytest.mark.parametrize(
    ("method", "path", "headers", "code", "status"),
    [
        ("TRACE", "/", {}, "invalid_request", 405),
        ("GET", "/" + "x" * 17_000, {}, "invalid_request", 414),
        ("GET", "/", {"cookie": "x" * 17_000}, "invalid_request", 400),
        ("GET", "/", {"host": ""}, "invalid_request", 400),
        ("GET", "/.nginx/problem.json", {}, "not_found", 404),
    ],
)
async def test_what_is_no_request_for_a_relay(
    nginx: Nginx, method: str, path: str, headers: dict[str, str], code: str, status: int
) -> None:
    response, body = await fetch(nginx.port, method, path, None, headers)
    refused(response, body, code, status)


async def test_the_relays_own_refusals_pass_as_they_are(upstream: Upstream, nginx: Nginx) -> None:
    response, body = await fetch(nginx.port, "POST", "/chat/stream", {"messag": "hi"}, ID)
    error = json.loads(body)["error"]
    assert (response.status, error["param"], error["request_id"]) == (422, "messag", "r-1")
    response, body = await fetch(nginx.port, "GET", "/metrics")
    assert (response.status, json.loads(body)["error"]["code"]) == (404, "not_found")


def test_what_nginx_says_agrees_with_the_codes() -> None:
    """Of each status that has words of its own, what `refused` cannot bring about among them."""
    text = (SHIPPED / "relay.conf").read_text()
    told: dict[str, dict[str, Any]] = {}
    for status, fields in re.findall(r"(?m)^    (\d{3}|default) '(\"\w+\":.*)';$", text):
        told.setdefault(status, {}).update(json.loads(f"{{{fields}}}"))
    default = told.pop("default")
    assert set(told) == {"404", "413", "429", "500", "502", "503", "504"}
    for status, fields in told.items():
        means = CODES[(default | fields)["code"]]
        assert (default | fields)["type"] == means.type
        assert (default | fields)["retryable"] == means.retryable
        assert int(status) in (means.status, 413)
