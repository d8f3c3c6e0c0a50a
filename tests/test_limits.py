"""Each phase has a limit on a clock of the relay's own, and only what carries something moves it."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import pytest

from tests.relay import SSE, Relay, Response, ask, chat, connect, event_of, running, text_of, until
from tests.upstream import (
    Answer,
    Step,
    Upstream,
    blackhole,
    chunk,
    delta,
    event,
    finish,
    hang,
    head,
    pause,
    repeat,
    send,
    status,
    usage,
)

Asked = tuple[Response, list[dict[str, Any]]]

MARGIN_SECONDS: Final = 2.0
"""How late a limit may come on a slow machine."""

NOTHING_CARRIED: Final[dict[str, Step]] = {
    "silence": hang(),
    "comments": repeat(send(b": keep-alive\n\n"), interval=0.02),
    "roles": repeat(delta(role="assistant", content=""), interval=0.02),
    "empty deltas": repeat(delta(content=""), interval=0.02),
    "chunks without choices": repeat(event({"choices": []}), interval=0.02),
    "pings": repeat(send(b"event: ping\ndata: {}\n\n"), interval=0.02),
    "usage": repeat(usage(1, 1), interval=0.02),
}
CARRYING: Final[dict[str, Step]] = {
    "content": chunk("a"),
    "reasoning": delta(reasoning_content="a"),
    "refusal": delta(refusal="a"),
    "a tool call": delta(tool_calls=[{"index": 0, "id": "c", "function": {"name": "f", "arguments": "a"}}]),
}


async def ask_each(relay: Relay, upstream: Upstream, answers: Mapping[str, Answer]) -> dict[str, Asked]:
    """All of them at once, each as a model of its own."""
    for name, answer in answers.items():
        upstream.script(answer, model=name)
    async with asyncio.timeout(MARGIN_SECONDS):
        asked = await asyncio.gather(*(ask(relay.port, chat(model=name)) for name in answers))
    return dict(zip(answers, asked, strict=True))


def timed_out(error: dict[str, Any], phase: str, limit: str, *, partial: bool = False) -> bool:
    """Whether it is the contract's answer to a limit that was passed."""
    told = (error["code"], error["phase"], error["retryable"], error["partial"])
    return told == ("upstream_timeout", phase, True, partial) and limit in error["message"]


async def test_connecting_has_a_limit() -> None:
    with blackhole() as base_url:
        async with running(base_url, timeout_connect_seconds=0.2, attempts=1) as relay, asyncio.timeout(MARGIN_SECONDS):
            response, (refusal,) = await ask(relay.port, chat())
    assert response.status == 504
    assert timed_out(refusal["error"], "connect", "connecting")


async def test_only_content_stops_the_first_token_clock() -> None:
    async with Upstream() as upstream, running(upstream.base_url, timeout_first_token_seconds=0.2) as relay:
        asked = await ask_each(relay, upstream, {name: (head(), step) for name, step in NOTHING_CARRIED.items()})
        for name, (response, (refusal,)) in asked.items():
            assert response.status == 504, name
            assert timed_out(refusal["error"], "first_token", "first_token limit of 0.2 s"), name
        await upstream.wait_for(lambda u: u.aborted == len(asked))


async def test_a_limit_passed_after_the_status_left_is_an_event() -> None:
    limits = {"timeout_first_token_seconds": 0.2, "hold_status_seconds": 0.05}
    async with Upstream() as upstream, running(upstream.base_url, **limits) as relay:
        upstream.script((hang(),))
        response, events = await ask(relay.port, chat())
    assert (response.status, [event["type"] for event in events]) == (200, ["start", "error", "[DONE]"])
    assert timed_out(events[1]["error"], "first_token", "first_token limit")


async def test_only_content_moves_the_idle_clock() -> None:
    async with Upstream() as upstream, running(upstream.base_url, timeout_idle_seconds=0.2) as relay:
        answers = {name: (head(), chunk("a"), step) for name, step in NOTHING_CARRIED.items()}
        asked = await ask_each(relay, upstream, answers)
        for name, (_, events) in asked.items():
            assert [event["type"] for event in events] == ["start", "delta", "error", "[DONE]"], name
            assert timed_out(events[2]["error"], "stream", "idle limit of 0.2 s", partial=True), name
        await upstream.wait_for(lambda u: u.aborted == len(asked))


async def test_whatever_carries_something_moves_the_idle_clock() -> None:
    limits = {"timeout_first_token_seconds": 0.4, "timeout_idle_seconds": 0.4}
    async with Upstream() as upstream, running(upstream.base_url, **limits) as relay:
        answers = {name: (head(), repeat(step, 12, interval=0.05), finish()) for name, step in CARRYING.items()}
        asked = await ask_each(relay, upstream, answers)
    for name, (_, events) in asked.items():
        assert events[-2]["type"] == "done", name
        assert events[-2]["timings"]["total_s"] > 0.5, name


