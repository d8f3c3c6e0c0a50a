"""Which upstream is asked, how many at once, and what it is sent."""

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
import structlog
import uvloop

from app.errors import CODES, Problem, RelayError
from app.upstream.pool import Pool
from tests.pools import attempt, body_of, claimed, pool_of, table
from tests.relay import until
from tests.upstream import Upstream, answer, reset, status

UNAVAILABLE = RelayError("upstream_unavailable", "no", phase="connect").problem


def asked(pool: Pool, model: str = "m", times: int = 12) -> Counter[str]:
    """Who would be asked, one request after the other: each place is given back at once."""
    names: Counter[str] = Counter()
    for _ in range(times):
        place = claimed(pool, model)
        names[place.upstream] += 1
        place.release()
    return names


def break_(pool: Pool, name: str, failures: int = 5) -> None:
    others = tuple(state.name for state in pool.states() if state.name != name)
    for _ in range(failures):
        claimed(pool, besides=others).failed(UNAVAILABLE)


# Who serves what.


async def test_without_tables_there_is_one_upstream_which_serves_all() -> None:
    async with pool_of(finish_reason="optional") as pool:
        assert pool.serving("anything") == {"default"}
        place = claimed(pool, "anything")
        assert (place.upstream, place.model, place.manner.finish_optional) == ("default", "anything", True)


@pytest.mark.parametrize(
    ("model", "serving"),
    [("a", {"lists", "all"}), ("b", {"lists", "all"}), ("short", {"lists", "all"}), ("other", {"all"})],
)
async def test_a_model_is_served_by_who_names_it_and_by_who_names_none(model: str, serving: set[str]) -> None:
    lists = table(models=["a", "b"], aliases={"short": "a-very-long-name"})
    async with pool_of({"lists": lists, "all": table()}) as pool:
        assert pool.serving(model) == serving


async def test_a_model_that_nobody_serves_is_not_found() -> None:
    async with pool_of({"x": table(models=["a"])}) as pool:
        for refused in (pool.serving, pool.claim):
            with pytest.raises(RelayError) as caught:
                refused("b" * 1000)
            problem = caught.value.problem
            assert (problem.code, problem.param, problem.phase) == ("not_found", "model", "admission")
            assert problem.message == f"there is no model `{'b' * 128}`"


async def test_an_alias_is_asked_for_by_the_upstreams_own_name() -> None:
    async with pool_of({"x": table(models=["a"], aliases={"fast": "a-2026"}), "y": table()}) as pool:
        assert {claimed(pool, "fast").model, claimed(pool, "fast").model} == {"a-2026", "fast"}


# Who is asked.


async def test_the_lowest_priority_is_asked_whoever_names_the_model() -> None:
    tables = {"named": table(models=["m"], priority=2), "first": table(priority=1), "last": table(priority=3)}
    async with pool_of(tables) as pool:
        assert asked(pool) == {"first": 12}


async def test_equals_take_turns() -> None:
    async with pool_of({"x": table(), "y": table(), "z": table()}) as pool:
        assert asked(pool) == {"x": 4, "y": 4, "z": 4}


async def test_the_least_busy_for_its_weight_is_asked() -> None:
    async with pool_of({"small": table(weight=1), "large": table(weight=3)}) as pool:
        assert asked(pool) == {"large": 12}
        names = Counter(claimed(pool).upstream for _ in range(40))
        assert names == {"small": 10, "large": 30}


async def test_a_full_upstream_is_passed_over_and_none_is_there_when_all_are_full() -> None:
    async with pool_of({"x": table(max_streams=2), "y": table(priority=1, max_streams=1)}) as pool:
        places = [claimed(pool) for _ in range(3)]
        assert [place.upstream for place in places] == ["x", "x", "y"]
        assert pool.claim("m") is None
        places[1].release()
        assert claimed(pool).upstream == "x"
        assert pool.claim("m", besides=("x",)) is None


async def test_who_was_tried_is_not_asked_again_and_that_is_no_failure() -> None:
    async with pool_of({"x": table(), "y": table(priority=1)}) as pool:
        assert claimed(pool, besides=("x",)).upstream == "y"
        assert pool.claim("m", besides=("x", "y")) is None


# Rests.


@pytest.mark.parametrize("code", ["rate_limited", "upstream_error"])
async def test_one_that_wants_rest_is_asked_last(code: str) -> None:
    async with pool_of({"first": table(), "second": table(priority=1, max_streams=1)}) as pool:
        claimed(pool).failed(RelayError(code, "no", retryable=code != "upstream_error").problem)
        other = claimed(pool)
        assert (other.upstream, claimed(pool).upstream) == ("second", "first"), "the second has one place"
        assert pool.states()[0].rests_s > 0
        assert pool.states()[0].state == "closed"


