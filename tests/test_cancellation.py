"""Nothing is left behind, wherever a task is cancelled and whatever of ours breaks.

SQLite tests its error paths by failing the n-th call, for every n. Here the n-th await of a short stream is cancelled,
for every n, and afterwards there is no request at upstream, no task, no permit and no timer of it, and its log has
ended in exactly one terminal event.
"""

import asyncio
import contextlib
import gc
import inspect
import itertools
import os
import random
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from typing import Any, cast

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from app.api.opening import Parts
from app.api.response import StreamResponse
from app.clocks import Clocks
from app.events import Done, Failed
from app.relay import Generation
from tests.relay import SSE, Connection, Relay, ask, chat, connect, running, until
from tests.upstream import Upstream, chunk, delta, done, finish, hang, head, pause, repeat, status, usage

SWEEPS = 10


class Interruption:
    """A task factory of the loop: whoever runs `victim`, a coroutine by its qualified name, is cancelled in its n-th
    await. It notes where that was, and the generations that began meanwhile.
    """

    def __init__(self, victim: str, n: int) -> None:
        self._victim = victim
        self._n = n
        self.begun = False
        self.place: list[str] = []
        self.generations: list[Generation] = []

    def __call__(self, loop: asyncio.AbstractEventLoop, runs: Any, **options: Any) -> asyncio.Task[Any]:
        if runs.__qualname__ == "Generation._run":
            self.generations.append(inspect.getcoroutinelocals(runs)["self"])
        if runs.__qualname__ == self._victim:
            self.begun = True
            runs = Interrupted(runs, self._n, self.place)
        return asyncio.Task(runs, loop=loop, **options)


class Interrupted(Coroutine[Any, Any, Any]):
    """A coroutine whose task is cancelled as it begins to wait for the n-th time: it is cancelled in that wait."""

    def __init__(self, runs: Coroutine[Any, Any, Any], n: int, place: list[str]) -> None:
        self._runs = runs
        self._n = n
        self._place = place

    def send(self, value: Any) -> Any:
        return self._waits(self._runs.send(value))

    def throw(self, *error: Any) -> Any:
        return self._waits(self._runs.throw(*error))

    def close(self) -> None:
        self._runs.close()

    def __await__(self) -> Generator[Any, None, Any]:
        return self._runs.__await__()

    def _waits(self, awaited: Any) -> Any:
        self._n -= 1
        if self._n == 0 and (task := asyncio.current_task()):
            self._place += _path(self._runs)
            task.cancel()
        return awaited


def _path(waiting: Any) -> Generator[str, None, None]:
    """The coroutines that wait for one another, outermost first."""
    while inspect.iscoroutine(waiting):
        yield waiting.__qualname__
        waiting = waiting.cr_await


@contextlib.contextmanager
def interrupted(victim: str, n: int) -> Iterator[Interruption]:
    loop = asyncio.get_running_loop()
    interruption = Interruption(victim, n)
    loop.set_task_factory(interruption)
    try:
        yield interruption
    finally:
        loop.set_task_factory(None)


async def cancel_everywhere(
    victim: str, relay: Relay, upstream: Upstream, stream: Callable[[Interruption], Awaitable[None]], among: set[str]
) -> None:
    """Cancels each await of `victim` in turn, until a stream has no more; and again until all `among` them had theirs:
    what comes in two reads may come in one, and then the n-th await is another.
    """
    places: set[str] = set()
    for _ in range(SWEEPS):
        places |= await cancelled_in_turn(victim, relay, upstream, stream)
        if among <= places:
            return
    raise AssertionError(f"never cancelled in {among - places}")


async def cancelled_in_turn(
    victim: str, relay: Relay, upstream: Upstream, stream: Callable[[Interruption], Awaitable[None]]
) -> set[str]:
    """Where it was cancelled."""
    places: set[str] = set()
    for n in itertools.count(1):
        with interrupted(victim, n) as interruption:
            await stream(interruption)
            await nothing_remains(relay, upstream)
        for generation in interruption.generations:
            assert_ended_once(generation)
        if not interruption.place:
            break
        places |= set(interruption.place)
    return places


