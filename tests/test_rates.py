"""How much a caller may use in a minute and in a day, where one process counts alone."""

import json
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from limits.aio.strategies import FixedWindowRateLimiter

from app.admission.callers import Quota
from app.api import problems
from app.errors import Problem, RelayError
from app.quotas.memory import DROPPED_AT_ONCE, MemoryWindows
from app.quotas.rates import Rates
from app.quotas.windows import Standing, windows_of

ASKING: Final = (Quota("key:k", requests_per_minute=3),)
TALKING: Final = (Quota("key:k", tokens_per_minute=100, tokens_per_day=250),)


class Counted:
    """Rates at a time of the test's choosing."""

    def __init__(self, max_windows: int = 1000) -> None:
        self.now = 1000.0
        self.windows = MemoryWindows(lambda: self.now, max_windows=max_windows)
        self.rates = Rates(self.windows)

    def admit(self, quotas: tuple[Quota, ...], prompt_tokens: int = 0) -> None:
        at_once(self.rates.admit(quotas, prompt_tokens))

    def charge(self, quotas: tuple[Quota, ...], tokens: int) -> None:
        at_once(self.rates.charge(quotas, tokens))

    def standing(self, quotas: tuple[Quota, ...]) -> Standing | None:
        """To a tenth of a second: the clock of the library runs on."""
        standing: Standing | None = at_once(self.rates.standing(quotas))
        return standing and msgspec.structs.replace(standing, reset_s=round(standing.reset_s, 1))

    def refusal(self, quotas: tuple[Quota, ...], prompt_tokens: int = 0) -> Problem:
        with pytest.raises(RelayError) as refused:
            self.admit(quotas, prompt_tokens)
        assert refused.value.problem.code == "rate_limited"
        assert refused.value.problem.status == 429
        assert refused.value.problem.phase == "admission"
        return refused.value.problem

    def left(self, quota: Quota) -> list[int]:
        windows = windows_of((quota,))
        assert windows is not None
        limiter = FixedWindowRateLimiter(self.windows)
        return [
            at_once(limiter.get_window_stats(window.item, window.whose)).remaining
            for window in (*windows.requests, *windows.tokens)
        ]


def at_once(deciding: Coroutine[Any, Any, Any]) -> Any:
    """In memory nothing is waited for: no other request comes between two looks at a window."""
    try:
        deciding.send(None)
    except StopIteration as done:
        return done.value
    deciding.close()
    raise AssertionError("it waits")


@pytest.fixture
def counted() -> Counted:
    return Counted()


def test_requests_of_a_minute_are_counted_and_the_next_minute_is_as_told(counted: Counted) -> None:
    for _ in range(3):
        counted.admit(ASKING)
        counted.now += 10
    refused = counted.refusal(ASKING)
    assert refused.retryable
    assert refused.retry_after_s == pytest.approx(30, abs=0.01)
    counted.now += 29.9
    assert counted.refusal(ASKING).retry_after_s == pytest.approx(0.1, abs=0.01)
    counted.now += 0.1
    counted.admit(ASKING)


def test_tokens_are_charged_for_the_prompt_at_once_and_for_the_answer_at_the_end(counted: Counted) -> None:
    counted.admit(TALKING, 40)
    assert counted.left(TALKING[0]) == [60, 210]
    counted.charge(TALKING, 30)
    assert counted.left(TALKING[0]) == [30, 180]
    counted.admit(TALKING, 30)
    assert "the 100 tokens" in counted.refusal(TALKING, 1).message
    counted.now += 60
    counted.admit(TALKING, 100)
    assert counted.left(TALKING[0]) == [0, 50]


def test_a_window_is_overshot_by_what_was_in_flight_and_then_lets_nobody_in(counted: Counted) -> None:
    for _ in range(2):
        counted.admit(TALKING, 10)
    for _ in range(2):
        counted.charge(TALKING, 500)
    assert counted.left(TALKING[0]) == [0, 0]
    counted.now += 60
    assert counted.refusal(TALKING).retry_after_s == pytest.approx(86_400 - 60, abs=0.01)


def test_a_prompt_that_does_not_fit_is_refused_and_not_counted(counted: Counted) -> None:
    counted.admit(TALKING, 70)
    refused = counted.refusal(TALKING, 31)
    assert refused.retryable
    assert "about 31 tokens, and you have 30 of the 100" in refused.message
    counted.admit(TALKING, 30)


