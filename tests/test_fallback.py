"""Several upstreams: which is asked, who takes over from one that fails, and that nothing is generated twice.

Attempts are counted at upstream. Once content was delivered there is no other, whatever happens.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import msgspec
import pytest

from tests.relay import SSE, Relay, ask, chat, connect, event_of, fetch, running, text_of, until
from tests.upstream import (
    Answer,
    Upstream,
    answer,
    blackhole,
    chunk,
    close,
    comments,
    delta,
    event,
    finish,
    hang,
    head,
    reset,
    send,
    silent,
    status,
    wait,
)

LOCAL: Final = "http://127.0.0.1:9/v1"
OPEN_SECONDS: Final = 0.2


class Pair(msgspec.Struct):
    """A relay of two upstreams: `first` is asked as long as it can be."""

    relay: Relay
    first: Upstream
    second: Upstream

    @property
    def asked(self) -> tuple[int, int]:
        return len(self.first.requests), len(self.second.requests)


@contextlib.asynccontextmanager
async def pair(
    *, one: dict[str, Any] | None = None, two: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Pair]:
    async with Upstream() as first, Upstream() as second:
        upstreams = {
            "one": {"base_url": first.base_url, **(one or {})},
            "two": {"base_url": second.base_url, "priority": 1, **(two or {})},
        }
        async with running(LOCAL, upstreams=upstreams, **settings) as relay:
            second.script(answer("from two"))
            yield Pair(relay, first, second)


def in_band(**error: object) -> Answer:
    return head(), delta(role="assistant", content=""), event({"error": error})


ELSEWHERE: Final[dict[str, Answer]] = {
    **{str(code): status(code) for code in (408, 409, 429, 500, 502, 503, 504)},
    "our key": status(401),
    "our account": status(402),
    "our quota": status(429, b'{"error": {"code": "insufficient_quota"}}'),
    "429 with an hour": status(429, headers={"retry-after": "3600"}),
    "reset before the head": (reset(),),
    "closed before the head": (close(),),
    "dead before the first token": (head(), delta(role="assistant", content=""), reset()),
    "ended before the first token": (head(), delta(role="assistant", content="")),
    "an error as the first event": in_band(code=503, message="busy"),
    "no event stream": status(200, b"<html>", {"content-type": "text/html"}),
    "no HTTP": (send(b"what?\r\n\r\n"), close()),
    "a redirect": status(302, headers={"location": "/elsewhere"}),
}


@pytest.mark.parametrize("failed", ELSEWHERE.values(), ids=ELSEWHERE)
async def test_another_upstream_takes_over_at_once_and_one_generation_is_delivered(failed: Answer) -> None:
    async with pair(hold_status_seconds=10, max_retry_wait_seconds=60) as at:
        at.first.script(failed)
        response, events = await ask(at.relay.port, chat())
    assert (response.status, text_of(events), at.asked) == (200, "from two", (1, 1))
    assert [event["type"] for event in events] == ["start", "delta", "done", "[DONE]"]


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/v1"


@pytest.mark.parametrize("nobody", [refusing, blackhole])
async def test_an_upstream_that_cannot_be_reached_is_passed_over(nobody: Any) -> None:
    with nobody() as base_url:
        async with pair(one={"base_url": base_url, "timeouts": {"connect": 0.1}}) as at:
            response, events = await ask(at.relay.port, chat())
    assert (response.status, text_of(events), at.asked) == (200, "from two", (0, 1))


@pytest.mark.parametrize("slow", [silent(), comments(0.02), (head(), hang())], ids=["silent", "comments", "a head"])
async def test_an_upstream_that_brings_no_first_token_in_its_time_is_passed_over(slow: Answer) -> None:
    async with pair(one={"timeouts": {"first_token": 0.1}}) as at:
        at.first.script(slow)
        response, events = await ask(at.relay.port, chat())
        await at.first.wait_for(lambda upstream: upstream.active == 0)
    assert (response.status, text_of(events), at.first.aborted) == (200, "from two", 1)


async def test_an_upstreams_own_limits_end_at_the_first_token() -> None:
    released = asyncio.Event()
    async with pair(one={"timeouts": {"first_token": 0.1}}) as at, connect(at.relay.port) as client:
        at.first.script((head(), chunk("a"), wait(released), finish()))
        response = await client.request("POST", "/chat/stream", chat())
        blocks = response.blocks()
        assert [event_of(await anext(blocks))["type"] for _ in range(2)] == ["start", "delta"]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.15):
                await asyncio.Event().wait()
        released.set()
        assert [event_of(block)["type"] async for block in blocks] == ["done", "[DONE]"]
    assert at.asked == (1, 0)


async def test_an_upstreams_idle_limit_is_within_the_requests() -> None:
    async with pair(one={"timeouts": {"idle": 0.1}}) as at:
        at.first.script((head(), chunk("a"), hang()))
        _, events = await ask(at.relay.port, chat())
    assert (events[-2]["error"]["code"], events[-2]["error"]["partial"], at.asked) == ("upstream_timeout", True, (1, 0))
    assert "0.1 s" in events[-2]["error"]["message"]


BROKEN_OFF: Final[dict[str, Answer]] = {
    "reset": (reset(),),
    "end": (),
    "error": (event({"error": {"code": 503, "message": "busy"}}),),
}


@pytest.mark.parametrize("ending", BROKEN_OFF.values(), ids=BROKEN_OFF)
async def test_after_the_first_token_nobody_takes_over(ending: Answer) -> None:
    async with pair() as at:
        at.first.script((head(), chunk("a"), *ending))
        _, events = await ask(at.relay.port, chat())
    assert (text_of(events), events[-2]["type"], events[-2]["error"]["partial"], at.asked) == (
        "a",
        "error",
        True,
        (1, 0),
    )


@pytest.mark.parametrize("code", [400, 404, 413, 422])
async def test_what_is_the_requests_fault_is_nobody_elses(code: int) -> None:
    async with pair() as at:
        at.first.script(status(code))
        response, _ = await ask(at.relay.port, chat())
    assert (response.status, at.asked) == (400, (1, 0))


@pytest.mark.parametrize(("attempts", "asked"), [(1, (1, 0)), (2, (1, 1)), (3, (2, 1)), (5, (4, 1))])
async def test_all_upstreams_together_have_one_number_of_attempts(attempts: int, asked: tuple[int, int]) -> None:
    async with pair(attempts=attempts, max_retry_wait_seconds=0.01) as at:
        at.first.script(status(503))
        at.second.script(status(500))
        response, (refusal,) = await ask(at.relay.port, chat())
    assert (response.status, refusal["error"]["code"], at.asked) == (502, "upstream_unavailable", asked)


async def test_all_upstreams_together_have_the_time_of_the_request() -> None:
    async with pair(one={"timeouts": {"first_token": 0.1}}) as at:
        at.first.script(silent())
        at.second.script(silent())
        response, (refusal,) = await ask(at.relay.port, chat(timeouts={"first_token": 0.3}))
        await at.second.wait_for(lambda upstream: upstream.active == 0)
    assert (response.status, refusal["error"]["code"], at.asked) == (504, "upstream_timeout", (1, 1))
    assert "0.3 s" in refusal["error"]["message"]


async def test_one_that_asked_for_rest_is_left_alone_while_there_is_another() -> None:
    async with pair() as at:
        at.first.script(status(429, headers={"retry-after": "30"}), answer("from one"))
        texts = [text_of((await ask(at.relay.port, chat()))[1]) for _ in range(3)]
    assert (texts, at.asked) == (["from two"] * 3, (1, 3))


# The breaker.


async def test_one_that_fails_again_and_again_is_left_out_and_comes_back() -> None:
    async with pair(breaker_failures=3, breaker_open_seconds=OPEN_SECONDS) as at:
        at.first.script(status(500))
        for _ in range(5):
            assert text_of((await ask(at.relay.port, chat()))[1]) == "from two"
        assert at.asked == (3, 5)
        at.first.script(answer("from one"))

        async def healed() -> bool:
            return text_of((await ask(at.relay.port, chat()))[1]) == "from one"

        async with asyncio.timeout(5):
            while not await healed():
                pass
        assert text_of((await ask(at.relay.port, chat()))[1]) == "from one"
        assert len(at.first.requests) == 5


async def test_one_probe_at_a_time_finds_out_whether_it_is_back() -> None:
    async with pair(breaker_failures=1, breaker_open_seconds=OPEN_SECONDS) as at:
        at.first.script(status(500))
        await ask(at.relay.port, chat())
        [first, _] = at.relay.streams.means.pool.states()  # type: ignore[attr-defined]
        assert (first.state, first.failures) == ("open", 1)
        await until(lambda: at.relay.streams.means.pool.states()[0].state == "half_open")  # type: ignore[attr-defined]
        at.first.script(silent())
        async with connect(at.relay.port) as client:
            client.write("POST", "/chat/stream", chat())
            await at.first.wait_for(lambda upstream: upstream.active == 1)
            texts = [text_of((await ask(at.relay.port, chat()))[1]) for _ in range(3)]
        assert texts == ["from two"] * 3
        await at.first.wait_for(lambda upstream: upstream.active == 0)
    assert at.asked == (2, 4)


async def test_an_upstream_that_dies_after_each_first_token_is_left_out_in_the_end() -> None:
    async with pair(breaker_failures=3, breaker_open_seconds=60) as at:
        at.first.script((head(), chunk("a"), reset()))
        ends = [(await ask(at.relay.port, chat()))[1][-2]["type"] for _ in range(5)]
    assert (ends, at.asked) == (["error"] * 3 + ["done"] * 2, (3, 2))


async def test_where_all_are_out_it_is_told_when_one_may_be_back() -> None:
    breaker = {"breaker_failures": 2, "breaker_open_seconds": 30}
    async with Upstream() as upstream, running(upstream.base_url, attempts=1, **breaker) as relay:
        upstream.script(status(500))
        answers = [await ask(relay.port, chat()) for _ in range(3)]
    codes = [(response.status, refusal["error"]["upstream_status"]) for response, (refusal,) in answers]
    assert (codes, len(upstream.requests)) == ([(502, 500), (502, 500), (502, None)], 2)
    assert 25 <= int(answers[2][0].headers["retry-after"]) <= 30


async def test_a_client_that_leaves_says_nothing_about_upstream() -> None:
    async with Upstream() as upstream, running(upstream.base_url, breaker_failures=1) as relay:
        upstream.script((head(), hang()), answer("ok"))
        async with connect(relay.port) as client:
            client.write("POST", "/chat/stream", chat())
            await upstream.wait_for(lambda u: u.active == 1)
        await upstream.wait_for(lambda u: u.aborted == 1)
        assert text_of((await ask(relay.port, chat()))[1]) == "ok"


IMPATIENT: Final[dict[str, tuple[dict[str, Any], Answer]]] = {
    "idle": ({"timeouts": {"idle": 0.02}}, (head(), chunk("a"), hang())),
    "total": ({"timeouts": {"total": 0.05}}, (head(), chunk("a"), hang())),
}


@pytest.mark.parametrize(("fields", "slow"), IMPATIENT.values(), ids=IMPATIENT)
async def test_a_caller_without_patience_takes_no_upstream_out(fields: dict[str, Any], slow: Answer) -> None:
    async with Upstream() as upstream, running(upstream.base_url, breaker_failures=1) as relay:
        upstream.script(slow, answer("ok"))
        _, events = await ask(relay.port, chat(**fields))
        assert events[-2]["error"]["code"] == "upstream_timeout"
        assert text_of((await ask(relay.port, chat()))[1]) == "ok"


async def test_an_upstream_that_falls_silent_for_the_operators_limit_is_to_blame() -> None:
    settings = {"breaker_failures": 1, "timeout_idle_seconds": 0.05}
    async with Upstream() as upstream, running(upstream.base_url, **settings) as relay:
        upstream.script((head(), chunk("a"), hang()))
        await ask(relay.port, chat())
        response, (refusal,) = await ask(relay.port, chat())
    assert (response.status, refusal["error"]["code"], len(upstream.requests)) == (502, "upstream_unavailable", 1)


async def test_an_answer_that_its_client_broke_off_was_well() -> None:
    async with Upstream() as upstream, running(upstream.base_url, breaker_failures=2, attempts=1) as relay:
        for _ in range(3):
            upstream.script(status(500), (head(), chunk("a"), hang()))
            assert (await ask(relay.port, chat()))[0].status == 502
            async with connect(relay.port) as client:
                assert (await client.request("POST", "/chat/stream", chat())).status == 200
            await until(lambda: not relay.generations)


async def test_a_callers_own_bound_does_not_excuse_an_upstream_that_speaks_no_protocol() -> None:
    settings = {"breaker_failures": 2, "attempts": 1, "anonymous": {"max_answer_bytes": 1024}}
    async with Upstream() as upstream, running(upstream.base_url, **settings) as relay:
        upstream.script(status(200, b"<html>", {"content-type": "text/html"}))
        for _ in range(4):
            assert (await ask(relay.port, chat()))[0].status == 502
        assert len(upstream.requests) == 2


async def test_an_answer_beyond_the_callers_own_bound_takes_no_upstream_out() -> None:
    settings = {"breaker_failures": 1, "anonymous": {"max_answer_bytes": 1024}}
    async with Upstream() as upstream, running(upstream.base_url, **settings) as relay:
        upstream.script((head(), chunk("x" * 2000), hang()), answer("ok"))
        assert (await ask(relay.port, chat()))[1][-2]["error"]["code"] == "upstream_protocol"
        assert text_of((await ask(relay.port, chat()))[1]) == "ok"


# Models and aliases.


async def test_a_model_is_asked_for_where_it_is_served() -> None:
    one = {"models": ["a"], "aliases": {"fast": "a"}}
    async with pair(one=one, two={"models": ["b"]}) as at:
        at.first.script(answer("from one"))
        texts = [text_of((await ask(at.relay.port, chat(model=model)))[1]) for model in ("a", "b", "fast")]
        unknown, (refusal,) = await ask(at.relay.port, chat(model="c"))
    assert (texts, unknown.status) == (["from one", "from two", "from one"], 404)
    assert (refusal["error"]["code"], refusal["error"]["param"]) == ("not_found", "model")
    assert [request.body["model"] for request in at.first.requests] == ["a", "a"]


@pytest.mark.parametrize("streamed", [True, False])
async def test_who_asks_by_an_alias_is_told_the_alias(streamed: bool) -> None:
    async with pair(one={"aliases": {"fast": "real-1"}}) as at:
        at.first.script((head(), chunk("é"), delta(content="x", logprobs={"n": 1.50}), finish()))
        body = {"model": "fast", "messages": [{"role": "user", "content": "hi"}], "stream": streamed}
        _, told = await fetch(at.relay.port, "POST", "/v1/chat/completions", body)
        _, events = await ask(at.relay.port, chat(model="fast"))
    assert (told.count(b'"model":"fast"'), b"real-1" in told) == (3 if streamed else 1, False)
    assert events[0]["model"] == "fast"
    assert at.first.requests[0].body["model"] == "real-1"


async def test_what_an_operator_adds_is_in_each_request() -> None:
    one = {"headers": {"X-Team": "chat"}, "body": {"top_k": 40}, "stream_options": False, "finish_reason": "optional"}
    async with pair(one=one) as at:
        at.first.script((head(), chunk("a")))
        _, events = await ask(at.relay.port, chat())
    (request,) = at.first.requests
    assert (request.headers["x-team"], request.body["top_k"], "stream_options" in request.body) == ("chat", 40, False)
    assert events[-2]["finish_reason"] == "unknown"


# Room: the queue.


async def test_streams_go_where_there_is_room() -> None:
    async with pair(one={"max_streams": 1}) as at, connect(at.relay.port) as client:
        at.first.script((head(), chunk("a"), hang()))
        await client.request("POST", "/chat/stream", chat())
        assert text_of((await ask(at.relay.port, chat()))[1]) == "from two"


async def test_who_waits_for_an_upstream_is_told_so_and_gets_the_next_place() -> None:
    settings = {"hold_status_seconds": 0.05, "heartbeat_seconds": 0.05}
    upstream_of = {"max_streams": 1}
    async with pair(one=upstream_of, two=upstream_of | {"models": ["other"]}, **settings) as at:
        at.first.script((head(), chunk("a"), hang()), answer("b"))
        async with connect(at.relay.port) as first, connect(at.relay.port) as second:
            await first.request("POST", "/chat/stream", chat())
            waiting = await second.request("POST", "/chat/stream", chat())
            blocks = waiting.blocks()
            begun = [event_of(await anext(blocks)) for _ in range(2)]
            assert (waiting.status, [event.get("phase") for event in begun]) == (200, [None, "queued"])
            assert (at.relay.streams.means.capacity.queued, at.asked) == (1, (1, 0))
            assert text_of((await ask(at.relay.port, chat(model="other")))[1]) == "from two"
            first.close()
            rest = [event_of(block) async for block in blocks]
    assert text_of(rest) == "b"
    assert (at.relay.permits_in_use, at.relay.streams.means.capacity.queued) == (0, 0)


async def test_a_place_in_the_queue_times_out() -> None:
    async with pair(one={"max_streams": 1}, two={"models": ["x"]}, queue_timeout_seconds=0.1) as at:
        at.first.script((head(), chunk("a"), hang()))
        async with connect(at.relay.port) as client:
            await client.request("POST", "/chat/stream", chat())
            response, (refusal,) = await ask(at.relay.port, chat())
    assert (response.status, refusal["error"]["code"], refusal["error"]["phase"]) == (503, "overloaded", "admission")
    assert int(response.headers["retry-after"]) >= 1


async def test_the_total_limit_runs_in_the_queue_and_the_first_token_limit_does_not() -> None:
    async with pair(one={"max_streams": 1}, two={"models": ["x"]}) as at:
        at.first.script((head(), chunk("a"), hang()), answer("b"))
        async with connect(at.relay.port) as first, connect(at.relay.port) as second:
            await first.request("POST", "/chat/stream", chat())
            late, (refusal,) = await ask(at.relay.port, chat(timeouts={"total": 0.1}))
            assert (late.status, refusal["error"]["code"]) == (503, "overloaded")
            second.write("POST", "/chat/stream", chat(timeouts={"first_token": 0.2}))
            await until(lambda: at.relay.streams.means.capacity.queued == 1)
            queued = asyncio.get_running_loop().time()
            await until(lambda: asyncio.get_running_loop().time() - queued > 0.25)
            first.close()
            assert text_of(await (await second.head()).events()) == "b"


@pytest.mark.parametrize("how", ["leaves", "is stopped", "drains"])
async def test_who_goes_from_the_queue_leaves_nothing(how: str) -> None:
    async with pair(one={"max_streams": 1}, two={"models": ["x"]}, hold_status_seconds=0.01) as at:
        at.first.script((head(), chunk("a"), hang()))
        async with connect(at.relay.port) as first, connect(at.relay.port) as second:
            await first.request("POST", "/chat/stream", chat())
            response = await second.request("POST", "/chat/stream", chat())
            assert at.relay.streams.means.capacity.queued == 1
            match how:
                case "leaves":
                    second.close()
                case "is stopped":
                    await fetch(at.relay.port, "DELETE", f"/chat/stream/{response.headers['x-stream-id']}")
                    assert (await response.events())[-2]["finish_reason"] == "cancelled"
                case _:
                    await at.relay.streams.close()
                    assert (await response.events())[-2]["error"]["code"] == "draining"
            await until(lambda: at.relay.streams.means.capacity.queued == 0)
    assert at.asked == (1, 0)


async def test_an_idempotency_key_waits_in_the_queue_once() -> None:
    keyed = SSE | {"idempotency-key": "k", "cookie": f"relay_subject={'a' * 32}"}
    async with pair(one={"max_streams": 1}, two={"models": ["x"]}) as at:
        at.first.script((head(), chunk("a"), hang()), answer("b"))
        async with connect(at.relay.port) as first:
            await first.request("POST", "/chat/stream", chat())
            both = [asyncio.create_task(ask(at.relay.port, chat(), headers=keyed)) for _ in range(2)]
            await until(lambda: at.relay.streams.means.capacity.queued == 1)
            first.close()
            assert [text_of(events) for _, events in await asyncio.gather(*both)] == ["b", "b"]
    assert at.asked == (2, 0)


async def test_another_try_comes_before_all_who_have_not_begun() -> None:
    released = asyncio.Event()
    async with pair(one={"max_streams": 1}, two={"models": ["x"]}, max_retry_wait_seconds=0.05) as at:
        at.first.script((wait(released), *status(503)), answer("first"), answer("second"))
        asked = [asyncio.create_task(ask(at.relay.port, chat(str(number)))) for number in range(3)]
        await until(lambda: at.relay.streams.means.capacity.queued == 2)
        released.set()
        answers = [(response.status, text_of(events)) for response, events in await asyncio.gather(*asked)]
    assert [status for status, _ in answers] == [200, 200, 200]
    assert len(at.first.requests) == 4


async def test_a_request_that_waited_in_vain_uses_nothing_up() -> None:
    limits = {"requests_per_minute": 3, "tokens_per_day": 1000}
    settings = {"max_streams": 1, "queue_timeout_seconds": 0.05, "anonymous": limits}
    async with Upstream() as upstream, running(upstream.base_url, **settings) as relay:
        upstream.script((head(), chunk("a"), hang()))
        async with connect(relay.port) as client:
            await client.request("POST", "/chat/stream", chat())
            for _ in range(4):
                assert (await ask(relay.port, chat("x" * 1200)))[0].status == 503
        await until(lambda: not relay.generations)
        upstream.script(answer("ok"))
        assert (await ask(relay.port, chat()))[0].headers["ratelimit"].startswith('"requests";r=1;')


async def test_what_never_ran_says_nothing_about_how_long_streams_last() -> None:
    async with pair(one={"max_streams": 1}, two={"models": ["x"]}, queue_timeout_seconds=0.05) as at:
        at.first.script((head(), chunk("a"), hang()))
        async with connect(at.relay.port) as client:
            await client.request("POST", "/chat/stream", chat())
            retries = [(await ask(at.relay.port, chat()))[0].headers["retry-after"] for _ in range(3)]
    assert retries == ["2"] * 3


async def test_nothing_begins_behind_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    deciding, decided = asyncio.Event(), asyncio.Event()

    async def slowly(*_: object) -> None:
        deciding.set()
        await decided.wait()

    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(answer("late"))
        monkeypatch.setattr(relay.streams.means.rates, "admit", slowly)
        asking = asyncio.create_task(ask(relay.port, chat()))
        await deciding.wait()
        await relay.streams.close()
        decided.set()
        response, (refusal,) = await asking
        assert (response.status, refusal["error"]["code"], relay.permits_in_use) == (503, "draining", 0)
    assert upstream.requests == []
