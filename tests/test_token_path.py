"""What a token passes on its way: no task is woken for it, and what takes more than a moment is a task's again."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Coroutine, Generator, Iterator
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from app.api.response import StreamResponse
from app.events import Delta
from app.log.reader import TAKE_ENTRIES
from app.relay import Generation
from tests.relay import SSE, Relay, chat, connect, event_of, running, until
from tests.upstream import Upstream, chunk, done, finish, head, wait

TOKENS = 20


class Counted(Coroutine[Any, Any, Any]):
    """A coroutine whose steps are counted."""

    def __init__(self, runs: Coroutine[Any, Any, Any], steps: Counter[str]) -> None:
        self._runs = runs
        self._steps = steps

    def send(self, value: Any) -> Any:
        self._steps[cast(Any, self._runs).__qualname__] += 1
        return self._runs.send(value)

    def throw(self, *error: Any) -> Any:
        return self._runs.throw(*error)

    def close(self) -> None:
        self._runs.close()

    def __await__(self) -> Generator[Any, None, Any]:
        return self._runs.__await__()


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """How often tasks that begin in the block went on, by the name of what they run."""
    steps: Counter[str] = Counter()
    loop = asyncio.get_running_loop()
    loop.set_task_factory(lambda loop, runs, **named: asyncio.Task(Counted(cast(Any, runs), steps), loop=loop, **named))
    try:
        yield steps
    finally:
        loop.set_task_factory(None)


def response_to(generation: Generation) -> StreamResponse:
    [reader] = generation.log.readers
    assert reader._take is not None
    return cast(StreamResponse, cast(Any, reader._take).__self__)


async def one_stream(relay: Relay) -> Generation:
    await until(lambda: relay.generations and relay.generations[0].log.next_seq > 1)
    return relay.generations[0]


@pytest.mark.parametrize("headers", [{}, SSE], ids=["plain", "with ids"])
async def test_a_token_wakes_no_task(headers: dict[str, str]) -> None:
    told = [asyncio.Event() for _ in range(TOKENS)]
    paced = [step for token, event in enumerate(told) for step in (chunk(f"{token} "), wait(event))]
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as client:
        upstream.script((head(), chunk("first "), *paced, finish(), done()))
        with counted() as steps:
            response = await client.request("POST", "/chat/stream", chat(), headers)
            blocks = response.blocks()
            while event_of(await anext(blocks))["content"] != "0 ":
                pass
            before = steps.copy()
            for token, event in enumerate(told[:-1], 1):
                event.set()
                assert event_of(await anext(blocks))["content"] == f"{token} "
            woken = steps - before
            told[-1].set()
            rest = [event_of(block)["type"] async for block in blocks]
    assert woken["Generation._run"] == woken["RequestResponseCycle.run_asgi"] == 0
    assert rest == ["done", "[DONE]"]
    assert before["Generation._run"] > 1
    assert before["RequestResponseCycle.run_asgi"] > 1


async def test_a_fault_where_a_token_is_written_is_told_logged_and_costs_no_other_reader() -> None:
    more = asyncio.Event()
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as other:
        upstream.script((head(), chunk("a"), wait(more), chunk("b"), finish(), done()))
        async with connect(relay.port) as client:
            response = await client.request("POST", "/chat/stream", chat(), SSE)
            generation = await one_stream(relay)
            await until(lambda: generation.log.readers and next(iter(generation.log.readers))._take)
            cast(Any, response_to(generation))._encoder = None
            second = await other.request("GET", f"/chat/stream/{generation.id}", headers=SSE)
            await until(lambda: all(reader._take for reader in generation.log.readers))
            with capture_logs() as logs:
                more.set()
                with pytest.raises(asyncio.IncompleteReadError):
                    await response.read()
            assert [line["request_id"] for line in logs if line["event"] == "internal"] == [
                response.headers["x-request-id"]
            ]
            whole = await second.events()
    assert [event["content"] for event in whole if event["type"] == "delta"] == ["a", "b"]
    assert whole[-1]["type"] == "[DONE]"


async def test_more_than_a_reader_takes_at_once_does_not_wait_for_what_comes_next() -> None:
    more = asyncio.Event()
    many = TAKE_ENTRIES + 5
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script((head(), chunk("Hel"), wait(more), chunk("lo"), finish(), done()))
        async with connect(relay.port) as client:
            response = await client.request("POST", "/chat/stream", chat(), SSE)
            generation = await one_stream(relay)
            await until(lambda: generation.log.readers and next(iter(generation.log.readers))._take is not None)
            generation.log.append([Delta("x")] * many)
            blocks = aiter(response.blocks())
            said = [event_of(await anext(blocks))["content"] for _ in range(2 + many)]
            more.set()
    assert said == ["", "Hel", *["x"] * many]