def test_a_prompt_larger_than_a_whole_window_is_told_that_no_retry_helps(counted: Counted) -> None:
    refused = counted.refusal(TALKING, 101)
    assert not refused.retryable
    assert refused.retry_after_s is None
    assert "more than the 100" in refused.message
    assert len(counted.windows) == 0


def test_a_request_without_a_prompt_is_refused_where_no_token_is_left(counted: Counted) -> None:
    counted.admit(TALKING, 100)
    assert counted.refusal(TALKING, 0).retryable


@pytest.mark.parametrize(
    "full",
    [
        Quota("key:full", requests_per_minute=1),
        Quota("key:full", tokens_per_minute=5),
        Quota("key:full", tokens_per_day=5),
    ],
    ids=["requests", "tokens of a minute", "tokens of a day"],
)
@pytest.mark.parametrize("order", [1, -1])
def test_a_request_counts_under_all_quotas_or_where_one_is_used_up_under_none(
    counted: Counted, full: Quota, order: int
) -> None:
    other = Quota("key:other", requests_per_minute=5, tokens_per_minute=50, tokens_per_day=500)
    counted.admit((other, full), 5)
    assert counted.left(other) == [4, 45, 495]
    counted.refusal((other, full)[::order], 5)
    assert counted.left(other) == [4, 45, 495]


def test_a_quota_named_twice_counts_once(counted: Counted) -> None:
    counted.admit(ASKING * 2)
    assert counted.left(ASKING[0]) == [2]


def test_callers_and_limits_are_counted_apart(counted: Counted) -> None:
    for quota in (*ASKING, Quota("key:other", requests_per_minute=3), Quota("key:k", requests_per_minute=4)):
        for _ in range(quota.requests_per_minute or 0):
            counted.admit((quota,))
        counted.refusal((quota,))


def test_where_nothing_is_limited_by_time_nothing_is_counted_or_waited_for(counted: Counted) -> None:
    quotas = (Quota("key:k", max_streams=3), Quota("key:other"))
    for _ in range(100):
        counted.admit(quotas, 10**9)
        counted.charge(quotas, 10**9)
    assert counted.standing(quotas) is None
    assert len(counted.windows) == 0


def test_the_standing_is_that_of_the_window_with_the_smallest_part_left(counted: Counted) -> None:
    quotas = (*ASKING, *TALKING)
    counted.admit(quotas, 10)
    assert counted.standing(quotas) == Standing("requests", 3, 60, 2, 60)
    counted.charge(quotas, 60)
    counted.now += 10
    tightest = counted.standing(quotas)
    assert tightest == Standing("tokens", 100, 60, 30, 50)
    assert tightest.headers == (("ratelimit-policy", '"tokens";q=100;w=60'), ("ratelimit", '"tokens";r=30;t=50'))
    counted.now += 50
    counted.charge(quotas, 150)
    assert counted.standing(quotas) == Standing("tokens", 100, 60, 0, 60)
    counted.now += 60
    assert counted.standing(quotas) == Standing("tokens-per-day", 250, 86_400, 30, 86_280)


@pytest.mark.parametrize("events", [False, True])
def test_a_refusal_tells_where_the_caller_stands_in_headers_and_not_in_its_body(counted: Counted, events: bool) -> None:
    for _ in range(3):
        counted.admit(ASKING)
    counted.now += 18
    answer = problems.answer(counted.refusal(ASKING), events=events)
    assert answer.status_code == 429
    assert answer.headers["ratelimit-policy"] == '"requests";q=3;w=60'
    assert answer.headers["ratelimit"] == '"requests";r=0;t=42'
    assert answer.headers["retry-after"] == "42"
    assert b"ratelimit" not in bytes(answer.body).lower()


def test_headers_are_no_part_of_the_error_object() -> None:
    problem = RelayError("rate_limited", "no", headers=(("x-a", "b"),)).problem
    assert "headers" not in json.dumps(problem.as_json())
    assert problem.headers == (("x-a", "b"),)


# Windows in memory.


