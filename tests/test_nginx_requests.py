"""What a relay is told of a request that came through nginx, what nginx writes down of it, and what it keeps."""

import gzip
import re
from collections.abc import AsyncIterator
from typing import Final

import pytest

from tests.nginx import shipped
from tests.nginx_process import Nginx
from tests.relay import SSE, Relay, chat, connect, fetch, running
from tests.upstream import Upstream, answer, status

CLAIMS: Final = {
    "x-forwarded-for": "203.0.113.7",
    "x-forwarded-proto": "https",
    "x-forwarded-host": "elsewhere.example",
    "x-forwarded-port": "444",
    "x-real-ip": "203.0.113.7",
    "forwarded": "for=203.0.113.7",
    "x-request-id": "mine:1",
    "host": "localhost:8443",
}
PAGE: Final = "/static/relay-client.js"
NGINX_ROUNDS_SECONDS: Final = 0.002
"""It takes the two from clocks of its own, of whole milliseconds."""


@pytest.fixture
async def relayed() -> AsyncIterator[Upstream]:
    """In a relay's place: it keeps what it is asked."""
    async with Upstream() as upstream:
        upstream.script(status(200, b"{}"))
        yield upstream


@pytest.fixture(scope="module")
async def relay() -> AsyncIterator[Relay]:
    async with Upstream() as upstream, running(upstream.base_url, log_level="error") as relay:
        upstream.script(answer("Hello"))
        yield relay


@pytest.fixture
async def nginx(relay: Relay) -> AsyncIterator[Nginx]:
    async with shipped([relay.port]) as nginx:
        yield nginx


def port_of(upstream: Upstream) -> int:
    return int(upstream.base_url.split(":")[2].split("/")[0])


async def test_a_relay_is_told_what_nginx_knows_and_not_what_the_client_says(relayed: Upstream) -> None:
    async with shipped([port_of(relayed)]) as nginx:
        await fetch(nginx.port, "GET", "/chat/stream?message=hi", None, CLAIMS)
    [request] = relayed.requests
    assert {name: value for name, value in request.headers.items() if name in CLAIMS} == {
        "x-forwarded-for": "127.0.0.1",
        "x-forwarded-proto": "http",
        "x-request-id": "mine:1",
        "host": "localhost:8443",
    }
    assert request.path == "/chat/stream?message=hi"


async def test_a_balancer_that_is_trusted_has_a_say(relayed: Upstream) -> None:
    trusting = {r"# set_real_ip_from 10\.0\.0\.0/8;": "set_real_ip_from 127.0.0.1;"}
    async with shipped([port_of(relayed)], changes=trusting) as nginx:
        spoken = CLAIMS | {"x-forwarded-for": "198.51.100.1, 203.0.113.7"}
        await fetch(nginx.port, "GET", "/readyz", None, spoken)
    [request] = relayed.requests
    told = (request.headers["x-forwarded-for"], request.headers["x-forwarded-proto"])
    assert told == ("203.0.113.7", "https")


@pytest.mark.parametrize("asked", [None, "no id", "x" * 129, '"},{"'])
async def test_a_request_without_a_sane_id_is_given_one(nginx: Nginx, asked: str | None) -> None:
    headers = {} if asked is None else {"x-request-id": asked}
    response, _ = await fetch(nginx.port, "POST", "/chat/stream", chat(), headers)
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])
    [line] = await nginx.log(1)
    assert line["request_id"] == response.headers["x-request-id"]


async def test_connections_to_a_relay_are_kept() -> None:
    one = {r"worker_processes 2": "worker_processes 1"}  # each worker keeps its own
    async with Upstream() as upstream, running(upstream.base_url) as relay, shipped([relay.port], changes=one) as nginx:
        kept = set()
        for _ in range(5):
            await fetch(nginx.port, "GET", "/readyz")
            kept |= relay.server_state.connections
        assert len(kept) == 1


