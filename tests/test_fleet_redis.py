"""What Redis may do while streams run: nobody is taken for dead, readers lose nothing, and it heals by itself."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tests.fleet import LEASE_SECONDS, TTL_SECONDS, Fleet, Reading, fleet
from tests.relay import SSE, chat, connect, fetch
from tests.upstream import chunk, finish, head, repeat

STREAMS = 20
INTERVAL_SECONDS = 0.05


class Told(msgspec.Struct):
    """Both sides of each stream: read where it is generated, and elsewhere."""

    own: list[Reading]
    elsewhere: list[Reading]
    reading: list[asyncio.Task[None]]

    async def stand(self, seconds: float) -> None:
        """For so long all of them go on."""
        over, _ = await asyncio.wait(self.reading, timeout=seconds)
        assert not over


@pytest.mark.timeout(120)
async def test_redis_restarted_with_its_data_and_then_empty(tmp_path: Path) -> None:
    async with streaming(tmp_path, STREAMS, seconds=9) as (relays, told):
        await relays.redis.stop()
        await told.stand(LEASE_SECONDS + 1)
        await relays.redis.start()
        await told.stand(2 * LEASE_SECONDS)
        await relays.redis.empty()
        await told.stand(2 * LEASE_SECONDS)
    assert all("live_only" in reading.types for reading in told.own)


async def test_redis_restarted_at_once_is_not_noticed(tmp_path: Path) -> None:
    async with streaming(tmp_path, 4, seconds=6) as (relays, told):
        await relays.redis.stop()
        await relays.redis.start()
    assert not any("live_only" in reading.types for reading in told.own)


async def test_redis_paused_for_three_seconds(tmp_path: Path) -> None:
    async with streaming(tmp_path, 4, seconds=6) as (relays, told):
        relays.redis.pause()
        await told.stand(3)
        assert (await ready(relays.one.port)) == (200, "away")
        relays.redis.resume()
        await becomes_ready(relays.one.port)
    assert all("live_only" in reading.types for reading in told.own)


async def test_redis_full(tmp_path: Path) -> None:
    async with streaming(tmp_path, 4, seconds=6) as (relays, told):
        await relays.redis.client.config_set("maxmemory", "1mb")
        await told.stand(3 * LEASE_SECONDS)
        assert (await ready(relays.one.port)) == (200, "away")
        await relays.redis.client.config_set("maxmemory", "0")
        await becomes_ready(relays.two.port)
    assert all("live_only" in reading.types for reading in told.own)


@contextlib.asynccontextmanager
async def streaming(folder: Path, streams: int, *, seconds: float) -> AsyncIterator[tuple[Fleet, Told]]:
    """Streams of so many seconds, half of them on each process, each read on both.

    Behind the block each has ended well for each reader, and nothing of them is left.
    """
    pieces = int(seconds / INTERVAL_SECONDS)
    more = {"RELAY_REDIS_TTL_SECONDS": "5", "RELAY_HEARTBEAT_SECONDS": "1"}
    async with fleet(folder, **more) as relays, contextlib.AsyncExitStack() as stack:
        relays.upstream.script((head(), repeat(chunk("ab "), pieces, INTERVAL_SECONDS), finish()))
        told = Told([], [], [])
        for number in range(streams):
            here, there = (relays.one, relays.two) if number % 2 else (relays.two, relays.one)
            own, elsewhere = Reading(), Reading()
            connection = await stack.enter_async_context(connect(here.port))
            response = await connection.request("POST", "/chat/stream", chat(), SSE)
            await own.read(response, 2)
            elsewhere.id = own.id
            there_too = await stack.enter_async_context(connect(there.port))
            followed = await there_too.request("GET", f"/chat/stream/{own.id}", None, SSE)
            told.own.append(own)
            told.elsewhere.append(elsewhere)
            told.reading += (asyncio.create_task(own.read(response)), asyncio.create_task(elsewhere.read(followed)))
        yield relays, told
        await asyncio.gather(*told.reading)
        await relays.redis.forgets(5 + 4 * TTL_SECONDS)
    for each in told.own + told.elsewhere:
        each.is_whole("ab " * pieces)
    assert len(relays.upstream.requests) == streams


async def test_new_streams_while_redis_is_away_are_live_only_from_the_start(tmp_path: Path) -> None:
    async with fleet(tmp_path) as relays:
        relays.upstream.script((head(), chunk("a"), finish()))
        await relays.redis.stop()
        await becomes(relays.one.port, 200, "away")
        reading = Reading()
        async with connect(relays.one.port) as connection:
            await reading.read(await connection.request("POST", "/chat/stream", chat(), SSE))
        assert (reading.text, reading.events[0]["resumable"]) == ("a", False)
        unknown, body = await fetch(relays.one.port, "GET", f"/chat/stream/s_{'0' * 32}")
        error = msgspec.json.decode(body)["error"]
        assert (unknown.status, error["code"], error["retryable"]) == (503, "overloaded", True)
        await relays.redis.start()
        await becomes_ready(relays.one.port)
        again = Reading()
        await again.begin(relays.one.port, events=1)
        assert again.events[0]["resumable"]


async def test_new_streams_are_refused_while_redis_is_away_where_that_was_chosen(tmp_path: Path) -> None:
    async with fleet(tmp_path, RELAY_REDIS_AWAY="refuse") as relays:
        relays.upstream.script((head(), chunk("a"), finish()))
        await relays.redis.stop()
        await becomes(relays.one.port, 503, "away")
        refused, _ = await fetch(relays.one.port, "POST", "/chat/stream", chat(), SSE)
        assert (refused.status, refused.headers["retry-after"].isdigit()) == (503, True)
        taken, _ = await fetch(relays.one.port, "POST", "/chat/stream", chat(), {"accept": "*/*"})
        assert taken.status == 200


async def ready(port: int) -> tuple[int, str]:
    response, body = await fetch(port, "GET", "/readyz")
    return response.status, msgspec.json.decode(body)["shared_log"]


async def becomes(port: int, status: int, shared_log: str) -> None:
    async with asyncio.timeout(10):
        while await ready(port) != (status, shared_log):
            pass


async def becomes_ready(port: int) -> None:
    await becomes(port, 200, "ready")