def test_windows_that_are_over_are_dropped_a_few_at_a_time() -> None:
    counted = Counted(max_windows=10_000)
    for number in range(1000):
        counted.admit((Quota(f"ip:{number}", requests_per_minute=1),))
    assert len(counted.windows) == 1000
    counted.now += 60
    counted.admit((Quota("ip:next", requests_per_minute=1),))
    assert len(counted.windows) == 1001 - DROPPED_AT_ONCE
    for number in range(1000):
        counted.admit((Quota(f"ip:again{number}", requests_per_minute=1),))
    assert len(counted.windows) == 1001


def test_windows_are_bounded_and_those_that_end_soonest_are_forgotten_first() -> None:
    counted = Counted(max_windows=100)
    daily = Quota("key:daily", tokens_per_day=10)
    counted.admit((daily,), 7)
    for number in range(1000):
        counted.admit((Quota(f"ip:{number}", requests_per_minute=1),))
        counted.now += 0.01
    assert len(counted.windows) <= 100
    assert len(counted.windows._ends) <= 101
    assert counted.left(daily) == [3]
    counted.refusal((Quota("ip:999", requests_per_minute=1),))


def test_a_window_that_began_anew_does_not_end_with_the_one_before() -> None:
    counted = Counted()
    counted.admit(ASKING)
    counted.now += 60
    for _ in range(3):
        counted.admit(ASKING)
    for number in range(100):
        counted.admit((Quota(f"ip:{number}", requests_per_minute=1),))
    counted.refusal(ASKING)


class Reference:
    """Fixed windows, said as plainly as can be."""

    def __init__(self) -> None:
        self.began: dict[tuple[str, str], float] = {}
        self.used: dict[tuple[str, str], int] = {}

    def at(self, name: tuple[str, str], lasts_s: float, now: float) -> int:
        if name in self.began and now >= self.began[name] + lasts_s:
            del self.began[name], self.used[name]
        return self.used.get(name, 0)

    def use(self, name: tuple[str, str], amount: int, now: float) -> None:
        self.began.setdefault(name, now)
        self.used[name] = self.used.get(name, 0) + amount

    def step(self, quotas: tuple[Quota, ...], amount: int, now: float, *, admits: bool) -> bool:
        minute, day = 60.0, 86_400.0
        tokens: list[tuple[tuple[str, str], int, int]] = []
        requests: list[tuple[tuple[str, str], int, int]] = []
        for quota in quotas:
            for kind, most, lasts_s, names in (
                ("requests", quota.requests_per_minute, minute, requests),
                ("tokens", quota.tokens_per_minute, minute, tokens),
                ("daily", quota.tokens_per_day, day, tokens),
            ):
                if most is not None:
                    names.append(((quota.scope, kind), most, self.at((quota.scope, kind), lasts_s, now)))
        if admits and any(used + max(amount, 1) > most for _, most, used in tokens):
            return False
        if admits and any(used + 1 > most for _, most, used in requests):
            return False
        for name, _, _ in requests if admits else ():
            self.use(name, 1, now)
        for name, _, _ in tokens if amount else ():
            self.use(name, amount, now)
        return True


OF_A_SUBJECT: Final = Quota("key:k/s", requests_per_minute=2, tokens_per_minute=30)
OF_A_KEY: Final = Quota("key:k", requests_per_minute=4, tokens_per_day=100)
OF_ANOTHER: Final = Quota("key:o", tokens_per_minute=20, tokens_per_day=40)
STEPS: Final = st.tuples(
    st.sampled_from([(OF_A_SUBJECT, OF_A_KEY), (OF_A_KEY,), (OF_ANOTHER,), (OF_ANOTHER, OF_A_SUBJECT)]),
    st.integers(0, 35),
    st.sampled_from([0.0, 0.0, 0.5, 20.0, 59.5, 60.0, 86_400.0]),
    st.booleans(),
)


@settings(deadline=None, max_examples=200)
@given(steps=st.lists(STEPS, max_size=60))
def test_in_any_order_what_is_admitted_and_charged_is_what_fixed_windows_say(
    steps: list[tuple[tuple[Quota, ...], int, float, bool]],
) -> None:
    counted, reference = Counted(), Reference()
    for quotas, amount, later_s, admits in steps:
        counted.now += later_s
        expected = reference.step(quotas, amount, counted.now, admits=admits)
        admitted = True
        if admits:
            admitted = False
            with suppress(RelayError):
                counted.admit(quotas, amount)
                admitted = True
        else:
            counted.charge(quotas, amount)
        assert admitted == expected
