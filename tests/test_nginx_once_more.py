"""Where a request could not be sent to any relay, a real nginx asks once more; what was sent it never repeats."""

import asyncio
import contextlib
import json
import re
import socket
from asyncio import Server
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.nginx import SHIPPED, shipped
from tests.nginx_process import Nginx, port_of
from tests.relay import SSE, Response, connect, event_of, fetch, until
from tests.upstream import Upstream, head, pause, reset, send, status, wait
from tests.upstream_server import Connection

FASTER: Final = {r"proxy_connect_timeout 2s": "proxy_connect_timeout 800ms"}
"""And less than the second after which a lost SYN is sent again: what is lost, never connects."""

LARGE: Final = {"message": "x" * 300_000}
"""More than nginx holds in memory of a body."""

WHOLE: Final = "/v1/chat/completions"


@contextlib.contextmanager
def crowded() -> Iterator[socket.socket]:
    """A listener to which connecting hangs: its queue is full."""
    with contextlib.ExitStack() as sockets:
        listening = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        listening.setblocking(False)
        for _ in range(4):
            filler = sockets.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listening.getsockname())
        yield listening


def connecting(port: int) -> int:
    """How many are waiting for this port to say anything (SYN_SENT)."""
    table = Path("/proc/self/net/tcp").read_text()
    return len(re.findall(rf"(?m)^ *\d+: \S+ 0100007F:{port:04X} 02 ", table))


class Gone:
    """A relay that is gone, and nginx before it."""

    def __init__(self, nginx: Nginx, listening: socket.socket) -> None:
        self.nginx: Final = nginx
        self._listening: Final = listening
        self._others: Final = connecting(port_of(listening))

    async def comes_back(self, upstream: Upstream, tried: int) -> Server:
        """In its place, and not before so many requests are being tried in vain."""
        await until(lambda: connecting(port_of(self._listening)) == self._others + tried)
        loop = asyncio.get_running_loop()
        return await loop.create_server(lambda: Connection(upstream, 0), sock=self._listening)


@contextlib.asynccontextmanager
async def gone(changes: dict[str, str] | None = None) -> AsyncIterator[Gone]:
    with crowded() as listening:
        async with shipped([port_of(listening)], changes=FASTER | (changes or {})) as nginx:
            yield Gone(nginx, listening)


async def test_what_could_not_be_sent_is_asked_once_more_and_reaches_a_relay_once() -> None:
    """Whole with its body and what nginx tells of its client; the page's files as well."""
    async with Upstream() as upstream, gone() as relay:
        upstream.script(status(200, b"here"))
        port = relay.nginx.port
        asked = asyncio.gather(
            fetch(port, "POST", "/chat/stream", LARGE, {"x-request-id": "mine"}),
            fetch(port, "GET", "/static/page.js?v=1"),
        )
        async with await relay.comes_back(upstream, tried=2):
            assert [(response.status, body) for response, body in await asked] == [(200, b"here")] * 2
        log = await relay.nginx.log(2)
    get, post = sorted(upstream.requests, key=lambda each: each.method)
    assert (get.method, get.path, post.method, post.path) == ("GET", "/static/page.js?v=1", "POST", "/chat/stream")
    assert post.body == LARGE
    assert (post.headers["x-request-id"], post.headers["x-forwarded-for"]) == ("mine", "127.0.0.1")
    assert [(line["status"], line["upstream_status"]) for line in log] == [(200, "504 : 200")] * 2


async def test_the_second_try_holds_nothing_back_and_waits_as_long_as_the_first() -> None:
    """Silence of a stream is an end, that of an answer which is asked for whole is not."""
    faster = {r"proxy_read_timeout 60s": "proxy_read_timeout 400ms"}
    seen = asyncio.Event()
    slow = {"model": "slow"}
    async with Upstream() as upstream, gone(faster) as relay, connect(relay.nginx.port) as client:
        upstream.script((pause(0.6), *status(200, b"late")), model="slow")
        upstream.script((head(), send(b"data: 1\n\n"), wait(seen), send(b"data: 2\n\n")))
        whole = asyncio.create_task(fetch(relay.nginx.port, "POST", WHOLE, slow))
        silent = asyncio.create_task(fetch(relay.nginx.port, "POST", "/chat/stream", slow))
        client.write("GET", "/chat/stream?message=hi", None, {"accept-encoding": "gzip"})
        async with await relay.comes_back(upstream, tried=3):
            blocks = (await client.head()).blocks()
            assert await anext(blocks) == "data: 1"
            seen.set()
            assert [block async for block in blocks] == ["data: 2"]
            assert ((await whole)[1], (await silent)[0].status) == (b"late", 504)
        tried = {line["upstream_status"] for line in await relay.nginx.log(3)}
    assert (len(upstream.requests), tried) == (3, {"504 : 200", "504 : 504"})


@contextlib.contextmanager
def refusing() -> Iterator[socket.socket]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound


@pytest.mark.parametrize(
    ("gone", "code", "told"), [(crowded, "upstream_timeout", 504), (refusing, "upstream_unavailable", 502)]
)
async def test_there_is_no_third_try_and_its_failure_is_told_as_any_other(gone: Any, code: str, told: int) -> None:
    faster = {r"proxy_connect_timeout 2s": "proxy_connect_timeout 200ms"}
    with gone() as nobody:
        async with shipped([port_of(nobody)], changes=faster) as nginx:
            paths = ("/chat/stream", WHOLE, "/static/page.js")
            asked = asyncio.gather(*(fetch(nginx.port, "POST", path, {}, {"x-request-id": "mine"}) for path in paths))
            response, events = await fetch(nginx.port, "GET", "/chat/stream?message=hi", None, SSE)
            told_as_json(await asked, code, told)
            error, end = [event_of(block) for block in events.decode().split("\n\n")[:-1]]
            assert (response.status, error["error"]["code"], end["type"]) == (told, code, "[DONE]")
            assert [line["upstream_status"] for line in await nginx.log(4)] == [f"{told} : {told}"] * 4


def told_as_json(answers: list[tuple[Response, bytes]], code: str, told: int) -> None:
    for response, body in answers:
        assert (response.status, response.headers["content-type"]) == (told, "application/json")
        assert (json.loads(body)["error"]["code"], response.headers["retry-after"]) == (code, "2")
        assert response.headers["x-request-id"] == "mine"


@pytest.mark.parametrize("path", ["/chat/stream", WHOLE])
async def test_what_was_sent_is_not_asked_again_though_another_could_not_be_connected_to(path: str) -> None:
    async with Upstream() as dying:
        dying.script((reset(),))
        with refusing() as nobody:
            async with shipped([port_of(nobody), int(dying.base_url.split(":")[2].split("/")[0])]) as nginx:
                answers = [await fetch(nginx.port, "POST", path, {}) for _ in range(4)]
                tried = [line["upstream_status"] for line in await nginx.log(4)]
        assert [response.status for response, _ in answers] == [502] * 4
        assert set(tried) == {"502", "502, 502"}
        assert dying.opened == 4


def test_a_second_try_waits_as_long_as_the_first() -> None:
    places = re.findall(r"(?s)location ([^{]+) \{(.*?)\n\}", (SHIPPED / "paths.conf").read_text())
    waits = {place: re.findall(r"proxy_read_timeout (\w+);", text) for place, text in places}
    assert waits[f"= {WHOLE}"] == waits["@once_more_whole"] == ["3660s"]
    assert waits["/"] == waits["@once_more"] == []
