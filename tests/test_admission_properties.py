"""Admission over random interleavings: whatever comes, begins, fails, leaves, times out and breaks, in any order.

No limit is exceeded for a moment, nobody who waits is forgotten while there is room, nobody is overtaken in its line,
and when all have left everything is as it was before they came.
"""

from collections import Counter
from functools import partial
from typing import Final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from app.admission.callers import Quota
from app.admission.capacity import Capacity, Ticket
from app.errors import RelayError
from tests.places import FakePlace, FakeUpstream, claim

MAX_STREAMS: Final = 3
MAX_QUEUED: Final = 4
LIMITS: Final = {"a": 1, "b": 2, "c": 3}
GROUPS: Final = [frozenset(names) for names in ("a", "b", "c", "ab", "bc", "abc")]
SUBJECT: Final = Quota("key:k/subject", max_streams=2)
KEY: Final = Quota("key:k", max_streams=3)
CALLERS: Final = {"free": (), "key": (KEY,), "subject": (SUBJECT, KEY), "counted twice": (SUBJECT, SUBJECT)}


class Held:
    """A ticket as its holder knows it; `order` is that of arrival."""

    def __init__(self, ticket: Ticket, quotas: tuple[Quota, ...], group: frozenset[str], order: int) -> None:
        self.ticket: Final = ticket
        self.scopes: Final = {quota.scope for quota in quotas}
        self.group: Final = group
        self.order: Final = order
        self.place: FakePlace | None = None
        self.calls = 0
        self.over = False

    @property
    def waits(self) -> bool:
        return not self.over and not self.ticket.admitted and self.ticket.failure is None

    @property
    def runs(self) -> bool:
        return not self.over and self.ticket.admitted


class Admission(RuleBasedStateMachine):
    tickets: "Bundle[Held | None]" = Bundle("tickets")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.capacity = Capacity(MAX_STREAMS, MAX_QUEUED, 10.0)
        self.upstreams = {name: FakeUpstream(name, limit) for name, limit in LIMITS.items()}
        for upstream in self.upstreams.values():
            upstream.tell = lambda: self.capacity.poke(self.now)
        self.held: list[Held] = []
        self.closed = False
        self.admitted: list[Held] = []

    @rule(target=tickets, caller=st.sampled_from(sorted(CALLERS)), group=st.sampled_from(GROUPS), hasty=st.booleans())
    def come(self, caller: str, group: frozenset[str], hasty: bool) -> Held | None:
        """`hasty` leaves in the moment in which it is called, and somebody else comes at once."""
        quotas = CALLERS[caller]
        upstreams = [self.upstreams[name] for name in sorted(group)]
        lined_up = any(held.waits and held.group == group for held in self.held)
        before = self.counts()
        try:
            ticket = self.capacity.enter(quotas, group, lambda: claim(upstreams), self.now)
        except RelayError as error:
            self.refused(error, quotas, upstreams, before)
            return None
        held = Held(ticket, quotas, group, len(self.held))
        self.held.append(held)
        if ticket.admitted:
            assert not lined_up, "a newcomer has overtaken its own line"
            self.begin(held)
        else:
            ticket.on_admitted = partial(self.called, held, hasty)
        return held

    def refused(
        self, error: RelayError, quotas: tuple[Quota, ...], upstreams: list[FakeUpstream], before: Counter[str]
    ) -> None:
        assert self.counts() == before, "who was refused is counted"
        match error.problem.code:
            case "rate_limited":
                assert any(before[quota.scope] == quota.max_streams for quota in quotas)
            case "overloaded":
                assert self.capacity.queued == MAX_QUEUED
            case "upstream_unavailable":
                assert all(upstream.broken for upstream in upstreams)
            case code:
                assert code == "draining"
                assert self.closed
        if error.problem.status in (429, 503):
            assert 1 <= (error.problem.retry_after_s or 0) <= 60

    def called(self, held: Held, hasty: bool) -> None:
        held.calls += 1
        assert held.calls == 1
        assert not held.over
        if held.ticket.failure is None:
            self.begin(held)
        if hasty:
            self.leave(held)
            self.come("free", held.group, hasty=False)

    def begin(self, held: Held) -> None:
        overtaken = [other for other in self.held if other.waits and other.group == held.group]
        assert all(other.order > held.order for other in overtaken), "the first of a line was not the first called"

    @rule(held=consumes(tickets))
    def leave(self, held: Held | None) -> None:
        """It ends, is cancelled, or has waited for long enough."""
        if held is not None:
            held.over = True
            held.ticket.release(self.now)
            held.ticket.release(self.now)
            if held.place is not None:
                held.place.release()

    @rule(held=tickets)
    def take_over(self, held: Held | None) -> None:
        if held is not None and held.runs and held.place is None:
            place = held.ticket.taken()
            assert isinstance(place, FakePlace)
            held.place = place

    @rule(held=tickets)
    def end_the_attempt(self, held: Held | None) -> None:
        """The upstream is free again, and the stream not over."""
        if held is not None and held.place is not None:
            held.place.succeeded()

    @rule(
        change=st.sampled_from(["break", "rest", "heal", "pass", "poke"]),
        name=st.sampled_from(sorted(LIMITS)),
        seconds=st.floats(0, 100),
    )
    def change(self, change: str, name: str, seconds: float) -> None:
        upstream = self.upstreams[name]
        match change:
            case "break":
                upstream.broken, upstream.resting = True, False
            case "rest":
                upstream.resting = True
            case "heal":
                upstream.heal()
            case "pass":
                self.now += seconds
            case _:
                self.poke()

    def poke(self) -> None:
        self.capacity.poke(self.now)
        if self.capacity.in_use < MAX_STREAMS:
            for held in self.held:
                assert not (held.waits and all(self.upstreams[name].broken for name in held.group))

    @precondition(lambda self: len(self.held) > 12)
    @rule()
    def drain(self) -> None:
        self.closed = True
        self.capacity.close()
        assert not any(held.waits for held in self.held)

    def counts(self) -> Counter[str]:
        return Counter(scope for held in self.held if held.waits or held.runs for scope in held.scopes)

    @invariant()
    def what_is_counted_is_there(self) -> None:
        assert self.capacity.in_use == sum(held.runs for held in self.held)
        assert self.capacity.queued == sum(held.waits for held in self.held)
        assert self.capacity._of_callers == dict(self.counts())

    @invariant()
    def no_limit_is_exceeded(self) -> None:
        assert self.capacity.in_use <= MAX_STREAMS
        assert self.capacity.queued <= MAX_QUEUED
        assert all(upstream.in_use <= upstream.limit for upstream in self.upstreams.values())
        assert self.counts()[SUBJECT.scope] <= 2
        assert self.counts()[KEY.scope] <= 3

    @invariant()
    def nobody_is_forgotten(self) -> None:
        room = self.capacity.in_use < MAX_STREAMS
        for held in self.held:
            has_room = any(self.upstreams[name].has_room for name in held.group)
            assert not (room and held.waits and has_room), "it waits, and there is room for it"

    @invariant()
    def who_waits_no_more_was_called(self) -> None:
        for held in self.held:
            if held.ticket.failure is not None and not held.over:
                assert held.calls == 1

    def teardown(self) -> None:
        for held in self.held:  # and for those that come meanwhile
            if not held.over:
                self.leave(held)
        assert (self.capacity.in_use, self.capacity.queued, self.capacity._of_callers) == (0, 0, {})
        assert all(upstream.in_use == 0 for upstream in self.upstreams.values())


Admission.TestCase.settings = settings(deadline=None, max_examples=200, stateful_step_count=60)
TestAdmission = Admission.TestCase
