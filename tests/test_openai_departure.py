"""Leaving, in the ways in which OpenAI's clients leave, stops the generation; heartbeats disturb none of them."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from openai import AsyncOpenAI, OpenAI

from tests.browser import Wire
from tests.recipes import ended, relay_of_answers, started_node, url_of
from tests.relay import Relay, until
from tests.test_openai_python import DEADLINE_SECONDS, asking, at_once, sdk
from tests.upstream import Answer, Upstream, chunk, chunks, delta, done, finish, hang, head, silent, wait

NODE: Final = (Path(__file__).parent / "clients" / "openai-departure.mjs").read_text()
HALF: Final[Answer] = (head(), chunks("Ha", "lf"), hang())


async def gone(upstream: Upstream) -> None:
    await upstream.wait_for(lambda upstream: upstream.aborted == 1)
    assert len(upstream.requests) == 1


async def test_closing_a_stream_stops_it() -> None:
    async with relay_of_answers() as (relay, upstream), sdk(relay) as client:
        upstream.script(HALF)
        stream: Any = await client.chat.completions.create(**asking("", stream=True))
        await anext(stream)
        await stream.close()
        await gone(upstream)


async def test_a_break_out_of_a_stream_stops_it_where_it_is_a_context() -> None:
    async with relay_of_answers() as (relay, upstream), sdk(relay) as client:
        upstream.script(HALF)
        stream: Any = await client.chat.completions.create(**asking("", stream=True))
        async with stream:
            async for _ in stream:
                break
        await gone(upstream)


async def test_closing_a_stream_in_a_thread_stops_it() -> None:
    def leave(relay: Relay) -> None:
        with OpenAI(base_url=f"{url_of(relay)}/v1", api_key="any", timeout=DEADLINE_SECONDS) as client:
            stream: Any = client.chat.completions.create(**asking("", stream=True))
            next(stream)
            stream.close()

    async with relay_of_answers() as (relay, upstream):
        upstream.script(HALF)
        await asyncio.to_thread(leave, relay)
        await gone(upstream)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("answer", [silent(), (head(), delta(role="assistant"), hang())])
async def test_a_request_that_is_cancelled_is_stopped(stream: bool, answer: Answer) -> None:
    async with relay_of_answers() as (relay, upstream), sdk(relay) as client:
        upstream.script(answer)
        asked = asyncio.create_task(client.chat.completions.create(**asking("", stream=stream)))
        await upstream.wait_for(lambda upstream: upstream.opened == 1)
        asked.cancel()
        await gone(upstream)


async def test_a_whole_answer_that_nobody_waits_for_is_stopped() -> None:
    async with relay_of_answers() as (relay, upstream), sdk(relay) as client:
        upstream.script(HALF)
        asked = asyncio.create_task(client.chat.completions.create(**asking("")))
        await until(lambda: [each for each in relay.generations if each.log.carrying], deadline_seconds=5)
        asked.cancel()
        await gone(upstream)


@pytest.mark.parametrize("way", ["break", "controller", "signal", "whole"])
async def test_leaving_in_node_stops_it(way: str) -> None:
    async with relay_of_answers() as (relay, upstream):
        upstream.script(HALF)
        async with started_node(NODE, way, url_of(relay)) as process:
            assert process.stdout is not None
            async with asyncio.timeout(DEADLINE_SECONDS * 2):
                if way == "whole":  # nothing of it comes before its end
                    await upstream.wait_for(lambda upstream: upstream.opened == 1)
                    process.send_signal(signal.SIGUSR2)
                assert await process.stdout.readline() == b"left\n"
            await gone(upstream)
            assert process.returncode is None  # it was not the end of the process that ended the connection


class Listening(Wire):
    """A wire on which the heartbeats can be heard."""

    heard = b""

    def _up_to_cut(self, passed: bytes, data: bytes) -> tuple[bytes, bool]:
        self.heard += data
        return super()._up_to_cut(passed, data)

    async def beats(self, count: int) -> None:
        await until(lambda: self.heard.count(b": ping\n") >= count, deadline_seconds=5)


@asynccontextmanager
async def beating() -> AsyncIterator[tuple[Relay, Upstream, Listening]]:
    async with relay_of_answers(heartbeat_seconds=0.05, hold_status_seconds=0.05) as (relay, upstream):
        wire = Listening(relay.port)
        await wire.open()
        yield relay, upstream, wire
        await wire.close()


async def played(upstream: Upstream, wire: Listening, asked: "asyncio.Task[str]") -> str:
    """What a client reads of an answer with two heartbeats in each of its gaps, before the first chunk as well."""
    gaps = [asyncio.Event() for _ in range(4)]
    steps = (delta(role="assistant", content=""), chunk("one "), chunk("two"))
    waits = [wait(gap) for gap in gaps]
    upstream.script((head(), waits[0], steps[0], waits[1], steps[1], waits[2], steps[2], waits[3], finish(), done()))
    for number, gap in enumerate(gaps, start=1):
        await wire.beats(2 * number)
        gap.set()
    return await asked


async def test_heartbeats_disturb_no_stream() -> None:
    async def read(client: AsyncOpenAI) -> str:
        stream: Any = await client.chat.completions.create(**asking("", stream=True))
        return "".join([each.choices[0].delta.content or "" async for each in stream])

    async with beating() as (_, upstream, wire):
        base_url = f"http://127.0.0.1:{wire.port}/v1"
        async with AsyncOpenAI(base_url=base_url, api_key="any", max_retries=0, timeout=DEADLINE_SECONDS) as client:
            assert await played(upstream, wire, asyncio.create_task(read(client))) == "one two"
    assert b"ping\n\n" not in wire.heard


async def test_heartbeats_disturb_no_stream_in_node() -> None:
    async def read(port: int) -> str:
        async with started_node(NODE, "read", f"http://127.0.0.1:{port}") as process:
            ran = await ended(process)
            assert (ran.stderr, ran.code) == ("", 0)
            return ran.stdout

    async with beating() as (_, upstream, wire):
        assert await played(upstream, wire, asyncio.create_task(read(wire.port))) == "one two"


async def test_no_heartbeat_is_written_into_a_whole_answer() -> None:
    released = asyncio.Event()
    async with relay_of_answers(heartbeat_seconds=0.05) as (relay, upstream):
        upstream.script((head(), chunk("slow"), wait(released), finish(), done()))
        asked = asyncio.create_task(at_once(relay, ""))
        await until(lambda: [each for each in relay.generations if each.clocks.elapsed_s > 0.3], deadline_seconds=5)
        released.set()
        assert (await asked)["text"] == "slow"
