"""A drain of one of several processes on one Redis: who reads here what is made there, and there what is made here."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.log.keys import Keys
from tests.fleet import Reading, replica, result_of
from tests.redis_server import RedisServer, redis_server
from tests.relay import SSE, chat, connect, subject
from tests.served import Served
from tests.upstream import Upstream, chunk, finish, hang, head, wait
from tests.webhook_receiver import Receiver

GRACE = {"RELAY_DRAIN_GRACE_SECONDS": "0.2"}
WAIT_SECONDS = 60.0
UI = {"id": "c1", "messages": [{"id": "m1", "role": "user", "parts": [{"type": "text", "text": "hi"}]}]}
ENDS_WITHIN_SECONDS = 15
"""After the grace, as docs/behaviour.md has it; the tests allow for ten times as much."""

KEPT = {"RELAY_REDIS_TTL_SECONDS": "30", "RELAY_WAIT_SECONDS": str(WAIT_SECONDS), "RELAY_DEFAULT_MODEL": "m"}


@contextlib.asynccontextmanager
async def two(folder: Path, upstream: Upstream, **grace: str) -> AsyncIterator[tuple[RedisServer, Served, Served]]:
    """Two processes, of which the second is drained."""
    async with (
        redis_server(folder) as redis,
        replica(folder, upstream, redis.url, **KEPT) as staying,
        replica(folder, upstream, redis.url, **KEPT, **grace) as drained,
    ):
        yield redis, staying, drained


async def test_after_the_grace_readers_of_streams_made_elsewhere_are_sent_away_and_have_not_gone(
    tmp_path: Path,
) -> None:
    """A native client misses `[DONE]` and comes back; one of another dialect, which would take the end for the end of
    the answer, sees a cut.
    """
    more = asyncio.Event()
    async with Upstream() as upstream, two(tmp_path, upstream, **GRACE) as (redis, staying, drained):
        upstream.script((head(), chunk("a"), wait(more), chunk("b"), finish()))
        native = Reading()
        await native.begin(staying.port, events=2)
        async with connect(staying.port) as first, connect(drained.port) as ui, connect(drained.port) as back:
            await first.request("POST", "/api/chat", UI, subject("a"))
            followed = await ui.request("GET", "/api/chat/c1/stream", None, subject("a"))
            assert followed.status == 200
            cursor = {"last-event-id": f"{native.id}.{native.cursor}"}
            following = await back.request("GET", f"/chat/stream/{native.id}", None, SSE | cursor)
            drained.process.send_signal(signal.SIGTERM)
            await native.read(following, 100)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await followed.read()
            assert await drained.code() == 0
        assert native.types == ["start", "delta"]
        left_ms = await redis.client.pttl(Keys("relay").watch(native.id))
        assert left_ms > WAIT_SECONDS / 2 * 1000
        more.set()
        await native.go_on(staying.port)
        native.is_whole("ab")
        assert (upstream.opened, upstream.aborted) == (2, 0)


async def test_a_stream_that_outlives_the_grace_ends_alike_elsewhere_and_keeps_its_text(tmp_path: Path) -> None:
    """Redis is slow to take what came last: the end waits for it."""
    more = asyncio.Event()
    async with Upstream() as upstream, two(tmp_path, upstream, **GRACE) as (redis, staying, drained):
        upstream.script((head(), chunk("a"), wait(more), chunk("b"), hang()))
        read, unread = Reading(), Reading()
        await read.begin(drained.port, events=2)
        await unread.begin(drained.port, events=2)
        async with connect(staying.port) as connection:
            cursor = SSE | {"last-event-id": f"{read.id}.{read.cursor}"}
            response = await connection.request("GET", f"/chat/stream/{read.id}", None, cursor)
            redis.pause()
            more.set()
            drained.process.send_signal(signal.SIGTERM)
            await upstream.wait_for(lambda u: u.aborted == 2)
            redis.resume()
            await read.read(response)
        assert await drained.code() == 0
        read.is_whole("ab", "error")
        error = read.events[-2]["error"]
        assert (error["code"], error["retryable"], error["partial"]) == ("draining", True, True)
        for reading in (read, unread):
            result = await result_of(staying.port, reading.id)
            assert (result["status"], result["text"], result["error"]["code"]) == ("error", "ab", "draining")


async def test_the_end_is_bounded_whatever_does_not_answer(tmp_path: Path) -> None:
    """Redis is paused, and the webhook's receiver says nothing. (With a client that takes nothing, 10 s.)"""
    loop = asyncio.get_running_loop()
    async with Upstream() as upstream, Receiver("hang") as receiver, redis_server(tmp_path) as redis:
        (tmp_path / "secret").write_text("whsec_" + "c2VjcmV0" * 4)
        (tmp_path / "relay.toml").write_text(f'[webhook]\nurl = "{receiver.url}"\nsecret_file = "secret"\n')
        upstream.script((head(), chunk("a"), hang()))
        async with replica(tmp_path, upstream, redis.url, **KEPT, **GRACE) as relay:
            reading = Reading()
            async with connect(relay.port) as connection:
                response = await connection.request("POST", "/chat/stream", chat(), SSE)
                await reading.read(response, 2)
                redis.pause()
                told_at = loop.time()
                relay.process.send_signal(signal.SIGTERM)
                await reading.read(response)
            reading.is_whole("a", "error")
            async with asyncio.timeout(10 * ENDS_WITHIN_SECONDS):
                assert await relay.process.wait() == 0
            print(f"ended {loop.time() - told_at:.1f} s after the signal")
        assert receiver.received
