import asyncio
import base64
import json
from operator import methodcaller

import aiohttp
import pytest

from tests.upstream import (
    Answer,
    Upstream,
    answer,
    blackhole,
    chunk,
    close,
    comments,
    finish,
    hang,
    head,
    pause,
    raw_case,
    repeat,
    reset,
    send,
    silent,
    status,
    wait,
)


async def ask(session: aiohttp.ClientSession, upstream: Upstream, model: str = "m") -> bytes:
    async with session.post(f"{upstream.base_url}/chat/completions", json={"model": model}) as response:
        return await response.read()


async def connect(upstream: Upstream) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A request on a bare socket, to be left without ceremony."""
    port = int(upstream.base_url.split(":")[2].split("/")[0])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: u\r\ncontent-length: 2\r\n\r\n{}")
    return reader, writer


def texts(body: bytes) -> str:
    payloads = [json.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: {")]
    return "".join(p["choices"][0]["delta"].get("content") or "" for p in payloads if p["choices"])


async def test_requests_share_a_connection_and_are_kept() -> None:
    async with Upstream() as upstream, aiohttp.ClientSession() as session:
        upstream.script(answer("Hel", "lo", usage=(3, 2)))
        bodies = [await ask(session, upstream) for _ in range(3)]
        assert [texts(body) for body in bodies] == ["Hello"] * 3
        assert bodies[0].endswith(b"data: [DONE]\n\n")
        assert b'"total_tokens": 5' in bodies[0]
        assert [(r.method, r.path, r.body, r.connection) for r in upstream.requests] == [
            ("POST", "/v1/chat/completions", {"model": "m"}, 1)
        ] * 3
        assert upstream.requests[0].headers["content-type"] == "application/json"
        assert (upstream.opened, upstream.active, upstream.ended, upstream.aborted) == (3, 0, 3, 0)


async def test_answers_come_in_order_by_model_and_the_last_repeats() -> None:
    async with Upstream() as upstream, aiohttp.ClientSession() as session:
        upstream.script(answer("one"), answer("two"))
        upstream.script(answer("other"), model="x")
        asked = [texts(await ask(session, upstream, model)) for model in ("m", "x", "m", "m", "x")]
        assert asked == ["one", "other", "two", "two", "other"]


@pytest.mark.parametrize(
    "left_in",
    [
        silent(),
        comments(0.01),
        (head(), chunk("a"), hang()),
        (head(), pause(60)),
        (head(), wait(asyncio.Event())),
        (head(), repeat(chunk("x"), interval=0.001)),
        (head(), repeat(chunk("x" * 65_536))),
        (head(content_length=1000), hang()),
    ],
)
async def test_a_departure_is_noticed_in_every_step(left_in: Answer) -> None:
    async with Upstream() as upstream:
        upstream.script(left_in)
        for left, leave in enumerate(("write_eof", "abort"), 1):
            _, writer = await connect(upstream)
            await upstream.wait_for(lambda u: u.active == 1)
            methodcaller(leave)(writer.transport)
            left_at = asyncio.get_running_loop().time()
            await upstream.wait_for(lambda u: u.active == 0, 1)
            assert (upstream.opened, upstream.ended, upstream.aborted) == (left, 0, left)
            assert upstream.last_abort_at is not None
            assert upstream.last_abort_at - left_at < 0.5
            writer.close()


async def test_a_held_answer_goes_on_when_released() -> None:
    async with Upstream() as upstream:
        released = asyncio.Event()
        upstream.script((head(close=True), chunk("a"), wait(released), chunk("b"), finish()))
        reader, writer = await connect(upstream)
        received = await reader.readuntil(b'"a"}')
        with pytest.raises(AssertionError):
            await upstream.wait_for(lambda u: u.ended == 1, 0.05)
        released.set()
        _, body = (received + await reader.read()).split(b"\r\n\r\n", 1)
        assert texts(body) == "ab"
        assert b"\r\n" not in body
        assert upstream.ended == 1
        writer.close()


async def test_a_client_that_does_not_read_holds_the_answer() -> None:
    async with Upstream() as upstream:
        upstream.script((head(), repeat(chunk("x" * 65_536), 200)))
        reader, writer = await connect(upstream)
        with pytest.raises(AssertionError, match="active=1"):
            await upstream.wait_for(lambda u: u.ended == 1, 0.3)
        while await reader.read(1 << 20) and not upstream.ended:
            pass
        await upstream.wait_for(lambda u: u.ended == 1)
        writer.close()


async def test_a_reset_and_an_early_close_are_our_ends() -> None:
    async with Upstream() as upstream, aiohttp.ClientSession() as session:
        upstream.script((head(), chunk("a"), reset()), (head(), chunk("a"), close()), (head(content_length=9), close()))
        with pytest.raises(aiohttp.ClientPayloadError, match="reset by peer"):
            await ask(session, upstream)
        for _ in range(2):
            with pytest.raises(aiohttp.ClientPayloadError):
                await ask(session, upstream)
        assert (upstream.active, upstream.ended, upstream.aborted) == (0, 3, 0)


async def test_bytes_without_a_head_go_on_the_wire_as_they_are() -> None:
    async with Upstream() as upstream:
        upstream.script((send(b"\x16\x03\x01 no"), send(b" HTTP\r\n")))
        reader, writer = await connect(upstream)
        assert await reader.read() == b"\x16\x03\x01 no HTTP\r\n"
        writer.close()


async def test_statuses_and_recorded_cases_are_served_as_they_are() -> None:
    body = b"\xff\xfenot: utf-8\r\r"
    case = {"status": 429, "headers": {"content-type": "x/y"}, "body_b64": base64.b64encode(body).decode()}
    async with Upstream() as upstream, aiohttp.ClientSession() as session:
        upstream.script(raw_case(case), status(503, b"busy", {"retry-after": "1"}), status(204), status(500))
        seen = []
        for _ in range(4):
            async with session.post(upstream.base_url) as response:
                headers = {name.lower(): value for name, value in response.headers.items()}
                seen.append((response.status, await response.read(), headers))
        assert seen == [
            (429, body, {"content-type": "x/y", "transfer-encoding": "chunked"}),
            (503, b"busy", {"retry-after": "1", "content-length": "4"}),
            (204, b"", {}),
            (500, b"", {"content-length": "0"}),
        ]
        assert {request.connection for request in upstream.requests} == {1}


async def test_waiting_in_vain_tells_the_counters() -> None:
    async with Upstream() as upstream:
        with pytest.raises(AssertionError, match="opened=0 active=0 ended=0 aborted=0"):
            await upstream.wait_for(lambda u: u.opened == 1, 0.01)


async def test_a_step_that_fails_fails_the_test() -> None:
    async def wrong(_: object) -> None:
        raise ZeroDivisionError

    async def run() -> None:
        async with Upstream() as upstream:
            upstream.script((head(), wrong))
            reader, writer = await connect(upstream)
            await reader.read()
            writer.close()

    with pytest.raises(ZeroDivisionError):
        await run()


async def test_connecting_to_a_blackhole_hangs() -> None:
    with blackhole() as base_url, pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await asyncio.open_connection("127.0.0.1", int(base_url.split(":")[2].split("/")[0]))