async def test_a_rest_is_over_by_itself() -> None:
    async with pool_of({"first": table(), "second": table(priority=1)}) as pool:
        claimed(pool).failed(RelayError("rate_limited", "no", retry_after_s=0.01).problem)
        assert claimed(pool).upstream == "second"
        await until(lambda: claimed(pool).upstream == "first")


async def test_a_rest_never_refuses_anybody() -> None:
    async with pool_of({"x": table(), "y": table()}, breaker_failures=1) as pool:
        for _ in range(20):
            claimed(pool).failed(RelayError("rate_limited", "no", retry_after_s=60).problem)
        assert asked(pool) == {"x": 6, "y": 6}


# Breakers.


async def test_a_broken_upstream_is_asked_no_more_and_others_are() -> None:
    async with pool_of({"first": table(), "second": table(priority=1)}) as pool:
        break_(pool, "first")
        assert asked(pool) == {"second": 12}
        assert [state.state for state in pool.states()] == ["open", "closed"]


async def test_when_all_are_broken_it_is_said_until_when() -> None:
    async with pool_of({"x": table(), "y": table()}, breaker_open_seconds=30) as pool:
        break_(pool, "x")
        break_(pool, "y")
        with pytest.raises(RelayError) as caught:
            pool.claim("m")
        problem = caught.value.problem
        assert (problem.code, problem.phase, problem.retryable) == ("upstream_unavailable", "connect", True)
        assert problem.retry_after_s == pytest.approx(30, abs=1)
        assert pool.claim("m", besides=("x",)) is None


async def test_a_refusal_breaks_nothing() -> None:
    async with pool_of(breaker_failures=1) as pool:
        for _ in range(3):
            claimed(pool).failed(RelayError("upstream_rejected", "no", upstream_status=400).problem)
        assert asked(pool) == {"default": 12}


async def test_one_probe_at_a_time_heals_and_everybody_is_told() -> None:
    told: list[str] = []
    async with pool_of(breaker_failures=1, breaker_open_seconds=0.02) as pool:
        claimed(pool).failed(UNAVAILABLE)
        pool.on_room(lambda: told.append(pool.states()[0].state))
        await until(lambda: told)  # by the clock alone: nobody asks
        assert told == ["half_open"]
        probe = claimed(pool)
        with pytest.raises(RelayError, match="try again"):
            pool.claim("m")
        probe.carried()
        assert told == ["half_open", "closed"]
        assert asked(pool) == {"default": 12}
        probe.succeeded()
        assert pool.states()[0].failures == 0


def test_everybody_is_told_in_time_by_a_loop_that_rounds_its_timers() -> None:
    told: list[str] = []

    async def breaking() -> None:
        async with pool_of(breaker_failures=1, breaker_open_seconds=0.0104) as pool:
            claimed(pool).failed(UNAVAILABLE)
            pool.on_room(lambda: told.append(pool.states()[0].state))
            await until(lambda: told)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for _ in range(5):
            runner.run(breaking())
            assert told.pop() == "half_open"
            assert told == []


async def test_an_operator_hears_of_an_upstream_that_is_out_and_that_it_is_back() -> None:
    async with pool_of(breaker_failures=1, breaker_open_seconds=0.01) as pool:
        with structlog.testing.capture_logs() as logs:
            claimed(pool).failed(RelayError("upstream_unavailable", "words", upstream_status=500).problem)
            await until(lambda: pool.states()[0].state == "half_open")
            claimed(pool).succeeded()
            claimed(pool).succeeded()
    out = {"code": "upstream_unavailable", "upstream_status": 500, "failures": 1, "for_s": 0.01}
    assert logs == [
        {"event": "upstream out", "upstream": "default", "log_level": "warning", **out},
        {"event": "upstream is back", "upstream": "default", "log_level": "warning"},
    ]


@pytest.mark.parametrize(
    ("end", "state"),
    [("release", "half_open"), ("draining", "half_open"), ("upstream_rejected", "closed"), ("rate_limited", "closed")],
)
async def test_a_probe_that_ends_otherwise_lets_the_next_through(end: str, state: str) -> None:
    async with pool_of(breaker_failures=1, breaker_open_seconds=0.01) as pool:
        claimed(pool).failed(UNAVAILABLE)
        await until(lambda: pool.states()[0].state == "half_open")
        probe = claimed(pool)
        probe.release() if end == "release" else probe.failed(RelayError(end, "no").problem)
        assert pool.states()[0].state == state
        claimed(pool).failed(UNAVAILABLE)
        assert pool.states()[0].state == "open"


