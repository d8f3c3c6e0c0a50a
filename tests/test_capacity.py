"""Who is let in, in which order, and what the others are told."""

from typing import Final

import pytest

from app.admission.callers import Quota
from app.admission.capacity import Capacity, Ticket
from app.admission.pace import UNKNOWN_RETRY_SECONDS
from app.errors import RelayError
from tests.places import FakeUpstream, Hall, claim

ONE: Final = (Quota("key:k", max_streams=1),)


def test_a_ticket_that_is_admitted_has_its_place_and_is_called_by_nobody() -> None:
    hall = Hall()
    ticket = hall.enter()
    assert ticket.admitted
    assert ticket.place is not None
    assert ticket.place.upstream == "a"
    assert hall.called == []


def test_those_that_wait_are_let_in_in_the_order_of_their_arrival() -> None:
    hall = Hall(max_streams=2)
    running = [hall.enter(), hall.enter()]
    waiting = [hall.enter() for _ in range(3)]
    assert (hall.capacity.in_use, hall.capacity.queued) == (2, 3)
    for count, ticket in enumerate(running, start=1):
        hall.release(ticket)
        assert hall.called == waiting[:count]
        assert (hall.capacity.in_use, hall.capacity.queued) == (2, 3 - count)
    assert all(ticket.place is not None for ticket in waiting[:2])


def test_when_several_places_become_free_at_once_all_are_filled() -> None:
    hall = Hall(a=3)
    for _ in range(3):
        hall.enter()
    waiting = [hall.enter() for _ in range(4)]
    hall.upstreams["a"].in_use = 0
    hall.capacity.poke(hall.now)
    assert hall.called == waiting[:3]


def test_a_ticket_that_was_released_is_not_called() -> None:
    hall = Hall(a=2)
    hall.enter()
    hall.enter()
    first, second = hall.enter(), hall.enter()
    first.on_admitted = lambda: hall.release(second)
    hall.upstreams["a"].in_use = 0
    hall.capacity.poke(hall.now)
    assert hall.called == []
    assert hall.capacity.in_use == 3


def test_of_several_lines_the_oldest_is_served_first() -> None:
    hall = Hall(max_streams=1, a=10, b=10)
    running = hall.enter("a")
    first, second, third = hall.enter("b"), hall.enter("a"), hall.enter("b")
    for ticket in (running, first, second):
        hall.release(ticket)
    assert hall.called == [first, second, third]


def test_those_whose_upstreams_are_full_are_passed_and_block_nobody() -> None:
    hall = Hall(max_streams=3, a=1, b=2)
    hall.enter("a")
    stuck = hall.enter("a")
    passing, last = hall.enter("b"), hall.enter("b")
    assert passing.admitted
    assert last.admitted
    behind = hall.enter("b")
    hall.release(passing)
    assert hall.called == [behind]
    assert not stuck.admitted


def test_a_newcomer_does_not_pass_its_own_line() -> None:
    hall = Hall(max_streams=2, a=1, b=1)
    hall.enter("a")
    hall.enter("a")
    hall.upstreams["a"].in_use = 0  # and nobody was told
    late = hall.enter("a")
    assert not late.admitted


def test_who_gives_up_leaves_its_line_and_the_others_keep_their_places() -> None:
    hall = Hall(max_streams=1)
    running, first, second, third = (hall.enter() for _ in range(4))
    hall.release(second)
    hall.release(running)
    hall.release(first)
    assert hall.called == [first, third]


def test_a_stream_that_has_left_its_upstream_still_takes_room_until_it_is_over() -> None:
    hall = Hall(max_streams=1)
    running, waiting = hall.enter(), hall.enter()
    running.taken().succeeded()
    assert hall.called == []
    hall.release(running)
    assert hall.called == [waiting]


def test_a_place_that_was_taken_over_is_its_holders_to_end() -> None:
    hall = Hall(a=1)
    ticket = hall.enter()
    place = ticket.taken()
    hall.release(ticket)
    assert hall.upstreams["a"].in_use == 1
    place.release()
    assert hall.upstreams["a"].in_use == 0


def test_where_all_upstreams_broke_those_that_wait_are_told_at_once() -> None:
    hall = Hall(max_streams=3, a=1, b=1)
    hall.enter("a")
    waiting, other, alone = hall.enter("a", ONE), hall.enter("ab"), hall.enter("ab")
    assert other.admitted
    hall.upstreams["a"].broken = True
    hall.capacity.poke(hall.now)
    assert hall.called == [waiting]
    assert waiting.failure is not None
    assert waiting.failure.problem.code == "upstream_unavailable"
    assert not alone.admitted
    assert hall.capacity.queued == 1
    assert hall.enter("b", ONE).admitted is False  # the caller's one is free again