async def nothing_remains(relay: Relay, upstream: Upstream) -> None:
    await upstream.wait_for(lambda u: u.active == 0, 1)
    await until(lambda: not relay.generations and not tasks_of_streams())
    assert relay.permits_in_use == 0
    assert timers_of_streams() == []


def tasks_of_streams() -> list[str]:
    names = [task.get_name() for task in asyncio.all_tasks()]
    return [name for name in names if name.startswith(("generation", "departure"))]


def timers_of_streams() -> list[Any]:
    """What the loop would still call of a stream. A log's time to live is the registry's, not the stream's."""
    timers = [timer for timer in cast(Any, asyncio.get_running_loop())._scheduled if not timer.cancelled()]
    owners = Clocks, Generation, StreamResponse
    return [timer for timer in timers if isinstance(getattr(timer._callback, "__self__", None), owners)]


def assert_ended_once(generation: Generation) -> None:
    """Its log has one terminal event, and that is the last; a log that nobody may resume has forgotten it by now."""
    log = generation.log
    terminal = [entry for entry in log.everything() if isinstance(entry, Done | Failed)]
    assert log.closed is not None
    assert terminal == log.everything()[-1:] == [log.closed] * log.resumable


async def test_a_generation_may_be_cancelled_in_any_await() -> None:
    settings = {"max_retry_wait_seconds": 0.01, "log_lag_bytes": 1024}
    texts = chunk("a"), chunk("x" * 100_000), chunk("y" * 100_000)
    whole = (head(), delta(role="assistant"), *texts, finish(), usage(1, 2), done(), hang())
    async with Upstream() as upstream, running(upstream.base_url, **settings) as relay:

        async def stream(_: Interruption) -> None:
            upstream.script(status(503), whole)
            response, events = await ask(relay.port, chat())
            (end,) = (event for event in events if event.get("type") == "done" or "error" in event)
            assert end.get("type") == "done" or end["error"]["code"] == "draining"
            assert response.status == 503 or events[-2:] == [end, {"type": "[DONE]"}]

        among = {"Upstream.open", "sleep", "Body.pour", "Turns.take", "MemoryLog.room", "Answer.finish"}
        await cancel_everywhere("Generation._run", relay, upstream, stream, among)
    await upstream.wait_for(lambda u: not u.connections)


@pytest.mark.parametrize("headers", [{}, SSE], ids=["plain", "with ids"])
async def test_a_response_may_be_cancelled_in_any_await(headers: dict[str, str]) -> None:
    async with Upstream() as upstream, running(upstream.base_url, wait_seconds=0.01) as relay:
        upstream.script((head(), chunk("a"), chunk("x" * 600_000), finish()))

        async def stream(interruption: Interruption) -> None:
            async with connect(relay.port) as client:
                client.write("POST", "/chat/stream", chat(), headers)
                client.stop_reading()
                await until(lambda: interruption.begun)
                await until(lambda: relay.blocked or not relay.server_state.tasks)
                client.read_again()
                with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                    await (await client.head()).read()

        among = {"StreamResponse._held", "StreamResponse._rest", "Turns.take", "FlowControl.drain"}
        await cancel_everywhere("RequestResponseCycle.run_asgi", relay, upstream, stream, among)


# A fault in our own code, made by a value that no setting can have.


@pytest.mark.parametrize(
    ("broken", "answered"),
    [({"decode": None}, 500), ({"usage_wait_s": None}, 200)],
    ids=["before the first content", "mid-stream"],
)
async def test_a_fault_of_a_generation_is_told_logged_and_leaves_nothing(
    broken: dict[str, object], answered: int
) -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        break_terms(relay, broken)
        upstream.script((head(), chunk("secret"), pause(0.05), finish(), hang()))
        with capture_logs() as logs:
            response, events = await ask(relay.port, chat(), headers={"x-request-id": "r-1"})
        (error,) = (event["error"] for event in events if "error" in event)
        assert (response.status, error["code"], error["retryable"]) == (answered, "internal", False)
        assert (error["request_id"], error["partial"]) == ("r-1", answered == 200)
        (line,) = (line for line in logs if line["event"] == "internal")
        assert (line["request_id"], line["exc_info"]) == ("r-1", True)
        await nothing_remains(relay, upstream)


