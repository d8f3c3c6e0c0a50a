"""Leaving is noticed in every phase, and what upstream counts proves it. The requirement is 100 ms; a second fails.

The policy `on_disconnect` decides what a departure means; that it is noticed at once holds under each of them.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Literal

import pytest

from app.admission.callers import Caller
from tests.relay import SSE, Connection, Relay, ask, chat, connect, event_of, fetch, running, subject, text_of, until
from tests.upstream import (
    Answer,
    Upstream,
    answer,
    blackhole,
    chunk,
    comments,
    finish,
    hang,
    head,
    repeat,
    silent,
    status,
    wait,
)

Leaving = Literal["close", "half-close"]

NOBODY = Caller("", None)

FLOOD: Answer = (head(), repeat(chunk("x" * 4000)))
LONG: Answer = (head(), repeat(chunk("x" * 4000), 300), finish())
"""More than the buffers between two processes hold."""

LONG_EVENTS = 302


def leave(client: Connection, how: Leaving) -> None:
    if how == "close":
        client.close()
    else:
        client.writer.write_eof()


async def nothing_remains(relay: Relay, upstream: Upstream, *, aborted: int = 1) -> None:
    """Upstream saw us go, and of the generation there is no task and no permit."""
    await upstream.wait_for(lambda u: u.active == 0, 1)
    await until(lambda: not relay.generations)
    assert (upstream.aborted, relay.permits_in_use) == (aborted, 0)
    assert tasks_of_streams() == []


def tasks_of_streams() -> list[str]:
    names = [task.get_name() for task in asyncio.all_tasks()]
    return [name for name in names if name.startswith(("generation", "departure"))]


async def take(blocks: AsyncIterator[str], count: int) -> list[dict[str, Any]]:
    return [event_of(await anext(blocks)) for _ in range(count)]


@pytest.mark.parametrize("how", ["close", "half-close"])
@pytest.mark.parametrize("held", [silent(), (head(), hang()), comments(0.01)], ids=["silent", "head", "comments"])
async def test_leaving_while_the_status_is_held_ends_upstream(held: Answer, how: Leaving) -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as client:
        upstream.script(held)
        client.write("POST", "/chat/stream", chat())
        await upstream.wait_for(lambda u: u.active == 1)
        leave(client, how)
        await nothing_remains(relay, upstream)


async def test_leaving_while_connecting_takes_the_connection_back() -> None:
    with blackhole() as base_url:
        fillers = connecting_to(base_url)
        async with running(base_url) as relay, connect(relay.port) as client:
            client.write("POST", "/chat/stream", chat())
            await until(lambda: connecting_to(base_url) == fillers + 1)
            client.close()
            await until(lambda: connecting_to(base_url) == fillers and not relay.generations)
            assert (relay.permits_in_use, tasks_of_streams()) == (0, [])


def connecting_to(base_url: str) -> int:
    """Sockets of this machine that wait for an answer to their SYN from there."""
    port = int(base_url.split(":")[2].split("/")[0])
    with open("/proc/self/net/tcp", encoding="ascii") as table:
        return sum(row.split()[2:4] == [f"0100007F:{port:04X}", "02"] for row in table)


async def test_leaving_between_two_attempts_prevents_the_next() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as client:
        upstream.script(status(503, headers={"retry-after": "4"}))
        client.write("POST", "/chat/stream", chat())
        await upstream.wait_for(lambda u: u.ended == 1)
        client.close()
        await nothing_remains(relay, upstream, aborted=0)
        assert len(upstream.requests) == 1


@pytest.mark.parametrize("how", ["close", "half-close"])
@pytest.mark.parametrize("headers", [{}, {"x-on-disconnect": "cancel"} | SSE], ids=["plain", "with ids"])
async def test_leaving_mid_stream_ends_upstream(headers: dict[str, str], how: Leaving) -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as client:
        upstream.script((head(), repeat(chunk("x"), interval=0.01)))
        response = await client.request("POST", "/chat/stream", chat(), headers)
        await take(response.blocks(), 3)
        leave(client, how)
        await nothing_remains(relay, upstream)


async def test_leaving_after_a_large_question_ends_upstream() -> None:
    """A body's large last piece makes the server stop reading, and it is by reading that a departure is seen."""
    question = json.dumps(chat("x" * 200_000)).encode()
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as client:
        upstream.script((head(), hang()))
        length = {"content-type": "application/json", "content-length": str(len(question))}
        client.write("POST", "/chat/stream", question[:1], length)
        await fetch(relay.port, "GET", "/healthz")  # by now it waits for the rest
        client.writer.write(question[1:])
        await upstream.wait_for(lambda u: u.active == 1)
        leave(client, "close")
        await nothing_remains(relay, upstream)


@pytest.mark.parametrize("how", ["close", "half-close"])
async def test_leaving_a_blocked_send_ends_upstream(how: Leaving) -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as client:
        upstream.script(FLOOD)
        client.write("POST", "/chat/stream", chat())
        client.stop_reading()
        await until(lambda: relay.blocked, 5)
        leave(client, how)
        await nothing_remains(relay, upstream)


