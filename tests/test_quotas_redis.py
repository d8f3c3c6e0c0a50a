"""Limits that several processes share over a real Redis: what is used, what is taken, and what happens without it."""

import asyncio
import contextlib
import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import pytest
from structlog.testing import capture_logs

from app.admission.callers import Quota
from app.errors import Problem, RelayError
from app.quotas.rates import Rates
from app.quotas.server import DECISION_SECONDS
from app.quotas.shared import SharedPermits
from tests.redis_server import RedisServer, redis_server
from tests.relay import until

ASKING: Final = (Quota("key:k", requests_per_minute=10),)
TALKING: Final = (Quota("key:k", tokens_per_minute=100, tokens_per_day=1000),)
LEASE_SECONDS: Final = 0.6
LONG_SECONDS: Final = 60.0
_numbers = itertools.count()


@pytest.fixture(scope="module")
async def lasting(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RedisServer]:
    """One that no test stops."""
    async with redis_server(tmp_path_factory.mktemp("quotas")) as server:
        yield server


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    """One that a test may stop, pause and empty."""
    async with redis_server(tmp_path) as server:
        yield server


class Processes:
    """What each of several processes has of its own, all with the same prefix."""

    def __init__(self, server: RedisServer, closing: contextlib.AsyncExitStack) -> None:
        self.server: Final = server
        self.prefix: Final = f"test{next(_numbers)}"
        self._closing = closing

    def rates(self) -> Rates:
        rates = Rates.of(self.server.url, self.prefix)
        self._closing.push_async_callback(rates.aclose)
        return rates

    def permits(self, lease_s: float = LONG_SECONDS) -> tuple[SharedPermits, asyncio.Task[None]]:
        """Whoever cancels the task kills the process."""
        permits = SharedPermits.of(self.server.url, self.prefix, lease_s)
        running = asyncio.create_task(permits.run())
        self._closing.push_async_callback(permits.aclose)
        self._closing.callback(running.cancel)
        return permits, running

    async def keys(self) -> list[str]:
        return sorted(str(key) for key in await self.server.client.keys(f"{self.prefix}:*"))

    async def held(self) -> Counter[str]:
        """Places that are taken, by the id of who holds them."""
        held: Counter[str] = Counter()
        for key in await self.keys():
            if ":permits:" in key:
                held.update(map(str, await self.server.client.zrange(key, 0, -1)))
        return held

    async def until_held(self, count: int, within_s: float = 5.0) -> None:
        async with asyncio.timeout(within_s):
            while (await self.held()).total() != count:
                await self.server.client.blpop(["nobody fills it"], timeout=0.01)


@pytest.fixture
async def shared(lasting: RedisServer) -> AsyncIterator[Processes]:
    async with contextlib.AsyncExitStack() as closing:
        yield Processes(lasting, closing)


@pytest.fixture
async def breakable(redis: RedisServer) -> AsyncIterator[Processes]:
    async with contextlib.AsyncExitStack() as closing:
        yield Processes(redis, closing)


async def admitted(rates: Rates, quotas: tuple[Quota, ...], prompt_tokens: int = 0) -> bool:
    try:
        await rates.admit(quotas, prompt_tokens)
    except RelayError:
        return False
    return True


async def refusal(rates: Rates, quotas: tuple[Quota, ...], prompt_tokens: int = 0) -> Problem:
    with pytest.raises(RelayError) as refused:
        await rates.admit(quotas, prompt_tokens)
    return refused.value.problem


async def holds(look: Callable[[], Any], within_s: float = 5.0) -> None:
    """Waits for what only asking tells."""
    async with asyncio.timeout(within_s):
        while not await look():  # noqa: ASYNC110 — Redis tells nobody
            await asyncio.sleep(0.01)


# Rates.


async def test_processes_count_requests_together(shared: Processes) -> None:
    here, there = shared.rates(), shared.rates()
    taken = [await admitted(rates, ASKING) for _ in range(10) for rates in (here, there)]
    assert taken == [True] * 10 + [False] * 10
    assert (await refusal(here, ASKING)).status == 429


async def test_of_many_requests_at_once_as_many_are_admitted_as_may_be(shared: Processes) -> None:
    processes = [shared.rates() for _ in range(3)]
    taken = await asyncio.gather(*(admitted(rates, ASKING) for rates in processes for _ in range(60)))
    assert sum(taken) == 10


