"""Limits that two processes keep together: streams at once, requests, tokens, and the one exchange of a token."""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from app.admission.callers import Quota
from app.quotas.counting import counting
from tests.redis_server import RedisServer, redis_server
from tests.relay import Relay, ask, chat, connect, fetch, running, text_of, until
from tests.upstream import Upstream, answer, chunk, hang, head

LIMITS: Final = {"max_streams": 2, "requests_per_minute": 20, "tokens_per_minute": 1000}
KEY: Final = "rk_" + "k" * 43
SHOP: Final = {"sha256": (hashlib.sha256(KEY.encode()).hexdigest(),), "mint": True}


@contextlib.asynccontextmanager
async def pair(folder: Path, **settings: Any) -> AsyncIterator[tuple[RedisServer, Upstream, Relay, Relay]]:
    own = {"redis_lease_seconds": 1, "anonymous": LIMITS} | settings
    async with (
        redis_server(folder) as redis,
        Upstream() as upstream,
        running(upstream.base_url, redis_url=redis.url, **own) as one,
        running(upstream.base_url, redis_url=redis.url, **own) as two,
    ):
        yield redis, upstream, one, two


async def test_a_callers_streams_are_counted_over_both_and_given_back(tmp_path: Path) -> None:
    async with pair(tmp_path) as (redis, upstream, one, two):
        upstream.script((head(), chunk("a"), hang()))
        async with connect(one.port) as first, connect(two.port) as second:
            for client in (first, second):
                assert (await client.request("POST", "/chat/stream", chat())).status == 200
            for relay in (one, two):
                response, (refusal,) = await ask(relay.port, chat())
                assert (response.status, refusal["error"]["code"]) == (429, "rate_limited")
                assert int(response.headers["retry-after"]) >= 1
            assert len(upstream.requests) == 2
        await until(lambda: not one.generations and not two.generations)
        upstream.script(answer("ok"))
        async with asyncio.timeout(5):
            while (await ask(one.port, chat()))[0].status != 200:
                await redis.client.ping()


async def test_an_upstreams_streams_are_counted_over_both_and_waited_for(tmp_path: Path) -> None:
    async with Upstream() as upstream:
        upstreams = {"one": {"base_url": upstream.base_url, "max_streams": 1}}
        async with pair(tmp_path, upstreams=upstreams, anonymous={}) as (_, _, one, two):
            upstream.script((head(), chunk("a"), hang()), answer("b"))
            async with connect(one.port) as first, connect(two.port) as second:
                await first.request("POST", "/chat/stream", chat())
                second.write("POST", "/chat/stream", chat())
                await until(lambda: bool(two.generations))
                assert len(upstream.requests) == 1
                first.close()
                assert text_of(await (await second.head()).events()) == "b"
        assert [request.at for request in upstream.requests] == sorted(request.at for request in upstream.requests)
        assert upstream.aborted == 1


async def test_requests_and_tokens_are_counted_over_both(tmp_path: Path) -> None:
    async with pair(tmp_path) as (_, upstream, one, two):
        upstream.script(answer("ok", usage=(1, 599)))
        statuses = [(await ask(relay.port, chat()))[0] for relay in (one, two, one)]
    assert [response.status for response in statuses] == [200, 200, 429]
    assert statuses[1].headers["ratelimit"].startswith('"tokens";r=')
    assert 50 < int(statuses[2].headers["retry-after"]) <= 60


@pytest.mark.parametrize("where", ["the same", "the other"])
async def test_a_browser_token_is_exchanged_once_in_all(tmp_path: Path, where: str) -> None:
    settings = {"keys": {"shop": SHOP}, "token_secret": "s" * 32}
    async with pair(tmp_path, **settings) as (_, _, one, two):
        headers = {"authorization": f"Bearer {KEY}"}
        _, made = await fetch(one.port, "POST", "/tokens", {"subject": "u"}, headers)
        token = json.loads(made)["token"]
        first, _ = await fetch(one.port, "POST", "/session", {"token": token})
        again, _ = await fetch((one if where == "the same" else two).port, "POST", "/session", {"token": token})
    assert (first.status, again.status) == (204, 401)


async def test_while_redis_is_away_each_counts_alone_and_no_token_is_spent(tmp_path: Path) -> None:
    settings = {"keys": {"shop": SHOP}, "token_secret": "s" * 32, "allow_anonymous": True}
    async with pair(tmp_path, **settings) as (redis, upstream, one, _):
        upstream.script((head(), chunk("a"), hang()))
        _, made = await fetch(one.port, "POST", "/tokens", {"subject": "u"}, {"authorization": f"Bearer {KEY}"})
        await redis.stop()
        refused, _ = await fetch(one.port, "POST", "/session", {"token": json.loads(made)["token"]})
        async with connect(one.port) as first, connect(one.port) as second:
            for client in (first, second):
                assert (await client.request("POST", "/chat/stream", chat())).status == 200
            response, _ = await ask(one.port, chat())
        await redis.start()
    assert (refused.status, refused.headers["retry-after"], response.status) == (503, "1", 429)


async def test_who_is_stopped_while_redis_decides_stays_stopped(tmp_path: Path) -> None:
    """Else a generation whose client has left would ask upstream, and be paid for."""
    async with redis_server(tmp_path) as redis, counting(redis.url, "relay", lease_s=1) as counted:
        quotas = [Quota("a", max_streams=10_000, requests_per_minute=100_000, tokens_per_minute=100_000)]
        for turns in [*range(25)] * 8:
            for decision in (counted.rates.admit(quotas, 1), counted.tallies.of(f"s{turns}").take([("a", 10_000)])):
                task = asyncio.ensure_future(decision)
                for _ in range(turns):
                    await asyncio.sleep(0)
                if task.cancel():
                    with pytest.raises(asyncio.CancelledError):
                        await task


async def test_who_leaves_while_redis_decides_is_asked_for_nowhere(tmp_path: Path) -> None:
    upstreams = {"one": {"base_url": "http://127.0.0.1:9/v1", "max_streams": 1000}}
    async with redis_server(tmp_path) as redis, Upstream() as upstream:
        upstreams["one"]["base_url"] = upstream.base_url
        upstream.script((head(), hang()))
        async with running("http://127.0.0.1:9/v1", redis_url=redis.url, upstreams=upstreams) as relay:
            for turns in [*range(30)] * 3:
                async with connect(relay.port) as client:
                    client.write("POST", "/chat/stream", chat())
                    await until(lambda: bool(relay.streams.live))
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    relay.streams.live[0].cancel()
                await until(lambda: not relay.generations)
            await upstream.wait_for(lambda seen: seen.active == 0)
