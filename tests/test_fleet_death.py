"""Processes that die, and processes that only look dead."""

import asyncio
import contextlib
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.browser import Wire
from tests.fleet import LEASE_SECONDS, TTL_SECONDS, Reading, fleet, replica, result_of
from tests.redis_server import redis_server
from tests.relay import SSE, chat, connect
from tests.served import Served
from tests.upstream import Upstream, chunk, finish, hang, head, pause, repeat

KILLS = 50
AT_ONCE = 10


@pytest.mark.timeout(240)  # it starts fifty processes
async def test_readers_of_a_killed_process_learn_it_and_keep_the_text(tmp_path: Path) -> None:
    """At random moments; all readers elsewhere see the same, and see it within two leases of it."""
    chance = random.Random(4)
    async with redis_server(tmp_path) as redis, Upstream() as upstream, contextlib.AsyncExitStack() as stack:
        upstream.script((head(), repeat(chunk("ab "), 4000, 0.003), finish()))
        reader = await stack.enter_async_context(replica(tmp_path, upstream, redis.url))
        for _ in range(KILLS // AT_ONCE):
            async with contextlib.AsyncExitStack() as doomed:
                replicas = (doomed.enter_async_context(replica(tmp_path, upstream, redis.url)) for _ in range(AT_ONCE))
                writers = await asyncio.gather(*replicas)
                await asyncio.gather(*(killed_while_read(writer, reader, chance.uniform(0, 0.3)) for writer in writers))
        await redis.forgets(4 * TTL_SECONDS)


async def killed_while_read(writer: Served, reader: Served, after_s: float) -> None:
    loop = asyncio.get_running_loop()
    first, second, own = Reading(), Reading(), Reading()
    await own.begin(writer.port, events=2)
    first.id = second.id = own.id
    reading = asyncio.gather(first.go_on(reader.port), second.go_on(reader.port))
    await asyncio.wait([reading], timeout=after_s)
    writer.process.send_signal(signal.SIGKILL)
    killed_at = loop.time()
    await reading
    assert loop.time() - killed_at < 10 * 2 * LEASE_SECONDS
    first.is_whole(first.text, "error")
    assert second.events == first.events
    error = first.events[-2]["error"]
    assert (error["code"], error["retryable"], error["partial"]) == ("relay_lost", True, True)
    result = await result_of(reader.port, own.id)
    assert (result["status"], result["text"], result["error"]) == ("error", first.text, error)


async def test_a_process_that_was_stopped_and_comes_back_cannot_go_on(tmp_path: Path) -> None:
    """It was taken for dead: what readers were told of its streams holds, and their upstreams are closed."""
    async with fleet(tmp_path) as relays, connect(relays.one.port) as connection:
        relays.upstream.script((head(), chunk("a"), pause(0.2), repeat(chunk("b"), 4000, 0.05), finish()))
        own, elsewhere = Reading(), Reading()
        await own.read(await connection.request("POST", "/chat/stream", chat(), SSE), 2)
        elsewhere.id = own.id
        relays.one.process.send_signal(signal.SIGSTOP)
        await elsewhere.go_on(relays.two.port)
        relays.one.process.send_signal(signal.SIGCONT)
        await relays.upstream.wait_for(lambda u: u.aborted == 1, 10)
        await own.go_on(relays.one.port)
    elsewhere.is_whole("a", "error")
    assert elsewhere.events[-2]["error"]["code"] == "relay_lost"
    assert own.events == elsewhere.events


async def test_a_short_cut_between_a_process_and_redis_is_healed(tmp_path: Path) -> None:
    """Shorter than a lease: readers elsewhere get all of it, those of the process itself go on at once."""
    async with cut_off(tmp_path, seconds=0.5, words=100) as (own, elsewhere):
        pass
    own.is_whole("ab " * 100)
    elsewhere.is_whole("ab " * 100)
    assert own.types == elsewhere.types


async def test_a_long_cut_between_a_process_and_redis_ends_its_streams_alike(tmp_path: Path) -> None:
    async with cut_off(tmp_path, seconds=4 * LEASE_SECONDS, words=4000) as (own, elsewhere):
        pass
    elsewhere.is_whole(elsewhere.text, "error")
    own.is_whole(own.text, "error")
    assert own.text.startswith(elsewhere.text)
    assert own.events[-2]["error"] == elsewhere.events[-2]["error"]
    assert own.events[-2]["error"]["code"] == "relay_lost"
    assert "live_only" in own.types


@contextlib.asynccontextmanager
async def cut_off(folder: Path, *, seconds: float, words: int) -> AsyncIterator[tuple[Reading, Reading]]:
    """A stream of a process that does not reach Redis for a while, read to its end there and elsewhere."""
    async with redis_server(folder) as redis, Upstream() as upstream, contextlib.AsyncExitStack() as stack:
        wire = Wire(redis.port)
        await wire.open()
        stack.push_async_callback(wire.close)
        upstream.script((head(), repeat(chunk("ab "), words, 0.01), finish()))
        keep = {"RELAY_REDIS_TTL_SECONDS": "30"}
        one = await stack.enter_async_context(replica(folder, upstream, f"redis://127.0.0.1:{wire.port}", **keep))
        two = await stack.enter_async_context(replica(folder, upstream, redis.url, **keep))
        own, elsewhere = Reading(), Reading()
        connection = await stack.enter_async_context(connect(one.port))
        response = await connection.request("POST", "/chat/stream", chat(), SSE)
        await own.read(response, 2)
        elsewhere.id = own.id
        reading = asyncio.gather(own.read(response), elsewhere.go_on(two.port))
        await asyncio.wait([reading], timeout=0.2)
        wire.down = True
        wire.cut()
        await asyncio.wait([reading], timeout=seconds)
        wire.down = False
        await reading
        yield own, elsewhere


async def test_an_idle_process_is_not_asked_for_by_anyone(tmp_path: Path) -> None:
    """One that was killed with nothing to do leaves nothing behind."""
    async with fleet(tmp_path) as relays, connect(relays.one.port) as connection:
        relays.upstream.script((head(), chunk("a"), hang()))
        await Reading().read(await connection.request("POST", "/chat/stream", chat(on_disconnect="cancel"), SSE), 2)
        relays.one.process.kill()
        await relays.redis.forgets(2 * LEASE_SECONDS + TTL_SECONDS)