async def test_nothing_is_told_after_the_end() -> None:
    told: list[None] = []
    async with pool_of({"x": table(), "y": table()}, breaker_failures=1, breaker_open_seconds=0.01) as pool:
        broken, late = claimed(pool), claimed(pool)
        broken.failed(UNAVAILABLE)
    late.failed(UNAVAILABLE)
    pool.on_room(lambda: told.append(None))
    due = asyncio.get_running_loop().time() + 0.02
    await until(lambda: asyncio.get_running_loop().time() >= due)
    assert told == []


@pytest.mark.parametrize(
    ("phase", "impatient"), [("connect", {"connect_s": 0.05}), ("first_token", {}), ("stream", None)]
)
async def test_a_limit_shorter_than_the_operators_breaks_nothing(
    phase: Any, impatient: dict[str, float] | None
) -> None:
    async with pool_of(breaker_failures=1) as pool:
        place = claimed(pool)
        if impatient:
            await attempt_to_connect(place, **impatient)
        place.failed(RelayError("upstream_timeout", "late", phase=phase).problem)
        assert pool.states()[0].state == ("open" if impatient is None else "closed")
        assert pool.states()[0].in_use == 0


async def attempt_to_connect(place: Any, connect_s: float) -> None:
    with pytest.raises(RelayError):
        await body_of(place, connect_s=connect_s)


async def test_the_operators_own_limits_break_it() -> None:
    limits = {"connect": 0.05, "first_token": 0.05}
    async with pool_of({"x": table(timeouts=limits)}, breaker_failures=2) as pool:
        place = claimed(pool)
        await attempt_to_connect(place, connect_s=0.05)
        place.failed(RelayError("upstream_timeout", "late", phase="connect").problem)
        place = claimed(pool)
        due = asyncio.get_running_loop().time() + 0.05
        await until(lambda: asyncio.get_running_loop().time() >= due)
        place.failed(RelayError("upstream_timeout", "late", phase="first_token").problem)
        assert pool.states()[0].state == "open"


# Places.


@pytest.mark.parametrize("end", ["succeeded", "failed", "release"])
async def test_a_place_ends_once_and_its_end_is_told(end: str) -> None:
    told: list[int] = []
    async with pool_of(breaker_failures=0) as pool:
        kept, place = claimed(pool), claimed(pool)
        pool.on_room(lambda: told.append(pool.states()[0].in_use))
        for _ in range(2):
            getattr(place, end)(*([UNAVAILABLE] if end == "failed" else []))
            place.succeeded()
            place.failed(UNAVAILABLE)
            place.release()
            place.carried()
        assert told == [1]
        assert pool.states()[0].failures == (1 if end == "failed" else 0)
        kept.release()


@pytest.mark.parametrize("seed", range(8))
async def test_in_any_order_no_limit_is_exceeded_and_all_places_come_back(seed: int) -> None:
    chance = random.Random(seed)
    problems = [RelayError(code, "no", retry_after_s=0.001).problem for code in CODES]
    tables = {name: table(max_streams=n + 1, priority=n % 2, weight=n + 1) for n, name in enumerate("abcd")}
    held: list[Any] = []
    async with pool_of(tables, breaker_failures=2, breaker_open_seconds=0.001) as pool:
        for _ in range(2000):
            if chance.random() < 0.5:
                held += filter(None, [claimed_or_none(pool)])
            elif held:
                end(held.pop(chance.randrange(len(held))), chance, problems)
            if chance.random() < 0.02:
                await asyncio.sleep(0.001)
            assert all(state.in_use <= (state.max_streams or 0) for state in pool.states())
            assert sum(state.in_use for state in pool.states()) == len(held)
        for place in held:
            place.release()
        assert [state.in_use for state in pool.states()] == [0, 0, 0, 0]


def claimed_or_none(pool: Pool) -> Any:
    try:
        return pool.claim("m")
    except RelayError:
        return None


def end(place: Any, chance: random.Random, problems: list[Problem]) -> None:
    match chance.randrange(4):
        case 0:
            place.carried()
            place.succeeded()
        case 1:
            place.failed(chance.choice(problems))
        case 2:
            place.carried()
            place.failed(chance.choice(problems))
        case _:
            place.release()


# Over sockets.