async def test_tokens_that_one_process_was_charged_for_are_missing_in_another(shared: Processes) -> None:
    here, there = shared.rates(), shared.rates()
    await here.admit(TALKING, 10)
    await here.charge(TALKING, 60)
    refused = await refusal(there, TALKING, 31)
    assert "30 of the 100 tokens" in refused.message
    assert dict(refused.headers)["ratelimit"].startswith('"tokens";r=30;t=')
    await there.admit(TALKING, 30)
    assert not await admitted(here, TALKING, 1)


async def test_a_refused_client_that_comes_back_as_told_is_let_in(shared: Processes) -> None:
    here, there = shared.rates(), shared.rates()
    for _ in range(10):
        await here.admit(ASKING, 0)
    [key] = await shared.keys()
    for left_ms in (41_400, 41_600):
        await shared.server.client.pexpire(key, left_ms)
        told_s = (await refusal(shared.rates(), ASKING)).retry_after_s
        assert told_s is not None
        assert left_ms / 1000 - 0.2 <= told_s <= left_ms / 1000 + 1
    await shared.server.client.pexpire(key, 1)
    await holds(lambda: admitted(there, ASKING))
    assert await admitted(here, ASKING)


async def test_the_standing_is_what_all_processes_have_used_and_asks_nobody(shared: Processes) -> None:
    here, there = shared.rates(), shared.rates()
    for _ in range(4):
        await here.admit(ASKING, 0)
    await there.admit(ASKING, 0)
    with capture_logs() as logs:
        shared.server.pause()
        try:
            standing = await there.standing(ASKING)
        finally:
            shared.server.resume()
    assert standing is not None
    assert (standing.remaining, logs) == (5, [])
    assert 58 < standing.reset_s < 61


async def test_a_window_that_another_process_began_anew_is_known_for_new(shared: Processes) -> None:
    here, there = shared.rates(), shared.rates()
    for _ in range(10):
        await here.admit(ASKING, 0)
    [key] = await shared.keys()
    await shared.server.client.delete(key)
    await there.admit(ASKING, 0)
    await shared.server.client.pexpire(key, 20_000)
    await here.admit(ASKING, 0)
    standing = await here.standing(ASKING)
    assert standing is not None
    assert standing.remaining == 8
    assert standing.reset_s < 21


async def test_names_of_callers_are_not_told_to_who_can_list_keys(shared: Processes) -> None:
    rates, (permits, _) = shared.rates(), shared.permits()
    await rates.admit((Quota("key:secret/subject", requests_per_minute=1, tokens_per_day=5),), 1)
    await permits.take("s_1", [("key:secret/subject", 1)])
    keys = await shared.keys()
    assert len(keys) == 3
    assert not any("secret" in key or "subject" in key for key in keys)


async def test_everything_ends_by_itself(shared: Processes) -> None:
    rates, (permits, _) = shared.rates(), shared.permits(lease_s=5)
    await rates.admit((*ASKING, *TALKING), 1)
    await rates.charge(TALKING, 1)
    await permits.take("s_1", [("key:k", 1), ("upstream:a", 1)])
    lasts_s = [await shared.server.client.ttl(key) for key in await shared.keys()]
    assert len(lasts_s) == 5
    assert min(lasts_s) > 0
    assert sorted(lasts_s)[:2] == [5, 5]


async def test_while_redis_is_away_a_process_goes_on_from_what_it_saw(breakable: Processes) -> None:
    here, there = breakable.rates(), breakable.rates()
    for _ in range(6):
        await here.admit(ASKING, 0)
    await there.admit(ASKING, 0)
    with capture_logs() as logs:
        await breakable.server.stop()
        taken = [await admitted(there, ASKING) for _ in range(5)]
        assert taken == [True, True, True, False, False]
        assert [(entry["event"], entry["part"]) for entry in logs] == [("shared limits away", "rates")]
        await breakable.server.start()
        await until(lambda: len(logs) > 1, 5)
        assert [entry["event"] for entry in logs] == ["shared limits away", "shared limits are back"]
    assert [await admitted(there, ASKING) for _ in range(4)] == [True, True, True, False]
    assert not await admitted(here, ASKING)