async def test_a_fault_of_a_response_is_told_logged_and_leaves_nothing() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        break_setting(relay, "heartbeat_seconds")
        upstream.script((head(), chunk("a"), hang()))
        with capture_logs() as logs:
            response, (refusal,) = await ask(relay.port, chat(), headers={"x-request-id": "r-1"})
        assert (response.status, refusal["error"]["code"], refusal["error"]["request_id"]) == (500, "internal", "r-1")
        assert [line["request_id"] for line in logs if line["event"] == "internal"] == ["r-1"]
        await nothing_remains(relay, upstream)


async def test_a_fault_after_the_head_ends_the_connection_without_an_end_of_the_stream() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as client:
        upstream.script((head(), chunk("x" * 100_000), finish()))
        response, _ = await ask(relay.port, chat(), headers=SSE)
        cast(Any, relay._app.state.parts.streams).means = replace(relay.streams.means, turns=cast(Any, None))
        with capture_logs() as logs:
            replayed = await client.request("GET", f"/chat/stream/{response.headers['x-stream-id']}")
            with pytest.raises(asyncio.IncompleteReadError):
                await replayed.read()
        assert [line["request_id"] for line in logs if line["event"] == "internal"] == [
            replayed.headers["x-request-id"]
        ]
        await nothing_remains(relay, upstream)


def break_terms(relay: Relay, broken: dict[str, Any]) -> None:
    means = relay.streams.means
    cast(Any, relay.streams).means = replace(means, terms=replace(means.terms, **broken))


def break_setting(relay: Relay, name: str) -> None:
    parts: Parts = relay._app.state.parts
    settings = parts.settings.model_copy(update={name: None})
    relay._app.state.parts = replace(parts, settings=settings)


# And after all of it.


async def test_many_streams_that_end_anyhow_leave_no_task_and_no_descriptor() -> None:
    chance = random.Random(1)
    async with Upstream() as upstream, running(upstream.base_url, wait_seconds=0.05) as relay:
        upstream.script((head(), repeat(chunk("x"), 20, interval=0.002), finish()))
        for model, answer in {"held": (hang(),), "failing": status(503), "silent": (head(), hang())}.items():
            upstream.script(answer, model=model)

        async def visit() -> None:
            model = chance.choice(["m", "m", "held", "failing", "silent"])
            async with connect(relay.port) as client:
                client.write("POST", "/chat/stream", chat(model=model), chance.choice([{}, SSE]))
                await leave_after(client, seconds=chance.uniform(0, 0.1))

        def held() -> tuple[int, int]:
            pooled = 2 * len(upstream.connections)  # both ends are in this process
            return len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd")) - pooled

        before = held()
        for _ in range(10):
            await asyncio.gather(*(visit() for _ in range(20)))
        await nothing_remains(relay, upstream)
        await until(lambda: held() == before and not relay.server_state.connections)


async def leave_after(client: Connection, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await client.reader.read()


async def test_a_stream_that_is_over_waits_for_no_collector() -> None:
    """What is in a circle takes its memory until the collector comes by: of streams, after thousands of others."""
    async with Upstream() as upstream, running(upstream.base_url, wait_seconds=0.01) as relay:
        upstream.script((head(), repeat(chunk("x"), 5, interval=0.002), finish()))
        for model, answer in {"failing": status(503), "silent": (head(), chunk("x"), hang())}.items():
            upstream.script(answer, model=model)
        with nothing_collected() as garbage:
            for headers in ({}, SSE):
                await ask(relay.port, chat(), headers=headers)
                await ask(relay.port, chat(model="failing"), headers=headers)
                async with connect(relay.port) as client:
                    await client.request("POST", "/chat/stream", chat(model="silent"), headers)
            await nothing_remains(relay, upstream)
            await until(lambda: not relay.server_state.connections)
    assert {kind for kind in garbage if kind.startswith("app.")} == set()


@contextlib.contextmanager
def nothing_collected() -> Iterator[set[str]]:
    """The kinds of what is only to be had by the collector when the block ends."""
    garbage: set[str] = set()
    gc.collect()
    gc.disable()
    try:
        yield garbage
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        garbage |= {f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
