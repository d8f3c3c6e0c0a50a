"""Two relays on one Redis, looked into: what is left of a stream in each, and what a reader elsewhere may cost."""

import asyncio
import contextlib
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.admission.callers import Caller
from app.log.sharing import Sharing
from tests.fleet import Reading
from tests.redis_server import RedisServer, redis_server
from tests.relay import SSE, Relay, chat, connect, fetch, running, subject, until
from tests.served import END_SECONDS, ROOT
from tests.terminal import environment
from tests.upstream import Upstream, chunk, chunks, delta, finish, hang, head, repeat, wait

PIECE = "x" * 1000
LAG_BYTES = 64 * 1024


@contextlib.asynccontextmanager
async def pair(folder: Path, **settings: object) -> AsyncIterator[tuple[RedisServer, Upstream, Relay, Relay]]:
    own = {"redis_ttl_seconds": 1, "log_ttl_seconds": 0.2, "redis_lease_seconds": 1} | settings
    async with (
        redis_server(folder) as redis,
        Upstream() as upstream,
        running(upstream.base_url, redis_url=redis.url, **own) as one,
        running(upstream.base_url, redis_url=redis.url, **own) as two,
    ):
        yield redis, upstream, one, two


def sharing(relay: Relay) -> Sharing:
    shared = relay.streams._sharing
    assert shared is not None
    return shared


async def test_nothing_of_a_stream_is_left_anywhere(tmp_path: Path) -> None:
    async with pair(tmp_path) as (redis, upstream, one, two):
        upstream.script((head(), repeat(chunk("ab "), 20, 0.005), finish()))
        readings = [Reading() for _ in range(10)]
        for reading in readings:
            await reading.begin(one.port, events=3)
        await asyncio.gather(*(reading.go_on(two.port) for reading in readings))
        for reading in readings:
            reading.is_whole("ab " * 20)
        await redis.forgets(5)
        for relay in (one, two):
            await until(lambda relay=relay: not relay.streams._streams, 5)  # type: ignore[misc]
            assert (relay.streams.held_bytes, relay.permits_in_use, relay.generations) == (0, 0, [])
            assert (sharing(relay).tail.mirrors, sharing(relay).commits._dirty) == ({}, {})


async def test_a_reader_that_takes_nothing_costs_no_more_than_its_lag_elsewhere(tmp_path: Path) -> None:
    bounds = {"log_lag_bytes": LAG_BYTES, "send_timeout_seconds": 60}
    async with pair(tmp_path, **bounds) as (_, upstream, one, two):
        upstream.script((head(), repeat(chunk(PIECE), 3000), finish()))
        idle, eager = Reading(), Reading()
        await idle.begin(one.port, events=1)
        eager.id = idle.id
        async with connect(two.port) as connection:
            connection.stop_reading()
            connection.write("GET", f"/chat/stream/{idle.id}", None, SSE)
            await eager.go_on(two.port)
            [mirror] = next(iter(sharing(two).tail.mirrors.values()))
            await until(lambda: two.blocked and mirror.crowded, 5)
            assert mirror.kept_bytes < 10 * LAG_BYTES < 3000 * len(PIECE)
            connection.read_again()
            await idle.read(await connection.head())
        eager.is_whole(PIECE * 3000)
        assert idle.events[1:] == eager.events


async def test_a_drain_hands_readers_of_other_processes_over(tmp_path: Path) -> None:
    more = asyncio.Event()
    async with pair(tmp_path) as (_, upstream, one, two):
        upstream.script((head(), chunk("a"), wait(more), chunk("b"), finish()))
        reading = Reading()
        await reading.begin(one.port, events=1)
        async with connect(two.port) as connection:
            response = await connection.request("GET", f"/chat/stream/{reading.id}?after=0", None, SSE)
            await reading.read(response, 1)
            await two.streams.close()
            await reading.read(response)
        assert not reading.over
        more.set()
        await reading.go_on(one.port)
    reading.is_whole("ab")


async def test_what_was_read_elsewhere_is_a_cursor_before_its_writer_has_heard_of_it(tmp_path: Path) -> None:
    more = asyncio.Event()
    async with pair(tmp_path, redis_lease_seconds=30) as (redis, upstream, one, _):
        upstream.script((head(), chunk("a"), wait(more), chunk("b"), finish()))
        reading = Reading()
        await reading.begin(one.port, events=2)
        redis.pause()
        more.set()
        log = one.streams.find(reading.id, Caller("", None)).log
        await until(lambda: log.next_seq == log.readable + 2)
        cursor = {"last-event-id": f"{reading.id}.{log.readable}"}
        async with connect(one.port) as connection:
            response = await connection.request("GET", f"/chat/stream/{reading.id}", None, SSE | cursor)
            redis.resume()
            assert response.status == 200
            assert [event["type"] for event in await response.events() if event["type"] != "ping"] == ["done", "[DONE]"]