async def test_a_client_that_never_reads_is_cut_off_and_ends_upstream() -> None:
    async with (
        Upstream() as upstream,
        running(upstream.base_url, send_timeout_seconds=0.3) as relay,
        connect(relay.port) as client,
    ):
        upstream.script(FLOOD)
        client.write("POST", "/chat/stream", chat())
        client.stop_reading()
        await until(lambda: relay.blocked, 5)
        await nothing_remains(relay, upstream)
        assert not relay.server_state.connections


async def test_a_client_that_asks_again_without_having_read_is_cut_off() -> None:
    async with Upstream() as upstream, running(upstream.base_url, send_timeout_seconds=0.3) as relay:
        upstream.script(answer("x" * 40_000))
        begun, _ = await ask(relay.port, chat(), headers=SSE)
        path = f"/chat/stream/{begun.headers['x-stream-id']}"
        log = relay.streams.find(begun.headers["x-stream-id"], NOBODY).log
        async with connect(relay.port) as client:
            client.stop_reading()
            while not relay.blocked:
                answered = relay.server_state.total_requests
                client.write("GET", path)
                await until(lambda n=answered: relay.server_state.total_requests == n + 1)  # type: ignore[misc]
            client.write("GET", path)
            await until(lambda: log.readers)
            await until(lambda: not log.readers and not relay.server_state.connections)


async def test_cutting_off_a_reader_leaves_another_undisturbed() -> None:
    released = asyncio.Event()
    async with Upstream() as upstream, running(upstream.base_url, send_timeout_seconds=0.3) as relay:
        upstream.script((*LONG[:-1], wait(released), *LONG[-1:]))
        async with connect(relay.port) as stalled, connect(relay.port) as client:
            begun = await stalled.request("POST", "/chat/stream", chat(), SSE)
            stalled.stop_reading()
            blocks = (await client.request("GET", f"/chat/stream/{begun.headers['x-stream-id']}")).blocks()
            events = await take(blocks, LONG_EVENTS - 1)
            (generation,) = relay.generations
            await until(lambda: len(generation.log.readers) == 1)
            released.set()
            events += [event_of(block) async for block in blocks]
    assert [event["seq"] for event in events[:-1]] == list(range(LONG_EVENTS))
    assert (events[-2]["finish_reason"], events[-1]) == ("stop", {"type": "[DONE]"})


@pytest.mark.parametrize("while_it", ["is finished", "runs"])
async def test_leaving_a_replay_ends_that_reader_alone(while_it: str) -> None:
    released = asyncio.Event()
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(LONG if while_it == "is finished" else (*LONG[:-1], wait(released), *LONG[-1:]))
        async with connect(relay.port) as client, connect(relay.port) as second:
            response = await client.request("POST", "/chat/stream", chat(), SSE)
            blocks = response.blocks()
            events = await take(blocks, LONG_EVENTS - 1)
            log = relay.streams.find(response.headers["x-stream-id"], NOBODY).log
            second.write("GET", f"/chat/stream/{response.headers['x-stream-id']}")
            second.stop_reading()
            await until(lambda: relay.blocked, 5)
            second.close()
            await until(lambda: not any(reader.behind for reader in log.readers))
            released.set()
            events += [event_of(block) async for block in blocks]
    assert ([event["seq"] for event in events[:-1]], events[-2]["finish_reason"]) == ([*range(LONG_EVENTS)], "stop")
    assert (upstream.ended, upstream.aborted) == (1, 0)


@pytest.mark.parametrize("leaver", ["the creator", "the second"])
async def test_the_departure_of_one_of_two_readers_disturbs_nothing(leaver: str) -> None:
    released = asyncio.Event()
    async with Upstream() as upstream, running(upstream.base_url, wait_seconds=0.05) as relay:
        upstream.script((head(), chunk("a"), wait(released), chunk("b"), finish()))
        async with connect(relay.port) as creator, connect(relay.port) as second:
            begun = await creator.request("POST", "/chat/stream", chat(), SSE)
            joined = await second.request("GET", f"/chat/stream/{begun.headers['x-stream-id']}")
            (generation,) = relay.generations
            leaving, staying = (creator, joined) if leaver == "the creator" else (second, begun)
            leaving.close()
            await until(lambda: len(generation.log.readers) == 1)
            with pytest.raises(TimeoutError):  # longer than the grace would have been
                await asyncio.wait_for(generation.over(), 0.2)
            released.set()
            assert text_of(await staying.events()) == "ab"
    assert (upstream.ended, upstream.aborted) == (1, 0)


async def test_two_requests_sent_at_once_end_both() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as client:
        upstream.script((head(), repeat(chunk("x"), interval=0.01)))
        client.write("POST", "/chat/stream", chat())
        client.write("POST", "/chat/stream", chat())
        async with asyncio.timeout(1):
            await client.reader.read()
        await nothing_remains(relay, upstream, aborted=upstream.opened)
        assert upstream.opened < 2


