"""When whoever is refused is told to come back: what is told comes true."""

import heapq
import random
from statistics import mean

import pytest

from app.admission.callers import Quota
from app.admission.capacity import Ticket
from app.admission.pace import MAX_RETRY_SECONDS, MIN_RETRY_SECONDS
from app.errors import RelayError
from tests.places import Hall, claim


def test_when_to_come_back_follows_how_long_streams_last_and_how_many_wait() -> None:
    hall = Hall(max_streams=10, max_queued=20)
    first = [hall.enter() for _ in range(10)]
    hall.now = 20.0
    hall.release(*first)
    for _ in range(10 + 20):
        hall.enter()
    assert hall.refusal().retry_after_s == pytest.approx(20 / 10 * 21)


def test_a_night_without_streams_is_forgotten_in_the_morning() -> None:
    hall = Hall(max_streams=4, max_queued=0)
    for _ in range(20):
        ticket = hall.enter()
        hall.now += 8.0
        hall.release(ticket)
        hall.now += 3600.0
    for _ in range(4):
        hall.enter()
    assert hall.refusal().retry_after_s == pytest.approx(2.0)


def test_one_that_waits_for_a_slow_upstream_is_not_told_the_pace_of_a_fast_one() -> None:
    hall = Hall(max_streams=1000, max_queued=2, slow=2, fast=500)
    upstreams = {name: [hall.upstreams[name]] for name in ("slow", "fast")}

    def enter(name: str) -> Ticket:
        return hall.capacity.enter((), name, lambda: claim(upstreams[name]), hall.now)

    slow = [enter("slow"), enter("slow")]
    for _ in range(300):
        fast = enter("fast")
        hall.now += 0.1
        hall.release(fast)
    hall.release(*slow)
    for _ in range(4):
        enter("slow")
    with pytest.raises(RelayError) as refused:
        enter("slow")
    assert refused.value.problem.retry_after_s == pytest.approx(30 / 2 * 3)


def test_where_nothing_moves_the_wait_grows_to_a_minute_and_no_further() -> None:
    hall = Hall(max_streams=1, max_queued=0)
    first = hall.enter()
    hall.now += 0.5
    hall.release(first)
    hall.enter()
    told = []
    for later_s in (0, 10, 40, 300):
        hall.now += later_s
        told.append(hall.refusal().retry_after_s)
    assert told == [MIN_RETRY_SECONDS, 10, 50, MAX_RETRY_SECONDS]


def test_a_caller_at_its_limit_is_told_when_one_of_its_streams_ends() -> None:
    hall = Hall()
    mine = (Quota("key:k", max_streams=4),)
    first = hall.enter()
    hall.now += 40.0
    hall.release(first)
    for _ in range(4):
        hall.enter(quotas=mine)
    assert hall.refusal(quotas=mine).retry_after_s == pytest.approx(10.0)


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0], ids=["all last the same", "differ", "differ much"])
def test_under_three_times_the_load_what_is_told_is_what_comes_true(spread: float) -> None:
    """Of all that join a queue of 30 behind 20 streams, on the average; the day before was quiet."""
    chance = random.Random(7)
    hall = Hall(max_streams=20, max_queued=30)
    ends: list[tuple[float, int, Ticket]] = []
    told: dict[Ticket, tuple[float, float]] = {}
    waited: list[float] = []

    def begin(ticket: Ticket) -> None:
        lasts_s = 20 * ((1 - spread) + spread * chance.expovariate(1))
        heapq.heappush(ends, (hall.now + lasts_s, id(ticket), ticket))
        if ticket in told:
            since, told_s = told.pop(ticket)
            waited.append((hall.now - since) / told_s)

    def come() -> None:
        told_s = hall.capacity.retry_after_s(hall.now)
        try:
            ticket = hall.capacity.enter((), "a", lambda: claim([hall.upstreams["a"]]), hall.now)
        except RelayError:
            return
        if ticket.admitted:
            begin(ticket)
        else:
            told[ticket] = (hall.now, told_s)
            ticket.on_admitted = lambda: begin(ticket)

    arrivals = [i * 50.0 for i in range(20)] + [1000 + chance.uniform(0, 2000) for _ in range(6000)]
    for at in sorted(arrivals):
        while ends and ends[0][0] <= at:
            hall.now, _, ticket = heapq.heappop(ends)
            ticket.release(hall.now)
        hall.now = at
        come()
    settled = waited[100:]
    assert len(settled) > 1000
    assert 0.8 < mean(settled) < 1.25
    assert mean(0.4 < ratio < 2.5 for ratio in settled) > 0.9