async def test_what_a_dialect_passes_on_is_read_elsewhere_as_here(tmp_path: Path) -> None:
    """Chunks of upstream that hold no piece included."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    async with pair(tmp_path) as (_, upstream, one, two):
        upstream.script((head(), delta(role="assistant"), chunks("a", "b"), finish()))
        headers = {"x-on-disconnect": "wait"}
        response, _ = await fetch(one.port, "POST", "/v1/chat/completions", body, headers)
        here, there = Reading(), Reading()
        here.id = there.id = response.headers["x-stream-id"]
        await here.go_on(one.port)
        await there.go_on(two.port)
    assert "chunk" in here.types
    assert there.events == here.events
    here.is_whole("ab")


async def test_one_caller_over_his_bound_is_live_only_and_others_are_not(tmp_path: Path) -> None:
    bounds = {"log_caller_bytes": 20_000, "log_stream_bytes": 20_000, "log_lag_bytes": 2_000}
    async with pair(tmp_path, **bounds) as (_, upstream, one, two):
        more = asyncio.Event()
        upstream.script((head(), repeat(chunk(PIECE), 12), wait(more), chunk("y"), finish()))
        readings = [Reading() for _ in range(3)]
        async with contextlib.AsyncExitStack() as stack:
            connections = [await stack.enter_async_context(connect(one.port)) for _ in readings]
            responses = []
            for connection, reading, letter in zip(connections, readings, "aab", strict=True):
                responses.append(await connection.request("POST", "/chat/stream", chat(), SSE | subject(letter)))
                await reading.read(responses[-1], 13)
            more.set()
            await asyncio.gather(*(reading.read(answer) for reading, answer in zip(readings, responses, strict=True)))
        assert ["live_only" in reading.types for reading in readings] == [False, True, False]
        path = f"/chat/stream/{readings[1].id}"
        gone, _ = await fetch(two.port, "GET", path, headers=subject("a"))
        assert gone.status in (404, 410)


async def test_the_bytes_of_a_caller_are_given_back(tmp_path: Path) -> None:
    async with pair(tmp_path) as (_, upstream, one, _two):
        upstream.script((head(), chunk("a"), hang()))
        async with connect(one.port) as connection:
            response = await connection.request("POST", "/chat/stream", chat(), SSE | subject("a"))
            await Reading().read(response, 2)
            budget = one.streams._logs._budgets[Caller("", "a" * 32)]
            assert budget.used_bytes > 0
            await fetch(one.port, "DELETE", f"/chat/stream/{response.headers['x-stream-id']}", headers=subject("a"))
        await until(lambda: not one.streams._streams, 5)
        assert budget.used_bytes == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_workers_without_a_shared_log_are_noticed(tmp_path: Path, workers: int) -> None:
    variables = {"PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "none"}
    options = ("--factory", "app.main:create_app", "--port", "0", "--workers", str(workers))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "uvicorn", *options), stdout=DEVNULL, stderr=PIPE, env=environment(tmp_path, variables)
    )
    assert process.stderr is not None
    said = b""
    try:
        async with asyncio.timeout(4 * END_SECONDS):
            while said.count(b"startup complete") < workers:
                said += await process.stderr.readline()
    finally:
        process.terminate()
        await process.communicate()
    assert (b"one of several workers" in said) == (workers > 1)


async def test_what_no_version_of_ours_wrote_ends_one_reader_and_nothing_else(tmp_path: Path) -> None:
    """Two versions may share one Redis for the time of a deploy."""
    async with pair(tmp_path) as (redis, upstream, one, two):
        upstream.script((head(), chunk("a"), hang()))
        reading, other = Reading(), Reading()
        for each in (reading, other):
            await each.begin(one.port, events=2)
        keys = sharing(one).keys
        await redis.client.xadd(keys.inbox(sharing(two).process), {"what": "unheard of"})
        await redis.client.xadd(keys.events(reading.id), {"e": "garbage"}, id="9-0")
        await reading.go_on(two.port)
        assert not reading.over
        await redis.client.hset(keys.meta(reading.id), "birth", "garbage")
        unknown, _ = await fetch(two.port, "GET", f"/chat/stream/{reading.id}")
        assert unknown.status == 404
        await fetch(two.port, "DELETE", f"/chat/stream/{other.id}")
        await other.go_on(two.port)
    other.is_whole("a")
