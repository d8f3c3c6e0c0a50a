"""Whatever comes in whatever order, no limit is passed, and in the end nothing is held by anybody.

Visitors ask, leave, stop their streams, are failed by upstream, run into limits, wait in the queue; then the relay
shuts down under them. Limits are looked at in every turn of the loop.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from tests.redis_server import RedisServer, redis_server
from tests.relay import Relay, chat, connect, fetch, running, until
from tests.upstream import Upstream, chunk, finish, hang, head, pause, repeat, reset, status

OF_UPSTREAMS: Final = {"one": 3, "two": 2}
MAX_STREAMS: Final = 4
MAX_QUEUED: Final = 3
OF_CALLER: Final = 6
GUESTS: Final = 10
VISITS: Final = 100
ENOUGH: Final = 100
"""Requests at upstream."""


def limits(upstream: Upstream) -> dict[str, Any]:
    return {
        "upstreams": {
            name: {"base_url": upstream.base_url, "max_streams": most} for name, most in OF_UPSTREAMS.items()
        },
        "anonymous": {"max_streams": OF_CALLER, "requests_per_minute": 100_000, "tokens_per_minute": 10_000_000},
        "max_streams": MAX_STREAMS,
        "max_queued": MAX_QUEUED,
        "queue_timeout_seconds": 0.1,
        "wait_seconds": 0.02,
        "breaker_failures": 4,
        "breaker_open_seconds": 0.05,
        "max_retry_wait_seconds": 0.02,
    }


def script(upstream: Upstream, chance: random.Random) -> None:
    answers = [
        (head(), repeat(chunk("x"), 5, interval=0.002), finish()),
        (head(), chunk("x"), hang()),
        (head(), hang()),
        (head(), chunk("x"), reset()),
        (pause(0.01), reset()),
        status(503),
        status(429, headers={"retry-after": "0.01"}),
        status(401),
        status(400),
    ]
    upstream.script(*(chance.choice(answers) for _ in range(2000)))


async def visit(relay: Relay, chance: random.Random) -> None:
    """Asks, and goes in one way or another."""
    body = chat(timeouts={"first_token": chance.uniform(0.01, 0.2), "total": chance.uniform(0.02, 0.4)})
    headers = chance.choice([{}, {"accept": "text/event-stream"}])
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError):
        async with connect(relay.port) as client, asyncio.timeout(chance.uniform(0.005, 0.3)):
            response = await client.request("POST", "/chat/stream", body, headers)
            if chance.random() < 0.3 and "x-stream-id" in response.headers:
                await fetch(relay.port, "DELETE", f"/chat/stream/{response.headers['x-stream-id']}")
            await response.read()


def look(relays: Sequence[Relay]) -> None:
    for relay in relays:
        capacity = relay.streams.means.capacity
        assert capacity.in_use <= MAX_STREAMS
        assert capacity.queued <= MAX_QUEUED
        assert all(used <= OF_CALLER for used in capacity._of_callers.values())
        for state in relay.streams.means.pool.states():  # type: ignore[attr-defined]
            assert state.in_use <= OF_UPSTREAMS[state.name]


@contextlib.asynccontextmanager
async def watched(relays: Sequence[Relay], redis: RedisServer | None = None) -> AsyncIterator[None]:
    over = False

    async def watch() -> None:
        while not over:
            look(relays)
            await asyncio.sleep(0)

    async def watch_places(redis: RedisServer) -> None:
        while not over:
            assert all(held <= max(OF_CALLER, *OF_UPSTREAMS.values()) for held in await places(redis))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(watch())
        if redis is not None:
            tasks.create_task(watch_places(redis))
        yield
        over = True


async def rush(relays: Sequence[Relay], chance: random.Random, upstream: Upstream) -> None:
    """Guests who come again and again, and the end of the relays while some are there."""

    async def guest() -> None:
        for _ in range(VISITS):
            await visit(chance.choice(relays), chance)

    guests = [asyncio.create_task(guest()) for _ in range(GUESTS)]
    await upstream.wait_for(lambda seen: len(seen.requests) >= ENOUGH, 20)
    await until(lambda: any(relay.generations for relay in relays))
    for relay in relays:
        await relay.streams.close()
    for task in guests:
        task.cancel()
    await asyncio.wait(guests)


async def nothing_is_held(relays: Sequence[Relay], upstream: Upstream) -> None:
    await upstream.wait_for(lambda seen: seen.active == 0)
    for relay in relays:
        capacity = relay.streams.means.capacity
        await until(lambda relay=relay: not relay.generations)  # type: ignore[misc]
        assert (capacity.in_use, capacity.queued, capacity._of_callers) == (0, 0, {})
        assert [state.in_use for state in relay.streams.means.pool.states()] == [0, 0]  # type: ignore[attr-defined]
    await until(lambda: not tasks_of_streams(), 5)


def tasks_of_streams() -> list[str]:
    names = [task.get_name() for task in asyncio.all_tasks()]
    return [name for name in names if name.startswith(("generation", "departure", "tally"))]


@pytest.mark.parametrize("seed", range(4))
async def test_in_any_order_no_limit_is_passed_and_nothing_is_left(seed: int) -> None:
    chance = random.Random(seed)
    async with Upstream() as upstream, running("http://127.0.0.1:9/v1", **limits(upstream)) as relay:
        script(upstream, chance)
        async with watched([relay]):
            await rush([relay], chance, upstream)
        await nothing_is_held([relay], upstream)


async def places(redis: RedisServer) -> list[int]:
    """How many streams stand under each name, a moment later."""
    await redis.client.blpop(["nobody fills it"], timeout=0.02)
    names = [name for name in await redis.names() if ":permits:" in name]
    return [int(await redis.client.zcard(name)) for name in names]


@pytest.mark.parametrize("seed", range(2))
async def test_in_any_order_two_processes_pass_no_limit_together_and_leave_nothing(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    async with redis_server(tmp_path) as redis, Upstream() as upstream, contextlib.AsyncExitStack() as stack:
        own = limits(upstream) | {"redis_url": redis.url, "redis_lease_seconds": 1}
        relays = [await stack.enter_async_context(running("http://127.0.0.1:9/v1", **own)) for _ in range(2)]
        script(upstream, chance)
        async with watched(relays, redis):
            await rush(relays, chance, upstream)
        await nothing_is_held(relays, upstream)
        async with asyncio.timeout(5):
            while any(await places(redis)):
                pass