async def test_upstream_is_sent_its_own_name_of_the_model_and_the_operators_words() -> None:
    async with (
        Upstream() as upstream,
        pool_of(
            {
                "x": table(
                    upstream.base_url,
                    aliases={"fast": "own-name"},
                    headers={"x-tenant": "acme", "user-agent": "ours"},
                    body={"temperature": 0, "provider": {"order": ["a"]}},
                )
            }
        ) as pool,
    ):
        upstream.script(answer("Hi"))
        payload: dict[str, object] = {"model": "fast", "messages": [], "temperature": 2, "top_p": 1}
        assert b"Hi" in await body_of(claimed(pool, "fast"), payload=payload)
    [request] = upstream.requests
    assert request.body == {
        "model": "own-name",
        "messages": [],
        "temperature": 0,
        "top_p": 1,
        "provider": {"order": ["a"]},
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert {name: request.headers.get(name) for name in ("x-tenant", "user-agent", "authorization")} == {
        "x-tenant": "acme",
        "user-agent": "ours",
        "authorization": None,
    }
    assert not [name for name in request.headers if name.startswith("x-stainless")]


async def test_an_upstream_that_knows_no_stream_options_is_sent_none() -> None:
    async with Upstream() as upstream, pool_of({"x": table(upstream.base_url, stream_options=False)}) as pool:
        upstream.script(answer("Hi"))
        await body_of(claimed(pool), payload={"model": "m", "stream_options": {"include_usage": True}})
    assert "stream_options" not in upstream.requests[0].body


async def test_each_upstream_is_sent_its_own_key_and_the_environments_account_belongs_to_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, "https://leak.example" if name == "OPENAI_BASE_URL" else "leak")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer leak\nX-Leak: leak")
    monkeypatch.setenv("KEY_OF_X", "key-of-x")
    async with Upstream() as one, Upstream() as other:
        tables = {
            "x": table(one.base_url, api_key_env="KEY_OF_X", models=["m"]),
            "y": table(other.base_url, priority=1),
        }
        async with pool_of(tables) as pool:
            for upstream, model in ((one, "m"), (other, "n")):
                upstream.script(answer("Hi"))
                await body_of(claimed(pool, model))
    assert one.requests[0].headers["authorization"] == "Bearer key-of-x"
    assert "leak" not in repr((one.requests, other.requests))
    assert "authorization" not in other.requests[0].headers


async def test_the_sdks_variables_go_with_the_upstream_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-1")
    async with Upstream() as upstream, pool_of(base_url=upstream.base_url) as pool:
        upstream.script(answer("Hi"))
        await body_of(claimed(pool))
    headers = upstream.requests[0].headers
    assert (headers["openai-organization"], headers["openai-project"]) == ("org-1", "proj-1")
    assert headers["authorization"] == "Bearer test-key"


async def test_an_upstream_that_fails_is_asked_so_often_and_no_more_until_it_heals() -> None:
    async with Upstream() as bad, Upstream() as good:
        tables = {"bad": table(bad.base_url), "good": table(good.base_url, priority=1)}
        async with pool_of(tables, breaker_failures=3, breaker_open_seconds=0.05) as pool:
            bad.script(status(500), status(503), (reset(),), answer("Hi"))
            good.script(answer("Hi"))
            failures = [await attempt(claimed(pool)) for _ in range(6)]
            assert [failure is None for failure in failures] == [False, False, False, True, True, True]
            assert (len(bad.requests), len(good.requests)) == (3, 3)
            await until(lambda: pool.states()[0].state == "half_open")
            assert [await attempt(claimed(pool)) for _ in range(3)] == [None] * 3
            assert (len(bad.requests), len(good.requests)) == (6, 3)
            assert (pool.states()[0].state, pool.states()[0].failures) == ("closed", 0)


async def test_connections_of_an_upstream_are_used_again_and_gone_at_the_end() -> None:
    async with Upstream() as upstream:
        async with pool_of({"x": table(upstream.base_url)}) as pool:
            upstream.script(answer("Hi"))
            for _ in range(3):
                await attempt(claimed(pool))
            assert {request.connection for request in upstream.requests} == {1}
        await upstream.wait_for(lambda upstream: not upstream.connections)


async def test_one_key_and_another_upstreams_key_stay_out_of_every_repr() -> None:
    async with pool_of({"x": table("http://user:secret@127.0.0.1:9/v1", headers={"x-key": "secret"})}) as pool:
        member = pool._members[0]
        assert "secret" not in repr((pool, member, claimed(pool), member.upstream, member.upstream._service))
