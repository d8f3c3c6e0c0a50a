"""Stopping an answer: from inside the loop over it, from another task or thread, and in every state it may be in."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from app.client import AsyncAnswerStream
from app.client.steps import Pause
from tests.relay import until
from tests.relay_script import delta, done, end, failed, opened, refused, start, whole
from tests.test_client_twins import DEADLINE_SECONDS, Twin, both, read, scripted, text_of, until_deleted
from tests.upstream import Answer, hang, reset, status, wait


@contextlib.asynccontextmanager
async def being_read(stream: AsyncAnswerStream) -> AsyncIterator["asyncio.Task[list[str | None]]"]:
    """Somebody else reads the stream: the task's result is how it ended, event by event."""

    async def finish_reasons() -> list[str | None]:
        events, failure = await read(stream)
        assert failure is None
        return [event.finish_reason for event in events]

    reading = asyncio.create_task(finish_reasons())
    try:
        yield reading
    finally:
        await reading


@both
async def test_stop_inside_the_loop_reads_the_end(twin: Twin) -> None:
    async with scripted(twin, *until_deleted()) as (relay, client):
        stream = client.stream("hi")
        async for event in stream:
            if event.content:
                await stream.stop()
                await stream.stop()
        await stream.stop()
        assert [(request.method, request.path) for request in relay.requests[1:]] == [("DELETE", "/chat/stream/s_1")]
    assert (event.finish_reason, event.usage is not None) == ("cancelled", True)
    assert (stream.answer.status, stream.answer.text) == ("done", "Half")


@both
async def test_stop_from_elsewhere_ends_the_wait_for_more(twin: Twin) -> None:
    async with scripted(twin, *until_deleted()) as (_, client):
        stream = client.stream("hi")
        await anext(stream)
        await anext(stream)
        async with being_read(stream) as reading:
            await stream.stop()
        assert reading.result() == ["cancelled"]


@both
async def test_stop_before_the_relay_answers_leaves(twin: Twin) -> None:
    async with scripted(twin, (hang(),)) as (relay, client):
        stream = client.stream("hi")
        async with being_read(stream) as reading:
            await relay.wait_for(lambda relay: relay.active == 1)
            for _ in range(9):  # also while the first one takes effect
                await stream.stop()
                await asyncio.sleep(0)
        assert reading.result() == ["cancelled"]
        await relay.wait_for(lambda relay: relay.aborted == 1)
        assert len(relay.requests) == 1


@both
async def test_what_is_stopped_before_it_begins_is_never_asked(twin: Twin) -> None:
    async with scripted(twin, (hang(),)) as (relay, client):
        stream = client.stream("hi")
        await stream.stop()
        events, failure = await read(stream)
        assert relay.requests == []
    assert ([event.finish_reason for event in events], failure) == (["cancelled"], None)


@both
@pytest.mark.parametrize("answer", [status(404), (reset(),)], ids=["gone", "unreachable"])
async def test_where_the_relay_cannot_be_told_the_answer_ends_all_the_same(twin: Twin, answer: Answer) -> None:
    async with scripted(twin, (opened(), start(), delta(1, "Half"), hang()), answer) as (relay, client):
        stream = client.stream("hi")
        await anext(stream)
        await anext(stream)
        async with being_read(stream) as reading:
            await stream.stop()
        assert reading.result() == ["cancelled"]
        await relay.wait_for(lambda relay: not relay.active)


@both
async def test_stop_ends_the_wait_for_another_try(twin: Twin) -> None:
    refusing = refused(503, "draining", retryable=True)
    async with scripted(twin, (opened(), start(), reset()), refusing, backoff_seconds=60) as (_, client):
        stream = client.stream("hi")
        await anext(stream)
        async with being_read(stream) as reading:  # half of the longest back-off is 4 s
            await until(lambda: isinstance(cast(Any, stream)._reading._step, Pause), DEADLINE_SECONDS)
            async with asyncio.timeout(3):
                await stream.stop()
                assert (await reading)[-1] == "cancelled"


@both
async def test_what_was_stopped_does_not_fail(twin: Twin) -> None:
    generation, deleted = until_deleted()
    lost = (*generation[:-1], reset())
    async with scripted(twin, lost, deleted, refused(410, "not_resumable")) as (relay, client):
        stream = client.stream("hi")
        await anext(stream)
        await stream.stop()
        events, failure = await read(stream)
        assert [request.method for request in relay.requests] == ["POST", "DELETE", "GET"]
    assert (text_of(events), events[-1].finish_reason, failure) == ("Half", "cancelled", None)


@both
async def test_a_failure_after_the_stop_is_an_end(twin: Twin) -> None:
    generation, deleted = until_deleted()
    failing = *generation[:-1], failed(2, "upstream_timeout", partial=True), end()
    async with scripted(twin, failing, deleted) as (_, client):
        stream = client.stream("hi")
        await anext(stream)
        await stream.stop()
        events, failure = await read(stream)
    assert ([event.finish_reason for event in events], failure) == ([None, "cancelled"], None)


@both
async def test_a_stop_after_its_client_was_closed_raises_nothing(twin: Twin) -> None:
    async with scripted(twin, (opened(), start(), delta(1, "Half"), hang())) as (_, client):
        stream = client.stream("hi")
        await anext(stream)
        await client.close()
        await stream.stop()
        await stream.close()
    assert stream.answer.status == "running"


@both
async def test_a_stop_that_comes_too_late_changes_nothing(twin: Twin) -> None:
    async with scripted(twin, whole("All")) as (relay, client):
        stream = client.stream("hi")
        events, _ = await read(stream)
        await stream.stop()
        assert len(relay.requests) == 1
    assert events[-1].finish_reason == "stop"


@both
async def test_a_stream_of_another_process_can_be_stopped(twin: Twin) -> None:
    async with scripted(twin, status(202)) as (relay, client):
        await client.attach("s_1").stop()
        assert [(request.method, request.path) for request in relay.requests] == [("DELETE", "/chat/stream/s_1")]


@both
async def test_leaving_early_closes_the_connection_and_nothing_else(twin: Twin) -> None:
    async with scripted(twin, (opened(), start(), delta(1, "Half"), wait(asyncio.Event()))) as (relay, client):
        async with client.stream("hi") as stream:
            await anext(stream)
        await relay.wait_for(lambda relay: relay.aborted == 1 and not relay.connections)
        assert len(relay.requests) == 1
    assert stream.answer.status == "running"


async def test_a_reader_may_be_cancelled_in_any_await() -> None:
    """`cancel` at the n-th turn of the loop, for every n until the answer is whole."""
    async with scripted("async", backoff_seconds=0) as (relay, client):
        for turns in range(1000):
            relay.script((opened(), start(), delta(1, "one "), reset()), (opened(), delta(2, "two"), done(3)))
            reading = asyncio.create_task(client.stream("hi").collect())
            for _ in range(turns):
                await asyncio.sleep(0)
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                assert (await reading).text == "one two"
            await relay.wait_for(lambda relay: not relay.connections and not relay.active)
            if not reading.cancelled():
                return
    raise AssertionError("no answer was ever whole")
