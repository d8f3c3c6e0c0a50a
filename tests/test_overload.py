"""Overload sheds before it slows: who finds room is served, who waits is served in turn, all others know it at once."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any, Final

import msgspec
import pytest

from app.admission.pace import MAX_RETRY_SECONDS, spread_s
from app.turns import Openings, Turns
from tests.places import Hall
from tests.relay import SSE, Connection, Relay, Response, ask, chat, connect, fetch, running, subject, text_of, until
from tests.upstream import Answer, Upstream, answer, chunk, done, finish, hang, head, wait

CAPACITY: Final = 10
QUEUED: Final = 5
CLIENTS: Final = 3 * CAPACITY
AT_ONCE_SECONDS: Final = 0.5
"""Ten times what the relay is to keep: others may be at work on the machine."""

NOWHERE: Final = "http://127.0.0.1:9/v1"
FRIEND: Final = "https://app.example.com"


class Told(msgspec.Struct):
    """What one of a crowd was told, and how many seconds after its request had left."""

    number: int
    response: Response
    after_s: float
    rest: list[dict[str, Any]]


def held(released: asyncio.Event) -> Answer:
    return head(), chunk("a"), wait(released), chunk("b"), finish(), done()


async def one_of_a_crowd(connection: Connection, number: int) -> Told:
    connection.write("POST", "/chat/stream", chat(str(number)))
    asked_at = time.monotonic()
    response = await connection.head()
    after_s = time.monotonic() - asked_at
    refused = response.status != 200
    return Told(number, response, after_s, [await response.json()] if refused else await response.events())


@contextlib.asynccontextmanager
async def full(**settings: Any) -> AsyncIterator[tuple[Relay, Upstream]]:
    """A relay that generates all that it may, and lets nobody wait."""
    async with Upstream() as upstream, running(upstream.base_url, max_streams=1, max_queued=0, **settings) as relay:
        upstream.script((head(), chunk("a"), hang()))
        async with connect(relay.port) as connection:
            await connection.request("POST", "/chat/stream", chat())
            yield relay, upstream


async def crowd(relay: Relay, upstream: Upstream) -> list[Told]:
    """All ask in one moment; who was let in gets its tokens when all others have been told."""
    released = asyncio.Event()
    upstream.script(held(released))
    async with contextlib.AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(connect(relay.port)) for _ in range(CLIENTS)]
        asking = [asyncio.create_task(one_of_a_crowd(each, number)) for number, each in enumerate(connections)]
        await until(lambda: sum(task.done() for task in asking) == CLIENTS - CAPACITY - QUEUED, 5)
        await upstream.wait_for(lambda seen: seen.active == CAPACITY)
        released.set()
        return [await task for task in asking]


def numbers(upstream: Upstream) -> list[int]:
    return [int(request.body["messages"][0]["content"]) for request in upstream.requests]


async def test_three_times_the_capacity() -> None:
    settings = {"max_streams": CAPACITY, "max_queued": QUEUED, "hold_status_seconds": 0}
    async with Upstream() as upstream, running(upstream.base_url, **settings) as relay:
        for again in (1, 2):  # whoever was counted the first time, and not taken off, would be missing the second time
            told = await crowd(relay, upstream)
            served = [one for one in told if one.response.status == 200]
            refused = [one for one in told if one.response.status != 200]
            assert [text_of(one.rest) for one in served] == ["ab"] * (CAPACITY + QUEUED)
            assert [one.rest[-2]["type"] for one in served] == ["done"] * len(served)
            assert {(one.response.status, one.rest[0]["error"]["code"]) for one in refused} == {(503, "overloaded")}
            assert all(int(one.response.headers["retry-after"]) >= 1 for one in refused)
            assert not any(name.startswith("ratelimit") for one in refused for name in one.response.headers)
            assert max(one.after_s for one in refused) < AT_ONCE_SECONDS
            assert len(upstream.requests) == again * (CAPACITY + QUEUED)
            assert sorted(numbers(upstream)[-len(served) :]) == [one.number for one in served]
            await until(lambda: not relay.generations)
            capacity = relay.streams.means.capacity
            assert (capacity.in_use, capacity.queued) == (0, 0)


async def test_the_queue_is_served_in_the_order_of_arrival() -> None:
    released = asyncio.Event()
    settings = {"max_streams": 2, "max_queued": QUEUED}
    async with Upstream() as upstream, running(upstream.base_url, **settings) as relay:
        upstream.script(held(released))
        tasks = []
        for number in range(2 + QUEUED):
            tasks.append(asyncio.create_task(ask(relay.port, chat(str(number)))))
            capacity = relay.streams.means.capacity
            await until(lambda: capacity.in_use + capacity.queued == len(tasks))  # noqa: B023 — awaited in the turn
        released.set()
        for task in tasks:
            _, events = await task
            assert text_of(events) == "ab"
    assert numbers(upstream) == [*range(2 + QUEUED)]


@pytest.mark.parametrize(
    ("path", "headers", "kind"),
    [
        ("/chat/stream", {}, "application/json"),
        ("/chat/stream", SSE, "text/event-stream"),
        ("/v1/chat/completions", SSE, "application/json"),
        ("/api/chat", {}, "application/json"),
        ("/ag-ui", {}, "application/json"),
    ],
)
async def test_a_refusal_waits_for_no_body(path: str, headers: dict[str, str], kind: str) -> None:
    async with full() as (relay, _), connect(relay.port) as connection:
        connection.write("POST", path, None, headers | {"content-type": "application/json", "content-length": "9"})
        refused = await connection.head()
        body = await refused.read()
        assert (refused.status, refused.headers["content-type"].partition(";")[0]) == (503, kind)
        assert b"all streams are taken" in body
        assert refused.headers["x-request-id"].encode() in body


async def test_who_was_refused_may_ask_again_on_the_same_connection() -> None:
    async with full() as (relay, upstream), connect(relay.port) as connection:
        for _ in range(3):
            refused = await connection.request("POST", "/chat/stream", chat())
            assert (refused.status, (await refused.json())["error"]["code"]) == (503, "overloaded")
        upstream.script(answer("a"))
        relay.generations[0].cancel()
        await until(lambda: not relay.permits_in_use)
        served = await connection.request("POST", "/chat/stream", chat())
        assert text_of(await served.events()) == "a"


@pytest.mark.parametrize("by", ["last-event-id", "idempotency-key"])
async def test_who_comes_back_to_a_stream_is_never_shed(by: str) -> None:
    keyed = subject("a") | SSE | {"idempotency-key": "k"}
    settings = {"max_streams": 1, "max_queued": 0}
    async with Upstream() as upstream, running(upstream.base_url, **settings) as relay, connect(relay.port) as first:
        upstream.script((head(), chunk("a"), hang()))
        begun = await first.request("POST", "/chat/stream", chat(), keyed)
        cursor = {"last-event-id": f"{begun.headers['x-stream-id']}.0"}
        async with connect(relay.port) as second, connect(relay.port) as third:
            headers = keyed if by == "idempotency-key" else subject("a") | SSE | cursor
            back = await second.request("POST", "/chat/stream", chat(), headers)
            assert (back.status, back.headers["x-stream-id"]) == (200, begun.headers["x-stream-id"])
            assert (await third.request("POST", "/chat/stream", chat())).status == 503
    assert len(upstream.requests) == 1


async def test_a_page_elsewhere_may_read_that_it_was_refused() -> None:
    async with full(cors_origins=(FRIEND,)) as (relay, _):
        refused, _ = await fetch(relay.port, "POST", "/chat/stream", chat(), {"origin": FRIEND})
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (503, FRIEND)
    assert "retry-after" in refused.headers["access-control-expose-headers"]
    assert int(refused.headers["retry-after"]) >= 1


async def test_probes_and_stops_pass_while_all_is_full() -> None:
    async with full() as (relay, upstream):
        stop = f"/chat/stream/{relay.generations[0].id}"
        for method, path, expected in (("GET", "/healthz", 200), ("GET", "/readyz", 200), ("DELETE", stop, 202)):
            assert (await fetch(relay.port, method, path))[0].status == expected
        await upstream.wait_for(lambda seen: seen.aborted == 1)


@pytest.mark.parametrize(
    ("limit", "status", "words"), [(1, 503, "all upstreams are busy; try again"), (2, 400, "JSON"), (None, 400, "JSON")]
)
async def test_where_all_upstreams_are_full_nobody_is_read(limit: int | None, status: int, words: str) -> None:
    async with Upstream() as upstream:
        upstreams = {
            "one": {"base_url": upstream.base_url, "models": ["m"], "max_streams": 1},
            "other": {"base_url": upstream.base_url, "models": ["n"], "max_streams": limit},
        }
        upstream.script((head(), chunk("a"), hang()))
        settings = {"upstreams": upstreams, "max_queued": 0}
        async with running(NOWHERE, **settings) as relay, connect(relay.port) as first, connect(relay.port) as second:
            assert (await first.request("POST", "/chat/stream", chat())).status == 200
            assert (await second.request("POST", "/chat/stream", chat(model="n"))).status == 200
            response, body = await fetch(relay.port, "POST", "/chat/stream", b"no JSON")
    assert response.status == status
    assert words in body.decode()


# What is decided, and when.


@pytest.mark.parametrize(
    ("running_now", "waiting", "coming", "places", "words"),
    [
        (2, 0, 0, None, None),
        (3, 0, 0, None, None),
        (3, 1, 0, None, None),
        (3, 2, 0, None, "all streams are taken; try again"),
        (3, 1, 1, None, "all streams are taken; try again"),
        (1, 0, 3, None, None),
        (1, 0, 4, None, "all streams are taken; try again"),
        (1, 0, 2, 0, "all upstreams are busy; try again"),
        (1, 0, 2, 1, None),
        (1, 0, 3, 1, "all upstreams are busy; try again"),
        (3, 1, 0, 9, None),
    ],
)
def test_one_more_is_shed_where_all_room_is_taken_or_asked_for(
    running_now: int, waiting: int, coming: int, places: int | None, words: str | None
) -> None:
    hall = Hall(max_streams=3, max_queued=2, a=running_now)
    for _ in range(running_now + waiting):
        hall.enter()
    assert (hall.capacity.in_use, hall.capacity.queued) == (running_now, waiting)
    refusal = hall.capacity.shed(coming, places, hall.now)
    assert (None if refusal is None else refusal.problem.message) == words


def test_nobody_is_shed_by_a_relay_that_closes() -> None:
    hall = Hall(max_streams=1, max_queued=0)
    hall.enter()
    hall.capacity.close()
    assert hall.capacity.shed(0, None, hall.now) is None  # its route says that it drains


def test_those_that_are_coming_are_waited_for_as_well() -> None:
    hall = Hall(max_streams=2, max_queued=4)
    first_stream, _ = hall.enter(), hall.enter()
    hall.now = 10.0
    hall.release(first_stream)
    hall.enter()
    first = hall.capacity.shed(4, None, hall.now)
    later = hall.capacity.shed(40, None, hall.now)
    assert first is not None
    assert later is not None
    assert (first.problem.retry_after_s, later.problem.retry_after_s) == (10 / 2 * (4 + 1), MAX_RETRY_SECONDS)


@pytest.mark.parametrize(
    ("wait_s", "told"),
    [
        (1.0, {1, 2}),
        (1.2, {2, 3, 4}),
        (2.0, {2, 3, 4}),
        (30.0, {*range(30, 61)}),
        (MAX_RETRY_SECONDS, {*range(30, 61)}),
    ],
)
def test_a_herd_is_told_to_come_back_at_many_moments(wait_s: float, told: set[int]) -> None:
    assert {spread_s(wait_s, share / 1000) for share in range(1000)} == told


async def turns_taken(turns: Turns, loops: int) -> list[int]:
    """How many of a herd have had their turn after each of so many turns of the loop."""
    herd = [asyncio.create_task(turns.take()) for _ in range(20)]
    taken = []
    for _ in range(loops):
        await asyncio.sleep(0)
        taken.append(sum(task.done() for task in herd))
    for task in herd:
        task.cancel()
    return taken


async def test_openings_come_one_in_a_turn_of_the_loop() -> None:
    taken = await turns_taken(Openings(), 12)
    assert all(after - before <= 1 for before, after in pairwise(taken))
    assert taken[-1] >= 8


async def test_openings_come_more_slowly_while_the_loop_is_busy() -> None:
    def work() -> None:
        time.sleep(0.004)
        busy.append(loop.call_soon(work))

    loop = asyncio.get_running_loop()
    busy: list[asyncio.Handle] = []
    loop.call_soon(work)
    taken = await turns_taken(Openings(), 16)
    busy[-1].cancel()
    assert 2 <= taken[-1] <= 8


async def test_who_opens_alone_waits_for_nobody() -> None:
    openings = Openings()
    alone = openings.take()
    with pytest.raises(StopIteration):
        alone.send(None)


async def test_it_is_this_turn_of_the_loop_that_may_be_long_not_the_time_since_another_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    openings, now = Openings(), 100.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    for _ in range(3):
        now += 0.005
        alone = openings.take()
        with pytest.raises(StopIteration):
            alone.send(None)
        await asyncio.sleep(0)


async def test_who_leaves_while_it_waits_for_its_opening_takes_nobodys_turn() -> None:
    openings = Openings()
    first, leaving, staying = (asyncio.create_task(openings.take()) for _ in range(3))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait_for(staying, 1)
    assert (first.done(), leaving.cancelled()) == (True, True)
