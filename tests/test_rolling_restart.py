"""Two relays behind a real nginx are restarted one after the other, while 200 streams are read and new ones begin."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from benchmarks.processes import free_port
from tests import nginx
from tests.fleet import Reading
from tests.redis_server import RedisServer, redis_server
from tests.relay import SSE, chat, connect, fetch, text_of
from tests.relay import event_of as parsed
from tests.served import START_SECONDS, Served, forked
from tests.upstream import Upstream, chunk, chunks, finish, head, pause

READERS = 200
WORDS = [f"{number} " for number in range(12)]
WORD_SECONDS = 0.25
TRICKLE_SECONDS = 0.1
GRACE_SECONDS = 60
"""Tenfold of what is needed here: what a stream takes, and a little."""

KEPT = "least_conn; RELAYS keepalive 64; keepalive_timeout 60s;"
"""As nginx/pool.conf has it: a drain meets connections that the balancer has open, and may be about to use."""


class Rolling:
    """The relays, each in its turn, behind one nginx. `begun` counts the streams that clients have asked for."""

    def __init__(self, folder: Path, redis: RedisServer, upstream: Upstream) -> None:
        self.upstream = upstream
        self.begun = 0
        self.over = asyncio.Event()
        self._folder, self._redis = folder, redis
        self._stacks: dict[int, contextlib.AsyncExitStack] = {}
        self.relays: list[Served] = []

    async def start(self, port: int) -> None:
        stack = contextlib.AsyncExitStack()
        command = ("app", "serve", "--port", str(port))
        variables = {"RELAY_REDIS_URL": self._redis.url, "RELAY_DRAIN_GRACE_SECONDS": str(GRACE_SECONDS)}
        variables["RELAY_LOG_LEVEL"] = "warning"
        relay = await stack.enter_async_context(forked(self._folder, self.upstream, *command, **variables))
        self.relays.append(relay)
        self._stacks[relay.port] = stack

    async def restart(self, relay: Served) -> None:
        """As a deploy does: SIGTERM, and the next one on its port when it is gone."""
        relay.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(START_SECONDS):
            assert await relay.process.wait() == 0
        await self.start(relay.port)

    async def aclose(self) -> None:
        for stack in self._stacks.values():
            await stack.aclose()


@contextlib.asynccontextmanager
async def rolling(folder: Path) -> AsyncIterator[Rolling]:
    async with redis_server(folder) as redis, Upstream() as upstream:
        relays = Rolling(folder, redis, upstream)
        async with contextlib.aclosing(relays):
            await asyncio.gather(relays.start(free_port()), relays.start(free_port()))
            yield relays


async def read_one(relays: Rolling, port: int, *, moves: bool) -> None:
    """One stream from its beginning to its end. Who `moves` leaves in the middle, and comes back to either relay."""
    reading = Reading()
    relays.begun += 1
    async with connect(port) as connection:
        response = await connection.request("POST", "/chat/stream", chat(), SSE)
        await reading.read(response, len(WORDS) // 2 if moves else None)
    if moves:
        await reading.go_on(port)
    reading.is_whole("".join(WORDS))


async def read_on_and_on(relays: Rolling, port: int, *, moves: bool) -> None:
    while not relays.over.is_set():
        await read_one(relays, port, moves=moves)


async def ask_briefly(relays: Rolling, port: int) -> None:
    relays.begun += 1
    response, body = await fetch(port, "POST", "/chat/stream", chat(model="brief"))
    assert response.status == 200, body
    events = [parsed(block) for block in body.decode().split("\n\n")[:-1]]
    assert ([event["type"] for event in events[-2:]], text_of(events)) == (["done", "[DONE]"], "Hello")


async def trickle(relays: Rolling, port: int, clients: asyncio.TaskGroup) -> None:
    """Short questions of clients that can not come back, one after the other."""
    while not relays.over.is_set():
        clients.create_task(ask_briefly(relays, port))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TRICKLE_SECONDS):
                await relays.over.wait()


@pytest.mark.timeout(180)
async def test_a_rolling_restart_loses_no_stream_no_token_and_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nginx, "BALANCER", nginx.BALANCER.replace("RELAYS", KEPT))
    async with rolling(tmp_path) as relays:
        paced = (step for word in WORDS for step in (chunk(word), pause(WORD_SECONDS)))
        relays.upstream.script((head(), *paced, finish()))
        relays.upstream.script((head(), chunks("Hel", "lo"), finish()), model="brief")
        one, two = relays.relays
        async with nginx.balanced((one.port, two.port)) as port, asyncio.TaskGroup() as clients:
            for number in range(READERS):
                clients.create_task(read_on_and_on(relays, port, moves=number % 4 == 0))
            clients.create_task(trickle(relays, port, clients))
            await relays.upstream.wait_for(lambda u: u.opened >= READERS, 30)
            for relay in (one, two):
                await relays.restart(relay)
            relays.over.set()
        assert relays.upstream.opened == relays.begun
        assert relays.upstream.aborted == 0
        print(f"{relays.begun} streams")
