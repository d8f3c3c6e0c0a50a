"""One key, one generation: who asks again under an `Idempotency-Key` attaches, and pays once."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from tests.relay import Relay, ask, chat, connect, event_of, fetch, running, text_of, until
from tests.upstream import Answer, Upstream, answer, chunk, finish, hang, head, reset, status, wait

ATTEMPTS = 2
CROWD = 50
HERE = {"cookie": f"relay_subject={'a' * 32}"}
ELSEWHERE = {"cookie": f"relay_subject={'b' * 32}"}
SAME_ORIGIN = {"sec-fetch-site": "same-origin"}


def keyed(key: str = "k-1", caller: Mapping[str, str] = HERE) -> dict[str, str]:
    return {**caller, "idempotency-key": key}


async def test_the_same_key_attaches_to_what_runs_and_to_what_is_over() -> None:
    more = asyncio.Event()
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as connection:
        upstream.script((head(), chunk("Hel"), wait(more), chunk("lo"), finish()))
        first = await connection.request("POST", "/chat/stream", chat(), keyed())
        blocks = first.blocks()
        events = [event_of(await anext(blocks)) for _ in range(2)]
        second = asyncio.create_task(ask(relay.port, chat(), headers=keyed()))
        more.set()
        events += [event_of(block) async for block in blocks]
        responses = [await second, await ask(relay.port, chat(), headers=keyed())]
    assert text_of(events) == "Hello"
    assert [(r.headers["x-stream-id"], seen) for r, seen in responses] == [(first.headers["x-stream-id"], events)] * 2
    assert len(upstream.requests) == 1


async def test_a_crowd_under_one_key_is_one_generation() -> None:
    async with Upstream() as upstream, running(upstream.base_url, max_readers_per_stream=CROWD) as relay:
        upstream.script(answer("Hel", "lo"))
        streams = await asyncio.gather(*(ask(relay.port, chat(), headers=keyed()) for _ in range(CROWD)))
    assert {text_of(events) for _, events in streams} == {"Hello"}
    assert len({response.headers["x-stream-id"] for response, _ in streams}) == 1
    assert len(upstream.requests) == 1


async def test_a_crowd_under_one_key_fails_as_one_generation() -> None:
    refuse = asyncio.Event()
    more: dict[str, Any] = {"max_readers_per_stream": CROWD, "attempts": ATTEMPTS}
    async with Upstream() as upstream, running(upstream.base_url, **more) as relay:
        upstream.script((wait(refuse), *status(503)))
        crowd = [asyncio.create_task(ask(relay.port, chat(), headers=keyed())) for _ in range(CROWD)]
        await until(lambda: relay.generations and len(relay.generations[0].log.readers) == CROWD, 5)
        refuse.set()
        answers = await asyncio.gather(*crowd)
    told = [(response.status, body[0]["error"]["upstream_status"]) for response, body in answers]
    assert told == [(502, 503)] * CROWD
    assert len({response.headers["x-stream-id"] for response, _ in answers}) == 1
    assert len(upstream.requests) == ATTEMPTS


@pytest.mark.parametrize("over", [True, False])
async def test_another_body_under_the_key_is_a_conflict(over: bool) -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as connection:
        upstream.script(answer("Hello") if over else (head(), chunk("Hello"), hang()))
        first = await connection.request("POST", "/chat/stream", chat(), keyed())
        assert len(await first.events()) == 4 if over else await anext(first.blocks())
        response, [body] = await ask(relay.port, chat("another"), headers=keyed())
        error = body["error"]
        assert (response.status, error["code"], error["retryable"]) == (409, "idempotency_conflict", False)
        assert response.headers["x-should-retry"] == "false"
    assert len(upstream.requests) == 1


async def test_another_question_of_a_get_under_the_key_is_a_conflict() -> None:
    headers = keyed() | SAME_ORIGIN
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(answer("Hello"))
        path = "/chat/stream?model=m&message="
        answers = [await fetch(relay.port, "GET", path + message, headers=headers) for message in ("a", "a", "b")]
    assert [response.status for response, _ in answers] == [200, 200, 409]
    assert answers[0][1] == answers[1][1]
    assert len(upstream.requests) == 1


async def test_another_callers_key_is_another_key() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(answer("for a"), answer("for b"))
        _, mine = await ask(relay.port, chat(), headers=keyed())
        _, theirs = await ask(relay.port, chat("another"), headers=keyed(caller=ELSEWHERE))
        _, mine_again = await ask(relay.port, chat(), headers=keyed())
    assert (text_of(mine), text_of(theirs)) == ("for a", "for b")
    assert mine_again == mine
    assert len(upstream.requests) == 2


MALFORMED = ["", "a b", "\u00e9", "x" * 256, "a\tb"]


@pytest.mark.parametrize(
    "headers",
    [{"idempotency-key": "k-1"}, keyed(caller={"cookie": "relay_subject=short"}), *map(keyed, MALFORMED)],
    ids=["no cookie", "no good cookie", *map(repr, MALFORMED)],
)
async def test_a_key_that_cannot_be_kept_is_refused_by_its_name(headers: dict[str, str]) -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        response, [body] = await ask(relay.port, chat(), headers=headers)
    error = body["error"]
    assert (response.status, error["code"], error["param"]) == (400, "invalid_request", "Idempotency-Key")
    assert upstream.requests == []


End = Callable[[Relay], Awaitable[object]]


async def nothing(_relay: Relay) -> None:
    """The stream ends by itself."""


async def stop(relay: Relay) -> None:
    await until(lambda: relay.generations, 5)
    await fetch(relay.port, "DELETE", f"/chat/stream/{relay.generations[0].id}", headers=HERE)


FREED: list[tuple[Answer, End]] = [
    (status(503), nothing),
    (status(429), nothing),
    ((head(), hang()), stop),
    ((head(), chunk("Hel"), hang()), stop),
]


@pytest.mark.parametrize(("first", "end"), FREED, ids=["unavailable", "rate limited", "cancelled", "cancelled in text"])
async def test_an_end_that_gave_nothing_frees_the_key(first: Answer, end: End) -> None:
    async with Upstream() as upstream, running(upstream.base_url, attempts=1) as relay:
        upstream.script(first, answer("Hello"))
        begun = asyncio.create_task(ask(relay.port, chat(), headers=keyed()))
        await end(relay)
        await begun
        _, events = await ask(relay.port, chat("even another body"), headers=keyed())
    assert text_of(events) == "Hello"
    assert len(upstream.requests) == 2


async def test_leaving_for_good_frees_the_key() -> None:
    async with Upstream() as upstream, running(upstream.base_url, wait_seconds=0.05) as relay:
        upstream.script((head(), chunk("Hel"), hang()), answer("Hello"))
        async with connect(relay.port) as connection:
            first = await connection.request("POST", "/chat/stream", chat(), keyed())
            await anext(first.blocks())
        await upstream.wait_for(lambda u: u.aborted == 1)
        _, events = await ask(relay.port, chat(), headers=keyed())
    assert text_of(events) == "Hello"
    assert len(upstream.requests) == 2


KEPT: list[tuple[Answer, int, str]] = [
    (status(400), 400, "upstream_rejected"),
    (status(401), 502, "upstream_error"),
    ((head(), chunk("Hel"), reset()), 200, "upstream_unavailable"),
]


@pytest.mark.parametrize(("first", "wanted_status", "code"), KEPT, ids=["rejected", "account", "partial"])
async def test_an_end_that_a_retry_does_not_mend_keeps_the_key(first: Answer, wanted_status: int, code: str) -> None:
    async with Upstream() as upstream, running(upstream.base_url, attempts=1) as relay:
        upstream.script(first, answer("Hello"))
        answers = [await fetch(relay.port, "POST", "/chat/stream", chat(), keyed()) for _ in range(2)]
        conflict, _ = await fetch(relay.port, "POST", "/chat/stream", chat("another"), keyed())
    told = [(response.status, response.headers["x-stream-id"], error_code(body)) for response, body in answers]
    assert told == [(wanted_status, answers[0][0].headers["x-stream-id"], code)] * 2
    assert conflict.status == 409
    assert len(upstream.requests) == 1


def error_code(body: bytes) -> str:
    last = body if body.startswith(b"{") else body.split(b"\n\n")[-3].removeprefix(b"data: ")
    return str(json.loads(last)["error"]["code"])


async def test_the_key_is_free_when_its_stream_has_expired() -> None:
    async with Upstream() as upstream, running(upstream.base_url, log_ttl_seconds=0.05) as relay:
        upstream.script(answer("one"), answer("two"))
        first, _ = await ask(relay.port, chat(), headers=keyed())
        path = f"/chat/stream/{first.headers['x-stream-id']}/result"
        async with asyncio.timeout(5):
            while (await fetch(relay.port, "GET", path, headers=HERE))[0].status != 410:
                pass
        _, events = await ask(relay.port, chat(), headers=keyed())
    assert text_of(events) == "two"


async def test_who_waits_for_an_answer_is_no_reader_yet() -> None:
    """More than may read wait under one key: all have the failure, and of an answer the first eight."""
    refuse = asyncio.Event()
    async with Upstream() as upstream, running(upstream.base_url, attempts=1) as relay:
        upstream.script((wait(refuse), *status(503)), answer("Hello"), (head(), chunk("Hello"), hang()))
        crowd = [asyncio.create_task(ask(relay.port, chat(), headers=keyed())) for _ in range(CROWD)]
        await until(lambda: relay.generations and len(relay.generations[0].log.readers) == CROWD, 5)
        refuse.set()
        assert {response.status for response, _ in await asyncio.gather(*crowd)} == {502}
        await ask(relay.port, chat(), headers=keyed("answered"))
        async with contextlib.AsyncExitStack() as stack:
            statuses = []
            for _ in range(9):
                connection = await stack.enter_async_context(connect(relay.port))
                statuses.append((await connection.request("POST", "/chat/stream", chat(), keyed("read"))).status)
    assert statuses == [200] * 8 + [429]