async def test_retries_are_inside_the_first_token_limit() -> None:
    limits = {"timeout_first_token_seconds": 0.2, "attempts": 10, "max_retry_wait_seconds": 0.1}
    async with Upstream() as upstream, running(upstream.base_url, **limits) as relay:
        upstream.script(status(503))
        async with asyncio.timeout(0.2 + MARGIN_SECONDS):
            response, (refusal,) = await ask(relay.port, chat())
        assert response.status == 504
        assert timed_out(refusal["error"], "first_token", "first_token limit")
        assert 1 < len(upstream.requests) < 10


@pytest.mark.parametrize("answer", [(hang(),), (head(), repeat(chunk("x"), interval=0.02))], ids=["held", "streaming"])
async def test_the_total_limit_ends_whatever_runs(answer: Answer) -> None:
    async with Upstream() as upstream, running(upstream.base_url, timeout_total_seconds=0.3) as relay:
        upstream.script(answer)
        async with asyncio.timeout(MARGIN_SECONDS):
            response, events = await ask(relay.port, chat())
        if response.status == 504:
            assert timed_out(events[0]["error"], "first_token", "total limit of 0.3 s")
        else:
            assert [event["type"] for event in events[-2:]] == ["error", "[DONE]"]
            assert timed_out(events[-2]["error"], "stream", "total limit of 0.3 s", partial=True)
        await upstream.wait_for(lambda u: u.aborted == 1)


@pytest.mark.parametrize(("name", "phase"), [("first_token", "first_token"), ("idle", "stream"), ("total", "stream")])
async def test_a_request_may_ask_for_its_own_limits(name: str, phase: str) -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script((head(), *([] if name == "first_token" else [chunk("a")]), hang()))
        async with asyncio.timeout(MARGIN_SECONDS):
            _, events = await ask(relay.port, chat(timeouts={name: 0.2}))
    error = next(event["error"] for event in events if "error" in event)
    assert timed_out(error, phase, f"{name} limit of 0.2 s", partial=phase == "stream")


async def test_a_request_may_ask_for_its_own_connect_limit() -> None:
    with blackhole() as base_url:
        async with running(base_url, attempts=1) as relay, asyncio.timeout(MARGIN_SECONDS):
            response, (refusal,) = await ask(relay.port, chat(timeouts={"connect": 0.2}))
    assert response.status == 504
    assert timed_out(refusal["error"], "connect", "connecting")


async def test_a_limit_above_the_operators_cap_is_refused_and_the_cap_told() -> None:
    caps = {"connect": 30, "first_token": 300, "idle": 300, "total": 3600}
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        for name, cap in caps.items():
            response, (refusal,) = await ask(relay.port, chat(timeouts={name: cap + 1}))
            assert (response.status, refusal["error"]["param"]) == (422, f"timeouts.{name}")
            assert f"at most {cap} s" in refusal["error"]["message"]
        assert upstream.requests == []


# After upstream's finish_reason the answer is whole: no limit makes it a failure.


async def test_the_wait_for_usage_ends_as_done() -> None:
    async with Upstream() as upstream, running(upstream.base_url, usage_wait_seconds=0.2) as relay:
        steps = NOTHING_CARRIED | {"content": repeat(chunk("more"), interval=0.02)}
        answers = {name: (head(), chunk("a"), finish(), step) for name, step in steps.items()}
        asked = await ask_each(relay, upstream, answers)
        ends = {name: (events[-2]["type"], events[-2].get("finish_reason")) for name, (_, events) in asked.items()}
        assert ends == dict.fromkeys(steps, ("done", "stop"))
        await upstream.wait_for(lambda u: u.aborted == len(asked))


@pytest.mark.parametrize("name", ["timeout_idle_seconds", "timeout_total_seconds"])
async def test_other_limits_do_not_fail_a_whole_answer(name: str) -> None:
    async with Upstream() as upstream, running(upstream.base_url, usage_wait_seconds=0.5, **{name: 0.2}) as relay:
        upstream.script((head(), chunk("a"), finish(), hang()))
        _, events = await ask(relay.port, chat())
    assert (events[-2]["type"], events[-2]["usage"]["source"]) == ("done", "estimated")


async def test_usage_may_come_later_than_the_idle_limit() -> None:
    limits = {"timeout_idle_seconds": 0.1, "usage_wait_seconds": 2}
    async with Upstream() as upstream, running(upstream.base_url, **limits) as relay:
        upstream.script((head(), chunk("a"), finish(), pause(0.2), usage(3, 9)))
        _, events = await ask(relay.port, chat())
    assert (events[-2]["type"], events[-2]["usage"]["total_tokens"]) == ("done", 12)


# While a reader is too far behind, upstream is not read, and its silence is not its own.


async def test_idle_stands_still_while_a_reader_is_behind() -> None:
    async with Upstream() as upstream, running(upstream.base_url, timeout_idle_seconds=0.2) as relay:
        upstream.script((head(), repeat(chunk("x" * 4000), 400), finish()))
        async with connect(relay.port) as client:
            response = await client.request("POST", "/chat/stream", chat())
            (generation,) = relay.generations
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(generation.over(), 0.7)
            assert generation.log.crowded
            events = await response.events()
    assert (events[-2]["type"], len(text_of(events))) == ("done", 400 * 4000)


