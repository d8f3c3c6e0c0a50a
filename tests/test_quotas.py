"""What callers may use: refused at once above it, told truthfully when to come back, and charged for what was used."""

import json
import math
from typing import Any, Final

import pytest

from tests.relay import Relay, ask, chat, connect, running, until
from tests.upstream import Upstream, answer, chunk, hang, head, status


def stranger(**limits: int) -> dict[str, Any]:
    return {"anonymous": limits}


def window_of(headers: dict[str, str]) -> tuple[str, str]:
    return headers["ratelimit-policy"], headers["ratelimit"].rpartition(";t=")[0]


async def test_requests_of_a_minute_are_counted_and_the_last_one_says_when_to_come_back() -> None:
    async with Upstream() as upstream, running(upstream.base_url, **stranger(requests_per_minute=2)) as relay:
        upstream.script(answer("ok"))
        answers = [await ask(relay.port, chat()) for _ in range(3)]
    (first, _), (second, _), (third, (refusal,)) = answers
    assert [window_of(response.headers) for response in (first, second, third)] == [
        ('"requests";q=2;w=60', '"requests";r=1'),
        ('"requests";q=2;w=60', '"requests";r=0'),
        ('"requests";q=2;w=60', '"requests";r=0'),
    ]
    assert (third.status, refusal["error"]["code"], refusal["error"]["phase"]) == (429, "rate_limited", "admission")
    reset_s = int(third.headers["ratelimit"].rpartition("t=")[2])
    assert 55 < reset_s <= 60
    assert abs(int(third.headers["retry-after"]) - reset_s) <= 1
    assert len(upstream.requests) == 2


async def test_callers_without_a_limit_are_told_of_none() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(answer("ok"))
        response, _ = await ask(relay.port, chat())
    assert not [name for name in response.headers if name.startswith("ratelimit")]


ENDS: Final[dict[str, tuple[Any, int]]] = {
    "finished, reported": (answer("a" * 40, usage=(100, 50)), 150),
    "finished, estimated": (answer("a" * 40), 11),
    "failed": ((head(), chunk("a" * 40)), 11),
    "failed before a token": (status(400), 1),
}


async def tokens_left(relay: Relay) -> float:
    standing = await relay._app.state.parts.fleet.standing(
        (
            await relay._app.state.parts.doorkeeper.admit([], None)
            or relay._app.state.parts.doorkeeper.stranger("127.0.0.1")
        ).quotas
    )
    return float(dict(standing)["ratelimit"].split(";r=")[1].split(";")[0])


@pytest.mark.parametrize(("said", "used"), ENDS.values(), ids=ENDS)
async def test_tokens_are_charged_however_the_stream_ends(said: Any, used: int) -> None:
    async with Upstream() as upstream, running(upstream.base_url, **stranger(tokens_per_minute=1000)) as relay:
        upstream.script(said)
        await ask(relay.port, chat("hi"))
        left = await tokens_left(relay)
    assert left == 1000 - used


async def test_a_cancelled_stream_is_charged_for_what_it_said() -> None:
    async with Upstream() as upstream, running(upstream.base_url, **stranger(tokens_per_minute=1000)) as relay:
        upstream.script((head(), chunk("a" * 400), hang()))
        async with connect(relay.port) as client:
            response = await client.request("POST", "/chat/stream", chat("hi"))
            blocks = response.blocks()
            for _ in range(2):
                await anext(blocks)
        await until(lambda: not relay.generations)
        assert await tokens_left(relay) == 1000 - 1 - 100


async def test_a_window_of_tokens_that_is_used_up_is_closed() -> None:
    async with Upstream() as upstream, running(upstream.base_url, **stranger(tokens_per_minute=100)) as relay:
        upstream.script(answer("ok", usage=(10, 500)))
        served, _ = await ask(relay.port, chat())
        refused, (refusal,) = await ask(relay.port, chat())
        too_long, (never,) = await ask(relay.port, chat("x" * 1000))
    assert (served.status, refused.status, refusal["error"]["retryable"]) == (200, 429, True)
    assert 55 < int(refused.headers["retry-after"]) <= 60
    assert (too_long.status, never["error"]["retryable"], "retry-after" in too_long.headers) == (429, False, False)
    assert len(upstream.requests) == 1


async def test_streams_at_once_are_counted_with_those_in_the_queue() -> None:
    async with Upstream() as upstream, running(upstream.base_url, max_streams=1, **stranger(max_streams=2)) as relay:
        upstream.script((head(), chunk("a"), hang()))
        async with connect(relay.port) as first, connect(relay.port) as second:
            await first.request("POST", "/chat/stream", chat())
            second.write("POST", "/chat/stream", chat())
            await until(lambda: relay.streams.means.capacity.queued == 1)
            response, (refusal,) = await ask(relay.port, chat())
        assert (response.status, refusal["error"]["code"]) == (429, "rate_limited")
        assert int(response.headers["retry-after"]) >= 1
        await until(lambda: not relay.generations)
        upstream.script(answer("ok"))
        assert (await ask(relay.port, chat()))[0].status == 200


async def test_a_refused_request_uses_nothing_up() -> None:
    limits = stranger(requests_per_minute=1)
    async with Upstream() as upstream, running(upstream.base_url, max_streams=1, max_queued=0, **limits) as relay:
        upstream.script((head(), chunk("a"), hang()))
        async with connect(relay.port) as client:
            client.write(
                "POST", "/chat/stream", json.dumps(chat(bogus=1)).encode(), {"content-type": "application/json"}
            )
            assert (await client.head()).status == 422
        async with connect(relay.port) as client:
            assert (await client.request("POST", "/chat/stream", chat())).status == 200


async def test_an_attachment_is_no_request() -> None:
    keyed = {"idempotency-key": "k", "cookie": f"relay_subject={'a' * 32}"}
    async with Upstream() as upstream, running(upstream.base_url, **stranger(requests_per_minute=1)) as relay:
        upstream.script(answer("ok"))
        statuses = [(await ask(relay.port, chat(), headers=keyed))[0].status for _ in range(3)]
        assert (await ask(relay.port, chat()))[0].status == 429
    assert (statuses, len(upstream.requests)) == ([200] * 3, 1)


@pytest.mark.parametrize("most", [1024, 2000])
async def test_one_answer_of_a_caller_has_a_bound_of_its_own(most: int) -> None:
    async with Upstream() as upstream, running(upstream.base_url, **stranger(max_answer_bytes=most)) as relay:
        upstream.script((head(), *[chunk("x" * 100)] * math.ceil(most / 90), hang()))
        _, events = await ask(relay.port, chat())
        await upstream.wait_for(lambda seen: seen.active == 0)
    assert events[-2]["error"]["code"] == "upstream_protocol"