def test_an_upstream_that_is_found_to_have_room_is_offered_to_those_that_wait() -> None:
    hall = Hall(b=1, c=3)
    hall.enter("b")
    hall.upstreams["c"].broken = True
    waiting = hall.enter("bc")
    hall.upstreams["c"].resting = True
    assert hall.enter("c").admitted  # to ask for it was to find out
    assert hall.called == [waiting]


def test_room_that_is_found_while_others_are_asked_is_offered_to_those_asked_before() -> None:
    capacity, upstream = Capacity(10, 10, 10.0), FakeUpstream("a", 1)
    upstream.broken = True
    finds = False

    def ask_the_second() -> None:
        if finds:
            upstream.broken = False
            capacity.poke(0.0)

    first = capacity.enter((), "first", lambda: None if upstream.broken else claim([upstream]), 0.0)
    second = capacity.enter((), "second", ask_the_second, 0.0)
    finds = True
    capacity.poke(0.0)
    assert (first.admitted, second.admitted) == (True, False)


def test_what_those_that_are_called_do_at_once_disturbs_nobody() -> None:
    hall = Hall(max_streams=2)
    running = [hall.enter(), hall.enter()]
    hasty, patient = hall.enter(), hall.enter()
    came: list[Ticket] = []

    def leave_and_come_again() -> None:
        hall.release(hasty)
        came.append(hall.enter())

    hasty.on_admitted = leave_and_come_again
    hall.release(*running)
    assert hall.called == [patient, *came]
    assert hall.capacity.in_use == 2


def test_a_callers_streams_count_whether_they_run_or_wait() -> None:
    hall = Hall(max_streams=1)
    subject, key = Quota("key:k/s", max_streams=5), Quota("key:k", max_streams=2)
    running, waiting = hall.enter(quotas=(subject, key)), hall.enter(quotas=(key,))
    refused = hall.refusal(quotas=(subject, key))
    assert (refused.code, refused.status, refused.phase) == ("rate_limited", 429, "admission")
    assert refused.retry_after_s == UNKNOWN_RETRY_SECONDS
    assert "(2)" in refused.message
    hall.release(waiting)
    hall.release(running)
    others = [hall.enter(quotas=(subject,)) for _ in range(5)]
    assert hall.refusal(quotas=(subject,)).code == "rate_limited"
    hall.release(*others)
    assert hall.capacity._of_callers == {}


def test_who_is_refused_for_one_quota_is_counted_under_none() -> None:
    hall = Hall()
    other = Quota("key:other", max_streams=1)
    hall.enter(quotas=ONE)
    hall.refusal(quotas=(other, *ONE))
    assert hall.enter(quotas=(other,)).admitted


@pytest.mark.parametrize(
    ("max_queued", "limits", "words"),
    [
        (0, {"a": 9}, "all streams are taken; try again"),
        (1, {"a": 9}, "all streams are taken; try again"),
        (0, {"a": 1}, "the upstreams of this model are busy; try again"),
        (1, {"a": 1}, "the upstreams of this model are busy; try again"),
    ],
)
def test_a_full_queue_says_what_is_full(max_queued: int, limits: dict[str, int], words: str) -> None:
    hall = Hall(max_streams=2, max_queued=max_queued, **limits)
    for _ in range(min(limits["a"], 2) + max_queued):
        hall.enter()
    refused = hall.refusal()
    assert (refused.code, refused.status, refused.phase) == ("overloaded", 503, "admission")
    assert (refused.message, refused.retry_after_s) == (words, UNKNOWN_RETRY_SECONDS)


def test_a_claim_that_raises_leaves_nothing_behind() -> None:
    hall = Hall()
    hall.upstreams["a"].broken = True
    assert hall.refusal(quotas=ONE).code == "upstream_unavailable"
    assert (hall.capacity.in_use, hall.capacity.queued) == (0, 0)
    hall.upstreams["a"].broken = False
    assert hall.enter(quotas=ONE).admitted


def test_after_the_end_those_that_wait_fail_and_nobody_comes_in() -> None:
    hall = Hall(max_streams=1)
    running, waiting = hall.enter(), hall.enter(quotas=ONE)
    hall.capacity.close()
    assert hall.called == [waiting]
    assert waiting.failure is not None
    assert waiting.failure.problem.code == "draining"
    assert hall.refusal().code == "draining"
    hall.release(running, waiting)
    assert (hall.capacity.in_use, hall.capacity.queued) == (0, 0)


def test_a_refusal_costs_the_same_however_many_run_and_wait() -> None:
    """Counted in what is asked, not in time: nobody is asked for a place, and no line is gone through."""
    hall = Hall(max_streams=10, max_queued=5_000)
    for _ in range(10 + 5_000):
        hall.enter()
    asked: list[None] = []
    with pytest.raises(RelayError):
        hall.capacity.enter((), "a", lambda: asked.append(None), hall.now)
    assert asked == []