@pytest.mark.parametrize("then", ["stays", "leaves"])
async def test_a_second_request_during_a_stream_ends_both(then: str) -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as client:
        upstream.script((head(), repeat(chunk("x"), interval=0.01)))
        response = await client.request("POST", "/chat/stream", chat())
        client.write("POST", "/chat/stream", chat())
        if then == "leaves":
            client.close()
        await nothing_remains(relay, upstream)
        with pytest.raises(asyncio.IncompleteReadError):
            await response.read()
        assert len(upstream.requests) == 1


# The policies: what a departure means.


async def test_wait_ends_upstream_when_nobody_is_back_in_time() -> None:
    async with Upstream() as upstream, running(upstream.base_url, wait_seconds=0.3) as relay:
        upstream.script((head(), chunk("a"), hang()))
        async with connect(relay.port) as client:
            await client.request("POST", "/chat/stream", chat(on_disconnect="wait"))
        left_at = asyncio.get_running_loop().time()
        await upstream.wait_for(lambda u: u.active == 0, 1.3)
        assert upstream.last_abort_at is not None
        assert upstream.last_abort_at - left_at > 0.29
        await nothing_remains(relay, upstream)


@pytest.mark.parametrize("stays_seconds", [0.1, 0.5], ids=["shorter than the grace", "longer than the grace"])
async def test_a_reader_that_returns_and_leaves_again_starts_the_grace_anew(stays_seconds: float) -> None:
    loop = asyncio.get_running_loop()
    async with Upstream() as upstream, running(upstream.base_url, wait_seconds=0.4) as relay:
        upstream.script((head(), repeat(chunk("x"), interval=0.02)))
        async with connect(relay.port) as client:
            response = await client.request("POST", "/chat/stream", chat(), SSE)
        async with connect(relay.port) as client:
            response = await client.request("GET", f"/chat/stream/{response.headers['x-stream-id']}")
            returned_at, blocks = loop.time(), response.blocks()
            while loop.time() < returned_at + stays_seconds:
                await anext(blocks)
        left_again_at = loop.time()
        await upstream.wait_for(lambda u: u.active == 0, 1.4)
        assert upstream.last_abort_at is not None
        assert upstream.last_abort_at - left_again_at > 0.39


async def test_continue_needs_the_operators_permission() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        response, (refusal,) = await ask(relay.port, chat(on_disconnect="continue"))
        assert (response.status, refusal["error"]["code"], refusal["error"]["param"]) == (
            403,
            "forbidden",
            "on_disconnect",
        )
        assert upstream.requests == []


async def test_continue_runs_to_its_end_unread() -> None:
    released = asyncio.Event()
    async with Upstream() as upstream, running(upstream.base_url, allow_continue=True) as relay:
        upstream.script((head(), chunk("a"), wait(released), chunk("b"), finish()))
        async with connect(relay.port) as client:
            response = await client.request("POST", "/chat/stream", chat(on_disconnect="continue"))
        (generation,) = relay.generations
        await until(lambda: generation.lingering.detached)
        released.set()
        await upstream.wait_for(lambda u: u.ended == 1)
        async with connect(relay.port) as client:
            path = f"/chat/stream/{response.headers['x-stream-id']}/result"
            result = await (await client.request("GET", path)).json()
        assert (result["status"], result["text"], upstream.aborted) == ("done", "ab", 0)


async def test_a_caller_may_leave_two_generations_running() -> None:
    async with Upstream() as upstream, running(upstream.base_url, allow_continue=True) as relay:
        upstream.script((head(), chunk("a"), hang()))
        for left, (caller, aborted) in enumerate([("a", 0), ("a", 0), ("a", 1), ("b", 1)], 1):
            async with connect(relay.port) as client:
                await client.request("POST", "/chat/stream", chat(on_disconnect="continue"), subject(caller))
            await until(lambda: not any(generation.log.readers for generation in relay.generations))
            await upstream.wait_for(lambda u, n=aborted: u.aborted == n, 1)  # type: ignore[misc]
            assert upstream.active == left - aborted


@pytest.mark.parametrize("on_disconnect", ["wait", "continue"])
async def test_before_the_head_a_departure_always_cancels(on_disconnect: str) -> None:
    async with (
        Upstream() as upstream,
        running(upstream.base_url, allow_continue=True) as relay,
        connect(relay.port) as client,
    ):
        upstream.script(silent())
        client.write("POST", "/chat/stream", chat(on_disconnect=on_disconnect))
        await upstream.wait_for(lambda u: u.active == 1)
        client.close()
        await nothing_remains(relay, upstream)


async def test_under_an_idempotency_key_a_departure_before_the_head_may_return() -> None:
    released = asyncio.Event()
    headers = {"idempotency-key": "k1"} | subject("a")
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script((wait(released), *answer("Hello")))
        async with connect(relay.port) as client:
            client.write("POST", "/chat/stream", chat(), headers)
            await upstream.wait_for(lambda u: u.active == 1)
        (generation,) = relay.generations
        await until(lambda: not generation.log.readers)
        released.set()
        _, events = await ask(relay.port, chat(), headers=headers)
        assert text_of(events) == "Hello"
        assert (len(upstream.requests), upstream.aborted) == (1, 0)
