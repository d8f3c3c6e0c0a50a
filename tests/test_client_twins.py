"""The two faces of the client: what the other files try both with, and that they are the same."""

import asyncio
import contextlib
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final, Literal, Self, cast

import pytest

from app.client import (
    AnswerStream,
    AsyncAnswerStream,
    AsyncRelayClient,
    AsyncStreamingChat,
    ClientEvent,
    RelayClient,
    RelayProblem,
    StreamingChat,
)
from tests.relay_script import delta, done, opened, start, url_of, whole
from tests.upstream import Answer, Exchange, Upstream, head, wait

DEADLINE_SECONDS: Final = 5.0
OVER: Final = object()

both: Final = pytest.mark.parametrize("twin", ["async", "sync"])
Twin = Literal["async", "sync"]


class InThread:
    """A blocking object with its twin's face: each call is made in another thread, so that the scripted relay, which
    lives in the test's loop, can answer it."""

    def __init__(self, inner: Any) -> None:
        self.inner: Final = inner

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.inner.__enter__)
        return self

    async def __aexit__(self, *error: object) -> None:
        await asyncio.to_thread(self.inner.__exit__, *error)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        item = await asyncio.to_thread(next, self.inner, OVER)
        if item is OVER:
            raise StopAsyncIteration
        return item

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.inner, name)
        match name:
            case "stream" | "attach" | "ask":
                return lambda *given, **named: InThread(value(*given, **named))
            case "check" | "result" | "collect" | "answer" | "stop" | "close" if callable(value):
                return lambda *given, **named: asyncio.to_thread(value, *given, **named)
        return value


def client_of(twin: Twin, url: str, **options: Any) -> AsyncRelayClient:
    if twin == "async":
        return AsyncRelayClient(url, **options)
    return cast(AsyncRelayClient, InThread(RelayClient(url, **options)))


def chat_with(client: AsyncRelayClient, **options: Any) -> AsyncStreamingChat:
    facade: object = client
    if isinstance(facade, InThread):
        return cast(AsyncStreamingChat, InThread(StreamingChat(facade.inner, **options)))
    return AsyncStreamingChat(client, **options)


@contextlib.asynccontextmanager
async def scripted(twin: Twin, *answers: Answer, **options: Any) -> AsyncIterator[tuple[Upstream, AsyncRelayClient]]:
    """A client of a relay by script. Nothing of it may be left in the end, neither a connection nor a task."""
    before = asyncio.all_tasks()
    async with Upstream() as relay:
        relay.script(*answers)
        async with client_of(twin, url_of(relay), **({"reconnects": 2, "backoff_seconds": 0.01} | options)) as client:
            yield relay, client
        await relay.wait_for(lambda relay: not relay.connections and not relay.active)
        left = {task for task in asyncio.all_tasks() - before if task.get_name() != "upstream answer"}
        assert left == set()


async def read(stream: AsyncAnswerStream) -> tuple[list[ClientEvent], RelayProblem | None]:
    """All the events, and what was raised after them."""
    events: list[ClientEvent] = []
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            async for event in stream:
                events.append(event)  # noqa: PERF401 — they are wanted although an exception follows
    except RelayProblem as problem:
        return events, problem
    return events, None


def text_of(events: list[ClientEvent]) -> str:
    return "".join(event.content for event in events)


def until_deleted(text: str = "Half") -> tuple[Answer, Answer]:
    """A generation that goes on until it is deleted, and the answer to the DELETE."""
    deleted = asyncio.Event()

    async def release(_: Exchange) -> None:
        deleted.set()

    generation = opened(), start(), delta(1, text), wait(deleted), done(2, "cancelled")
    return generation, (head(202, {}, content_length=0), release)


def face(kind: type) -> Iterator[tuple[str, str]]:
    """What a class offers, without what makes the difference."""
    for name, member in inspect.getmembers(kind):
        if not name.startswith("_"):
            yield name, str(inspect.signature(member)) if callable(member) else type(member).__name__


def without_async(signature: str) -> str:
    for one, other in (("Async", ""), ("async_client", "sync_client"), ("[str, None, None]", "[str, None]")):
        signature = signature.replace(one, other)
    return signature


@pytest.mark.parametrize(
    ("one", "other"),
    [(RelayClient, AsyncRelayClient), (AnswerStream, AsyncAnswerStream), (StreamingChat, AsyncStreamingChat)],
)
def test_the_twins_offer_the_same(one: type, other: type) -> None:
    offered = {name: without_async(signature) for name, signature in face(other)}
    assert {name: without_async(signature) for name, signature in face(one)} == offered
    assert inspect.signature(one).parameters.keys() == inspect.signature(other).parameters.keys()


async def test_the_blocking_twin_starts_no_thread_and_no_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("only the caller's thread may work")

    def converse(url: str, patched: Callable[..., None]) -> str:
        patched(threading.Thread, "start", refuse)
        patched(asyncio, "new_event_loop", refuse)
        with RelayClient(url) as client:
            stopped = client.stream("hi")
            for event in stopped:
                if event.content:
                    stopped.stop()
            return stopped.answer.text + client.stream("hi").collect().text

    async with Upstream() as relay:
        relay.script(*until_deleted("One, "), whole("two"))
        assert await asyncio.to_thread(converse, url_of(relay), monkeypatch.setattr) == "One, two"
        monkeypatch.undo()
