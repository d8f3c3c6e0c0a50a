"""When an upstream may be asked, on a clock of the tests' own."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import Problem, RelayError
from app.upstream.breaker import (
    ACCOUNT_REST_SECONDS,
    MAX_REST_SECONDS,
    PROBE_SECONDS,
    RATE_REST_SECONDS,
    Breaker,
    Question,
    Verdict,
    verdict,
)

LIMIT, OPEN_S = 3, 10.0


def problem(code: str, **fields: Any) -> Problem:
    return RelayError(code, "no", **fields).problem


def opened(at: float = 0.0) -> Breaker:
    breaker = Breaker(LIMIT, OPEN_S)
    for _ in range(LIMIT):
        breaker.failed(breaker.ask(at), at)
    assert breaker.state(at) == "open"
    return breaker


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    breaker = Breaker(LIMIT, OPEN_S)
    assert [breaker.failed(breaker.ask(0), 0) for _ in range(LIMIT)] == [False, False, True]
    assert (breaker.state(0), breaker.may_ask(0), breaker.opens_in_s(0)) == ("open", False, OPEN_S)
    assert not breaker.may_ask(9.5)
    assert breaker.opens_in_s(9.5) == 0.5


def test_a_whole_answer_between_failures_makes_them_forgotten() -> None:
    breaker = Breaker(LIMIT, OPEN_S)
    for _ in range(LIMIT - 1):
        breaker.failed(breaker.ask(0), 0)
    breaker.whole(breaker.ask(0))
    assert breaker.failures == 0
    assert not any(breaker.failed(breaker.ask(0), 0) for _ in range(LIMIT - 1))


def test_content_makes_no_failure_forgotten() -> None:
    breaker = Breaker(LIMIT, OPEN_S)
    for _ in range(LIMIT):
        question = breaker.ask(0)
        breaker.answered(question)
        breaker.failed(question, 0)
    assert breaker.state(0) == "open"


def test_without_a_limit_it_never_opens() -> None:
    breaker = Breaker(0, OPEN_S)
    assert not any(breaker.failed(breaker.ask(0), 0) for _ in range(1000))
    assert breaker.may_ask(0)


def test_half_open_it_lets_one_question_through() -> None:
    breaker = opened()
    assert (breaker.state(OPEN_S), breaker.may_ask(OPEN_S)) == ("half_open", True)
    breaker.ask(OPEN_S)
    assert (breaker.state(OPEN_S), breaker.may_ask(OPEN_S)) == ("half_open", False)
    assert breaker.opens_in_s(OPEN_S) == PROBE_SECONDS


def test_a_probe_that_fails_opens_it_again() -> None:
    breaker = opened()
    assert breaker.failed(breaker.ask(12), 12)
    assert (breaker.state(21.9), breaker.state(22)) == ("open", "half_open")


def test_a_probe_without_a_verdict_makes_room_for_another() -> None:
    breaker = opened()
    breaker.dropped(breaker.ask(OPEN_S))
    assert (breaker.state(OPEN_S), breaker.may_ask(OPEN_S)) == ("half_open", True)


def test_a_whole_answer_to_the_probe_closes_it_and_makes_all_forgotten() -> None:
    breaker = opened()
    assert breaker.whole(breaker.ask(OPEN_S))
    assert (breaker.state(OPEN_S), breaker.failures) == ("closed", 0)


def test_content_of_the_probe_closes_it_until_the_next_failure() -> None:
    breaker = opened()
    probe = breaker.ask(OPEN_S)
    assert breaker.answered(probe)
    assert not breaker.answered(probe)
    assert breaker.state(OPEN_S) == "closed"
    assert breaker.failed(breaker.ask(OPEN_S), OPEN_S)


def test_a_probe_that_dies_after_its_content_opens_it_again() -> None:
    breaker = opened()
    probe = breaker.ask(OPEN_S)
    breaker.answered(probe)
    assert breaker.failed(probe, 11)
    assert breaker.state(11 + OPEN_S) == "half_open"


def test_a_probe_that_becomes_whole_after_its_content_makes_all_forgotten() -> None:
    breaker = opened()
    probe = breaker.ask(OPEN_S)
    breaker.answered(probe)
    assert not breaker.whole(probe)
    assert breaker.failures == 0


def test_what_was_asked_before_an_outage_says_nothing_after_it() -> None:
    breaker = Breaker(LIMIT, OPEN_S)
    before = [breaker.ask(0) for _ in range(10)]
    for question in before[:LIMIT]:
        breaker.failed(question, 1)
    breaker.whole(before[LIMIT])  # content that was on its way is no sign of life
    assert breaker.state(1) == "open"
    breaker.whole(breaker.ask(11))
    assert not any(breaker.failed(question, 12) for question in before[LIMIT:])
    assert (breaker.state(12), breaker.failures) == ("closed", 0)


def test_a_rest_closes_nothing_and_the_longest_holds() -> None:
    breaker = Breaker(LIMIT, OPEN_S)
    breaker.rest(5)
    breaker.rest(3)
    assert (breaker.rests_s(0), breaker.rests_s(5), breaker.rests_s(9)) == (5, 0, 0)
    assert (breaker.state(0), breaker.may_ask(0)) == ("closed", True)


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (problem("upstream_unavailable", phase="connect"), Verdict("broken")),
        (problem("upstream_unavailable", upstream_status=500), Verdict("broken")),
        (problem("upstream_unavailable", upstream_status=503, retry_after_s=7), Verdict("broken", 7)),
        (problem("upstream_error", upstream_status=500), Verdict("broken")),
        (problem("upstream_error"), Verdict("broken")),
        (problem("upstream_timeout", phase="connect"), Verdict("broken")),
        (problem("upstream_timeout", upstream_status=504), Verdict("broken")),
        (problem("upstream_protocol"), Verdict("broken")),
        (problem("upstream_truncated"), Verdict("broken")),
        (problem("upstream_rejected", upstream_status=400), Verdict("lives")),
        (problem("rate_limited", upstream_status=429), Verdict("lives", RATE_REST_SECONDS)),
        (problem("rate_limited", upstream_status=429, retry_after_s=20), Verdict("lives", 20)),
        (problem("rate_limited", upstream_status=429, retry_after_s=86_400), Verdict("lives", MAX_REST_SECONDS)),
        *(
            (problem("upstream_error", retryable=False, upstream_status=said), Verdict("lives", ACCOUNT_REST_SECONDS))
            for said in (401, 402, 403, 409, 429, None)
        ),
        (problem("upstream_error", retryable=False, upstream_status=400), Verdict("lives")),
        (problem("draining"), Verdict("unknown")),
        (problem("internal"), Verdict("unknown")),
    ],
    ids=str,
)
def test_whose_fault_a_failure_is(failure: Problem, said: Verdict) -> None:
    assert verdict(failure) == said


@given(
    steps=st.lists(st.tuples(st.floats(0, 15), st.integers(0, 9), st.sampled_from(["answered", *"wfd"])), max_size=60)
)
def test_in_any_order_one_probe_at_a_time_and_it_always_heals(steps: list[tuple[float, int, str]]) -> None:
    """Up to ten questions at a time, which go on and end at random: whole, failed, dropped."""
    breaker, now, under_way, probe = Breaker(LIMIT, OPEN_S), 0.0, list[Question](), None
    for seconds, which, goes in steps:
        now += seconds
        while len(under_way) < 10 and breaker.may_ask(now):
            half_open = breaker.state(now) == "half_open"
            assert not (half_open and probe in under_way)
            under_way.append(breaker.ask(now))
            probe = under_way[-1] if half_open else None
        if which < len(under_way):
            go_on(breaker, under_way, which, goes, now)
    for question in under_way:
        breaker.dropped(question)
    assert breaker.may_ask(now + OPEN_S)


def go_on(breaker: Breaker, under_way: list[Question], which: int, goes: str, now: float) -> None:
    if goes == "answered":
        breaker.answered(under_way[which])
        return
    question = under_way.pop(which)
    match goes:
        case "w":
            breaker.whole(question)
        case "f":
            breaker.failed(question, now)
        case _:
            breaker.dropped(question)