async def test_a_paused_redis_holds_nobody_up_for_longer_than_one_decision(breakable: Processes) -> None:
    rates = breakable.rates()
    await rates.admit(ASKING, 0)
    breakable.server.pause()
    began = time.monotonic()
    taken = await asyncio.gather(*(admitted(rates, ASKING) for _ in range(300)))
    assert DECISION_SECONDS * 0.9 < time.monotonic() - began < DECISION_SECONDS * 2.5
    assert sum(taken) == 9
    began = time.monotonic()
    assert not await admitted(rates, ASKING)
    await rates.charge(TALKING, 5)
    assert time.monotonic() - began < DECISION_SECONDS / 2


async def test_many_decisions_at_once_are_no_outage(shared: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them together take longer than one may."""
    monkeypatch.setattr("app.quotas.server.DECISION_SECONDS", 0.8)
    quotas = tuple(Quota(f"key:{n}", requests_per_minute=5000, tokens_per_minute=10**6) for n in range(2))
    rates = shared.rates()
    with capture_logs() as logs:
        taken = await asyncio.gather(*(admitted(rates, quotas, 1) for _ in range(3000)))
    assert all(taken)
    assert logs == []
    standing = await rates.standing(quotas)
    assert standing is not None
    assert standing.remaining == 2000


async def test_who_leaves_in_the_middle_of_a_decision_disturbs_no_other(breakable: Processes) -> None:
    rates = breakable.rates()
    await rates.admit(ASKING, 0)
    breakable.server.pause()
    leaving = [asyncio.create_task(admitted(rates, ASKING if n % 2 else TALKING, 1)) for n in range(10)]
    await asyncio.sleep(0.05)
    for task in leaving:
        task.cancel()
    await asyncio.wait(leaving)
    breakable.server.resume()
    other = (Quota("key:other", requests_per_minute=3, tokens_per_minute=7),)
    with capture_logs() as logs:
        assert [await admitted(rates, other, 2) for _ in range(4)] == [True, True, True, False]
    assert logs == []
    standing = await rates.standing(other)
    assert standing is not None
    assert standing.remaining == 0


async def test_redis_restarted_with_its_data_goes_on_counting_and_emptied_begins_anew(breakable: Processes) -> None:
    rates = breakable.rates()
    for _ in range(9):
        await rates.admit(ASKING, 0)
    await breakable.server.stop()
    await breakable.server.start()
    await holds(lambda: back(rates))
    assert [await admitted(rates, ASKING) for _ in range(2)] == [True, False]
    await breakable.server.empty()
    await holds(lambda: back(rates))
    assert [await admitted(rates, ASKING) for _ in range(11)] == [True] * 10 + [False]


async def back(rates: Rates) -> bool:
    """Whether Redis decides."""
    await rates.admit((Quota("key:any", requests_per_minute=10**6),), 0)
    return rates._remote is not None and not rates._remote._server.away


@pytest.mark.parametrize("seed", range(4))
async def test_in_any_order_no_window_lets_in_more_than_it_may(shared: Processes, seed: int) -> None:
    """Tokens: what was charged at the end comes on top, and stops whoever comes after it."""
    chance = random.Random(seed)
    processes = [shared.rates(), shared.rates()]
    subjects = [Quota(f"key:k/{n}", requests_per_minute=12, tokens_per_minute=60) for n in range(3)]
    key = Quota("key:k", requests_per_minute=25, tokens_per_day=400)
    asked: Counter[str] = Counter()
    prompts: Counter[str] = Counter()

    async def one(number: int) -> None:
        await asyncio.sleep(chance.random() / 10)
        rates, subject, prompt = chance.choice(processes), chance.choice(subjects), chance.randint(0, 9)
        if await admitted(rates, (subject, key), prompt):
            asked.update([subject.scope, key.scope])
            prompts.update({subject.scope: prompt, key.scope: prompt})
            if not number % 5:
                await chance.choice(processes).charge((subject, key), 7)
                prompts.update({subject.scope: 7, key.scope: 7})

    await asyncio.gather(*(one(number) for number in range(150)))
    in_flight = 2 * 16 * 9
    for quota in (*subjects, key):
        assert asked[quota.scope] <= (quota.requests_per_minute or 0)
        assert prompts[quota.scope] <= (quota.tokens_per_minute or quota.tokens_per_day or 0) + in_flight
        for rates in processes:
            await admitted(rates, (Quota(quota.scope, tokens_per_day=quota.tokens_per_day),), 1)
    assert asked[key.scope] == 25 or any(asked[subject.scope] == 12 for subject in subjects)


# Permits.


async def test_processes_have_so_many_places_together(shared: Processes) -> None:
    (here, _), (there, _) = shared.permits(), shared.permits()
    assert [await each.take(f"s_{n}", [("key:k", 3)]) for n, each in enumerate((here, there, here))] == [None] * 3
    assert await there.take("s_3", [("key:k", 3)]) == "key:k"
    await there.give_back("s_1", ["key:k"])
    assert await here.take("s_4", [("key:k", 3)]) is None
    assert await there.take("s_5", [("key:k", 3)]) == "key:k"


async def test_a_place_is_taken_under_all_names_or_none(shared: Processes) -> None:
    (here, _), (there, _) = shared.permits(), shared.permits()
    assert await here.take("s_1", [("key:k/a", 5), ("key:k", 1)]) is None
    before = await shared.held()
    assert await there.take("s_2", [("key:k/b", 5), ("key:k", 1)]) == "key:k"
    assert await shared.held() == before
    await here.give_back("s_1", ["key:k/a", "key:k"])
    assert (await shared.held()).total() == 0


async def test_a_stream_takes_and_gives_back_under_one_name_after_another(shared: Processes) -> None:
    permits, _ = shared.permits()
    assert await permits.take("s_1", [("key:k", 1)]) is None
    assert await permits.take("s_1", [("upstream:a", 1)]) is None
    assert await permits.take("s_1", [("upstream:a", 1)]) is None
    await permits.give_back("s_1", ["upstream:a"])
    assert await permits.take("s_2", [("upstream:a", 1)]) is None
    assert await permits.take("s_2", [("key:k", 1)]) == "key:k"


async def test_places_are_held_for_as_long_as_they_are_needed_and_those_of_the_dead_end(shared: Processes) -> None:
    (dying, task), (living, _) = shared.permits(LEASE_SECONDS), shared.permits(LEASE_SECONDS)
    assert await dying.take("s_dead", [("key:k", 2)]) is None
    assert await living.take("s_alive", [("key:k", 2)]) is None
    await asyncio.sleep(2 * LEASE_SECONDS)  # both were renewed, or there would be room
    assert await living.take("s_more", [("key:k", 2)]) == "key:k"
    task.cancel()
    died = time.monotonic()
    await holds(lambda: took(living, "s_more", ("key:k", 2)))
    assert LEASE_SECONDS / 2 < time.monotonic() - died < 4 * LEASE_SECONDS
    await asyncio.sleep(2 * LEASE_SECONDS)
    assert await shared.held() == Counter(["s_alive", "s_more"])


async def took(permits: SharedPermits, id: str, scope: tuple[str, int]) -> bool:
    return await permits.take(id, [scope]) is None


async def test_a_process_that_ends_in_good_order_leaves_nothing(shared: Processes) -> None:
    permits, running = shared.permits()
    await permits.take("s_1", [("key:k", 2), ("upstream:a", 2)])
    running.cancel()
    await permits.aclose()
    assert (await shared.held()).total() == 0


async def test_many_places_are_renewed(shared: Processes) -> None:
    permits, _ = shared.permits(LEASE_SECONDS)
    for number in range(300):
        assert await permits.take(f"s_{number}", [("key:k", 1000)]) is None
    await asyncio.sleep(2 * LEASE_SECONDS)
    assert (await shared.held()).total() == 300
    assert await shared.server.client.ttl((await shared.keys())[0]) in (0, 1)


async def test_while_redis_is_away_all_is_granted_and_when_it_is_back_all_is_taken(breakable: Processes) -> None:
    (here, _), (there, _) = breakable.permits(LEASE_SECONDS), breakable.permits(LEASE_SECONDS)
    assert await here.take("s_1", [("key:k", 2)]) is None
    with capture_logs() as logs:
        await breakable.server.stop()
        assert await here.take("s_2", [("key:k", 2)]) is None
        assert await there.take("s_3", [("key:k", 2)]) is None
        assert await there.take("s_4", [("key:k", 2)]) is None
        await there.give_back("s_4", ["key:k"])
        await breakable.server.start()
        await breakable.until_held(3)
    assert Counter((entry["event"], entry["part"]) for entry in logs) == {
        ("shared limits away", "permits"): 2,
        ("shared limits are back", "permits"): 2,
    }
    assert await there.take("s_5", [("key:k", 2)]) == "key:k"


async def test_places_are_taken_again_when_redis_comes_back_empty(breakable: Processes) -> None:
    (here, _), (there, _) = breakable.permits(LEASE_SECONDS), breakable.permits(LEASE_SECONDS)
    assert await here.take("s_1", [("key:k", 2)]) is None
    assert await there.take("s_2", [("key:k", 2)]) is None
    await breakable.server.empty()
    await breakable.until_held(2)
    assert await there.take("s_3", [("key:k", 2)]) == "key:k"


async def test_a_paused_redis_holds_no_stream_up_for_longer_than_one_decision(breakable: Processes) -> None:
    permits, _ = breakable.permits(LEASE_SECONDS)
    breakable.server.pause()
    began = time.monotonic()
    granted = await asyncio.gather(*(permits.take(f"s_{number}", [("key:k", 5)]) for number in range(200)))
    await permits.give_back("s_0", ["key:k"])
    assert time.monotonic() - began < 2 * DECISION_SECONDS
    assert granted == [None] * 200
    breakable.server.resume()
    await breakable.until_held(199)


async def test_what_was_taken_by_one_who_left_ends_with_its_lease(breakable: Processes) -> None:
    permits, _ = breakable.permits(LEASE_SECONDS)
    breakable.server.pause()
    taking = asyncio.create_task(permits.take("s_1", [("key:k", 1)]))
    await asyncio.sleep(0.05)
    taking.cancel()
    await asyncio.wait([taking])
    breakable.server.resume()
    await holds(lambda: took(permits, "s_2", ("key:k", 1)), within_s=2 * LEASE_SECONDS)


async def test_a_place_that_is_given_back_while_it_is_renewed_is_not_left_behind(shared: Processes) -> None:
    permits, _ = shared.permits()
    assert await permits.take("s_1", [("key:k", 1)]) is None
    await shared.server.client.script_flush()  # to renew then takes longer than to give back
    await asyncio.gather(permits._renew_all(), permits.give_back("s_1", ["key:k"]))
    assert (await shared.held()).total() == 0


async def test_a_place_that_is_taken_again_while_it_is_given_back_is_held(shared: Processes) -> None:
    permits, _ = shared.permits()
    assert await permits.take("s_1", [("key:k", 1)]) is None
    await asyncio.gather(permits.take("s_1", [("key:k", 1)]), permits.give_back("s_1", ["key:k"]))
    assert (await shared.held()).total() == 1


@pytest.mark.parametrize("seed", range(4))
async def test_in_any_order_no_name_has_more_places_than_it_may_and_in_the_end_none(
    shared: Processes, seed: int
) -> None:
    """While places are renewed all the time, which must give none to who has given it back."""
    chance = random.Random(seed)
    processes = [shared.permits()[0], shared.permits()[0]]
    limits = {"key:k": 6, "key:k/a": 3, "key:k/b": 4, "upstream:u": 5}
    names = [["key:k", "key:k/a"], ["key:k", "key:k/b"], ["upstream:u"], ["key:k", "upstream:u"]]
    running: Counter[str] = Counter()
    most: Counter[str] = Counter()
    refused: Counter[str] = Counter()

    async def stream(number: int) -> None:
        permits, scopes = chance.choice(processes), chance.choice(names)
        await asyncio.sleep(chance.random() / 4)
        full = await permits.take(f"s_{number}", [(scope, limits[scope]) for scope in scopes])
        if full is not None:
            refused[full] += 1
            return
        running.update(scopes)
        for scope in scopes:
            most[scope] = max(most[scope], running[scope])
        await asyncio.sleep(chance.random() / 20)
        running.subtract(scopes)
        await permits.give_back(f"s_{number}", scopes)

    async def renew(permits: SharedPermits) -> None:
        while True:
            await permits._renew_all()
            await asyncio.sleep(0.001)

    renewing = [asyncio.create_task(renew(permits)) for permits in processes]
    await asyncio.gather(*(stream(number) for number in range(300)))
    for task in renewing:
        task.cancel()
    await asyncio.wait(renewing)
    await asyncio.gather(*(permits._renew_all() for permits in processes))
    assert all(most[scope] <= limit for scope, limit in limits.items())
    assert set(refused) >= {"key:k", "upstream:u"}
    assert (await shared.held()).total() == 0