async def test_the_access_log_tells_who_and_how_long_and_nothing_that_is_secret(relay: Relay) -> None:
    secrets = {"authorization": "Bearer sk-SECRET", "cookie": "relay_session=SECRET", "referer": "http://x/?SECRET"}
    async with shipped([relay.port]) as nginx:
        path = "/chat/stream?message=SECRET&model=m"
        response, _ = await fetch(nginx.port, "GET", path, None, SSE | secrets | {"sec-fetch-site": "same-origin"})
        await fetch(nginx.port, "GET", "/healthz")
        await fetch(nginx.port, "POST", "/v1/chat/completions?key=SECRET", {"SECRET": "SECRET"}, secrets)
        stream, refused = await nginx.log(2)
    assert "SECRET" not in nginx.written
    assert (stream["method"], stream["path"], stream["status"]) == ("GET", "/chat/stream", 200)
    assert (stream["stream"], stream["client"]) == (response.headers["x-stream-id"], "127.0.0.1")
    assert stream["sent_bytes"] > 0
    assert stream["seconds"] + NGINX_ROUNDS_SECONDS >= float(stream["upstream_first_byte_s"]) >= 0
    assert (refused["path"], refused["status"]) == ("/v1/chat/completions", 422)


async def test_no_error_that_nginx_logs_quotes_a_question() -> None:
    """Its own words about a failed request quote the whole line."""
    async with Upstream() as gone:
        port = port_of(gone)
    async with shipped([port]) as nginx:
        response, _ = await fetch(nginx.port, "GET", "/chat/stream?message=SECRET", None, SSE)
        [line] = await nginx.log(1)
    assert (response.status, line["upstream_status"]) == (502, "502 : 502")
    assert "SECRET" not in nginx.written


# The page


async def test_the_pages_files_are_kept_for_a_moment_and_asked_about_by_browsers(nginx: Nginx) -> None:
    first, content = await fetch(nginx.port, "GET", PAGE)
    again, same = await fetch(nginx.port, "GET", f"{PAGE}?another", None, {"x-request-id": "mine"})
    assert (content, again.headers["cache-control"]) == (same, "no-cache")
    assert (first.headers["x-request-id"] == "mine", again.headers["x-request-id"]) == (False, "mine")
    known, _ = await fetch(nginx.port, "GET", PAGE, None, {"if-none-match": first.headers["etag"]})
    assert known.status == 304
    packed, small = await fetch(nginx.port, "GET", PAGE, None, {"accept-encoding": "gzip"})
    assert gzip.decompress(small) == content
    weak, _ = await fetch(nginx.port, "GET", PAGE, None, {"if-none-match": packed.headers["etag"]})
    assert (packed.headers["etag"], weak.status) == (f"W/{first.headers['etag']}", 304)
    assert [line["cache"] for line in await nginx.log(5)] == ["MISS", "HIT", "HIT", "HIT", "HIT"]


async def test_a_kept_file_does_not_bring_the_id_of_another_request(nginx: Nginx) -> None:
    await fetch(nginx.port, "GET", PAGE, None, {"x-request-id": "first"})
    async with connect(nginx.port) as client:
        client.write("GET", PAGE, None, {"x-request-id": "second"})
        told = (await client.reader.readuntil(b"\r\n\r\n")).lower()
    assert [line for line in told.split(b"\r\n") if line.startswith(b"x-request-id")] == [b"x-request-id: second"]


async def test_after_that_moment_the_relay_is_asked_whether_a_file_is_still_the_same(relay: Relay) -> None:
    async with shipped([relay.port], changes={r"proxy_cache_valid 200 5s": "proxy_cache_valid 200 1s"}) as nginx:
        await fetch(nginx.port, "GET", PAGE)
        kept: list[str] = []
        while set(kept) <= {"MISS", "HIT"}:
            await fetch(nginx.port, "GET", PAGE)
            kept = [line["cache"] for line in await nginx.log(len(kept) + 1)]
        assert set(kept) == {"MISS", "HIT", "REVALIDATED"}


async def test_the_page_itself_comes_from_the_relay_with_a_cookie_for_each_browser(nginx: Nginx) -> None:
    cookies = {(await fetch(nginx.port, "GET", "/"))[0].headers["set-cookie"] for _ in range(3)}
    assert len(cookies) == 3


async def test_no_stream_is_compressed_or_kept(nginx: Nginx) -> None:
    async with connect(nginx.port) as client:
        response = await client.request("POST", "/chat/stream", chat(), {"accept-encoding": "gzip"})
        assert "content-encoding" not in response.headers
        assert b"[DONE]" in await response.read()
    [line] = await nginx.log(1)
    assert line["cache"] == ""
