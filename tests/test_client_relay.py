"""The Python client on a real relay, whose wire is cut: what upstream said arrives, and the relay is left clean."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from app.client import AsyncRelayClient
from tests.answers import ANSWERS
from tests.browser import Wire
from tests.relay import Relay, running, until
from tests.test_client_twins import Twin, both, chat_with, client_of, read
from tests.upstream import Upstream, answer, chunk, finish, hang, head, wait


class Scene(msgspec.Struct):
    """A client, a wire that can be cut, a relay, an upstream by script."""

    client: AsyncRelayClient
    wire: Wire
    relay: Relay
    upstream: Upstream


@contextlib.asynccontextmanager
async def scene(twin: Twin, **settings: Any) -> AsyncIterator[Scene]:
    async with Upstream() as upstream, running(upstream.base_url, default_model="m", **settings) as relay:
        wire = Wire(relay.port)
        await wire.open()
        url = f"http://127.0.0.1:{wire.port}"
        try:
            async with client_of(twin, url, reconnects=8, backoff_seconds=0.01) as client:
                yield Scene(client, wire, relay, upstream)
        finally:
            await wire.close()


@both
@pytest.mark.parametrize("name", ANSWERS)
async def test_every_answer_arrives_whole_although_the_wire_is_cut(twin: Twin, name: str) -> None:
    expected, gone = ANSWERS[name], asyncio.Event()
    opening, rest = itertools.islice(steps := expected.steps(), 3), steps
    async with scene(twin) as at:
        at.upstream.script((*opening, wait(gone), *rest))
        stream = at.client.stream(name)
        for n in range(10_000):
            if n % 100 == 2:  # the first time before upstream has gone on
                at.wire.cut()
                gone.set()
            if (await anext(stream)).type in ("done", "error"):
                break
        _, failure = await read(stream)
        said = stream.answer
    assert (said.text, said.reasoning) == (expected.text, expected.reasoning)
    calls = [(call.id, call.name, "".join(call.pieces)) for call in expected.calls]
    assert [(call.id, call.name, call.arguments) for call in said.tool_calls] == calls
    assert (failure.code if failure else None) == expected.failure
    assert said.status == ("error" if expected.failure else "done")


@both
async def test_another_process_comes_back_to_a_stream(twin: Twin) -> None:
    released = asyncio.Event()
    async with scene(twin) as at, client_of(twin, at.client.url) as other:
        goes_on = head(), chunk("one "), wait(released), chunk("two"), finish()
        at.upstream.script(answer("Before."), goes_on)
        await at.client.stream("hi").collect()  # from here on a client with cookies would be somebody of its own
        async with at.client.stream("hi") as left:
            while not left.answer.text:
                await anext(left)
        assert left.id is not None
        assert (await other.result(left.id)).status == "running"
        rest = other.attach(left.id, after=left.seq)
        released.set()
        events, _ = await read(rest)
        assert "".join(event.content for event in events) == "two"
        assert (await other.attach(left.id).collect()).text == "one two"
        assert (await other.result(left.id)).text == "one two"
        assert await read(other.attach(left.id, after=rest.seq)) == ([], None)


@both
@pytest.mark.parametrize("held", [True, False], ids=["before the first token", "in the middle"])
async def test_stop_ends_the_generation_and_leaves_nothing(twin: Twin, held: bool) -> None:
    async with scene(twin) as at:
        at.upstream.script((head(), hang()) if held else (head(), chunk("Half"), hang()))
        chat = chat_with(at.client)
        stream = chat.stream("hi")
        while not (held or stream.answer.text):
            await anext(stream)
        reading = asyncio.create_task(read(stream))
        await at.upstream.wait_for(lambda upstream: upstream.active == 1)
        await chat.stop()
        events, failure = await reading
        assert (events[-1].finish_reason, failure) == ("cancelled", None)
        await at.upstream.wait_for(lambda upstream: upstream.aborted == 1 and not upstream.connections)
        await until(lambda: not at.relay.generations and not at.relay.permits_in_use)
    assert [message.content for message in chat.history] == ([] if held else ["hi", "Half"])