async def test_total_runs_on_while_a_reader_is_behind() -> None:
    async with Upstream() as upstream, running(upstream.base_url, timeout_total_seconds=0.4) as relay:
        upstream.script((head(), repeat(chunk("x" * 4000))))
        async with connect(relay.port) as client:
            response = await client.request("POST", "/chat/stream", chat())
            (generation,) = relay.generations
            await asyncio.wait_for(generation.over(), 0.4 + MARGIN_SECONDS)
            await upstream.wait_for(lambda seen: seen.aborted == 1)
            events = await response.events()
    assert timed_out(events[-2]["error"], "stream", "total limit", partial=True)


# What a client hears while there is nothing to say, and how long it may listen.


@pytest.mark.parametrize(
    ("answer", "phase"),
    [((hang(),), "waiting"), ((head(), hang()), "waiting"), ((head(), chunk("a"), hang()), "streaming")],
    ids=["no head", "head", "content"],
)
async def test_pings_tell_what_is_waited_for(answer: Answer, phase: str) -> None:
    settings = {"heartbeat_seconds": 0.1, "hold_status_seconds": 0}
    async with Upstream() as upstream, running(upstream.base_url, **settings) as relay:
        upstream.script(answer)
        pings = await heard(relay.port, {"type": "ping", "phase": phase}, 3)
    assert all(ping.keys() == {"type", "content", "phase", "elapsed_s"} and ping["content"] == "" for ping in pings)
    assert 0.1 <= pings[0]["elapsed_s"] < pings[2]["elapsed_s"] < 0.3 + MARGIN_SECONDS


async def test_pings_come_while_upstream_is_being_connected_to() -> None:
    with blackhole() as base_url:
        async with running(base_url, heartbeat_seconds=0.1, hold_status_seconds=0) as relay:
            await heard(relay.port, {"type": "ping", "phase": "connecting"}, 2)


async def heard(port: int, wanted: dict[str, str], count: int) -> list[dict[str, Any]]:
    """The first events that are like the one that is wanted; the client asks for ids."""
    async with connect(port) as client, asyncio.timeout(MARGIN_SECONDS):
        response = await client.request("POST", "/chat/stream", chat(), SSE)
        found: list[dict[str, Any]] = []
        blocks = response.blocks()
        while len(found) < count:
            event = event_of(await anext(blocks))
            found += [event] if wanted.items() <= event.items() else []
    return found


async def test_no_ping_comes_while_bytes_flow() -> None:
    async with Upstream() as upstream, running(upstream.base_url, heartbeat_seconds=0.4) as relay:
        upstream.script((head(), repeat(chunk("x"), 40, interval=0.02), finish()))
        _, events = await ask(relay.port, chat())
    assert events[-2]["timings"]["total_s"] > 0.7
    assert {event["type"] for event in events} == {"start", "delta", "done", "[DONE]"}


async def test_a_connection_ends_at_its_age_and_its_client_comes_back() -> None:
    age = {"max_connection_seconds": 0.3, "hold_status_seconds": 0.1}
    async with Upstream() as upstream, running(upstream.base_url, **age) as relay, connect(relay.port) as client:
        upstream.script((head(), repeat(chunk("x"), interval=0.02)))
        async with asyncio.timeout(0.3 + MARGIN_SECONDS):
            response = await client.request("POST", "/chat/stream", chat(), SSE)
            events = await response.events()
        assert events[-1]["type"] == "delta"
        path = f"/chat/stream/{response.headers['x-stream-id']}"
        returned = await client.request("GET", path, headers={"last-event-id": events[-1]["_id"]})
        seqs = [event_of(block).get("seq") async for block in returned.blocks()]
        assert next(seq for seq in seqs if seq is not None) == events[-1]["seq"] + 1  # before it there may be a ping
        assert (len(upstream.requests), upstream.aborted) == (1, 0)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
async def test_a_connection_too_old_is_cut_where_clients_take_an_end_for_the_end(path: str) -> None:
    said = {"id": "1", "role": "user", "content": "hi", "parts": [{"type": "text", "text": "hi"}]}
    body = {"stream": True} if path.startswith("/v1") else {"id": "c"}
    age = {"max_connection_seconds": 0.3, "hold_status_seconds": 0.1, "default_model": "m"}
    async with Upstream() as upstream, running(upstream.base_url, **age) as relay, connect(relay.port) as client:
        upstream.script((head(), repeat(chunk("x"), interval=0.02)))
        response = await client.request("POST", path, body | {"messages": [said]})
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await response.read()
        assert response.status == 200


async def test_a_connection_ends_at_its_age_however_far_its_client_is_behind() -> None:
    age = {"max_connection_seconds": 0.3, "hold_status_seconds": 0.1}
    async with Upstream() as upstream, running(upstream.base_url, **age) as relay, connect(relay.port) as client:
        upstream.script((head(), repeat(chunk("x" * 4000), 400), finish()))
        response = await client.request("POST", "/chat/stream", chat(), SSE)
        old_at = asyncio.get_running_loop().time() + 0.35
        await until(lambda: asyncio.get_running_loop().time() > old_at)
        assert (await response.events())[-1]["type"] == "delta"
