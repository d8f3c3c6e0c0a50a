"""Who may start now, who waits, and who is told to come back.

A stream begins when its caller may have one more, the process has room for it, and an upstream has a place. Where its
caller's own limit stands in the way it is refused at once: one caller must not fill the queue of all. Where room is
missing it waits, in the order of arrival among those that wait for the same upstreams. It may pass others only where
their upstreams are full.

Every step is synchronous, and `now` is in seconds of a clock that never goes back: no limit is exceeded for a moment.
"""

from collections.abc import Callable, Collection, Hashable, Sequence
from functools import partial
from typing import Final

from app.admission.callers import Quota
from app.admission.lines import Line, Lines
from app.admission.pace import Pace, worth_a_retry_s
from app.admission.refusals import ALL_TAKEN, draining, overloaded, too_many_streams
from app.admission.returning import Claim, Returning
from app.errors import RelayError
from app.places import Place

LOOKS: Final = 2
"""An upstream that is asked may find that it has room, and say so: then those that wait are looked at once more."""


class Ticket:
    """The right to run one generation, or to wait for it. It ends with `release`; twice is the same as once.

    While it waits, `place` is None. `on_admitted` is called once, when it gets its place or, all upstreams being broken
    or the relay closing, its `failure`; it neither raises nor waits.
    """

    def __init__(self, capacity: "Capacity", line: "Line[Ticket]", scopes: Collection[str], claim: Claim) -> None:
        self.place: Place | None = None
        self.admitted = False
        self.failure: RelayError | None = None
        self.on_admitted: Callable[[], None] = _nobody
        self._capacity = capacity
        self._line = line
        self._scopes = scopes
        self._claim: Claim | None = claim
        self._number = 0
        self._began_at = 0.0
        self._taken = False
        self._over = False

    def taken(self) -> Place:
        """Its holder takes the place over, and ends it."""
        assert self.place is not None
        self._taken = True
        return self.place

    def retry_after_s(self, now: float) -> float:
        """When a stream would begin that had to wait behind those that wait for the same upstreams."""
        return worth_a_retry_s(self._line.pace.until_s(len(self._line) + 1, now))

    def release(self, now: float, *, ran: bool = True) -> None:
        """Gives everything back, the place too if nobody has taken it over, and lets the next in.

        `ran`: upstream has answered, and how long that took says how long streams last.
        """
        self.on_admitted = _nobody
        self._capacity._release(self, now, ran=ran)


class Capacity:
    """Room for a number of streams, and for some that wait; how long they wait at most, their holders see to."""

    def __init__(self, max_streams: int, max_queued: int, queue_timeout_s: float) -> None:
        self.max_streams: Final = max_streams
        self.max_queued: Final = max_queued
        self.queue_timeout_s: Final = queue_timeout_s
        self.in_use = 0
        self._of_callers: dict[str, int] = {}
        self.returning: Final = Returning()
        self._lines: Lines[Ticket] = Lines()
        self._pace = Pace()
        self._asking = self._told = self._closed = False

    @property
    def queued(self) -> int:
        return self._lines.waiting

    def enter(self, quotas: Sequence[Quota], group: Hashable, claim: Claim, now: float) -> Ticket:
        """A ticket that is admitted or waits. `group`: the upstreams that `claim` chooses from.

        Raises `rate_limited` where one of the caller's quotas has as many streams as it may, running and waiting
        together, `overloaded` when the queue is full, `draining`, and what `claim` raises; then nothing is counted.
        """
        if self._closed:
            raise draining()
        scopes = self._scopes(quotas)
        ticket = Ticket(self, self._lines.of(group), scopes, claim)
        try:
            return self._entered(ticket, claim, now)
        finally:
            if self._told:
                self._let_in(now)

    def shed(self, coming: int, places: int | None, now: float) -> RelayError | None:
        """The refusal of one more, where those that are `coming` take all room that there is, the queue's included.

        `places`: what upstreams have together, None without a limit. Who is not refused here may be by `enter`.
        """
        free = self.max_streams - self.in_use
        room = free if places is None else min(free, places)
        if room + self.max_queued - self.queued > coming or self._closed:
            return None
        wait_s = worth_a_retry_s(self._pace.until_s(self.queued + coming + 1, now))
        return overloaded(ALL_TAKEN if room == free else "all upstreams are busy", wait_s)

    def poke(self, now: float) -> None:
        """An upstream has room: lets in who has waited for it."""
        if self._asking:
            self._told = True
        else:
            self._let_in(now)

    def retry_after_s(self, now: float) -> float:
        """When a stream would begin that had to wait behind all others."""
        return worth_a_retry_s(self._pace.until_s(self.queued + 1, now))

    def close(self) -> None:
        """Nothing begins any more: those that wait fail, and so does whoever comes."""
        self._closed = True
        waiting = self._lines.everybody()
        for ticket in waiting:
            self._dismiss(ticket, draining())
        _call(waiting)

    # What is counted.

    def _entered(self, ticket: Ticket, claim: Claim, now: float) -> Ticket:
        line = ticket._line
        full = self.in_use >= self.max_streams
        place = None if full or line.waiting else self._ask(claim)
        if place is None and self.queued >= self.max_queued:
            raise self._full(line, now)
        for scope in ticket._scopes:
            self._of_callers[scope] = self._of_callers.get(scope, 0) + 1
        if place is None:
            ticket._number = self._lines.join(line, ticket)
        else:
            self._admit(ticket, place, now)
        return ticket

    def _scopes(self, quotas: Sequence[Quota]) -> Collection[str]:
        scopes: list[str] = []
        for quota in quotas:
            if quota.max_streams is None:
                continue
            if (used := self._of_callers.get(quota.scope, 0)) >= quota.max_streams:
                raise too_many_streams(quota.max_streams, retry_after_s=worth_a_retry_s(self._pace.next_of_s(used)))
            if quota.scope not in scopes:
                scopes.append(quota.scope)
        return scopes

    def _admit(self, ticket: Ticket, place: Place, now: float) -> None:
        self.in_use += 1
        self._pace.began(now)
        ticket._line.pace.began(now)
        ticket.place, ticket.admitted, ticket._claim, ticket._began_at = place, True, None, now

    def _dismiss(self, ticket: Ticket, failure: RelayError | None) -> None:
        self._lines.leave(ticket._line, ticket._number)
        self._uncount(ticket)
        ticket.failure = failure

    def _uncount(self, ticket: Ticket) -> None:
        ticket._over, ticket._claim = True, None
        for scope in ticket._scopes:
            self._of_callers[scope] -= 1
            if not self._of_callers[scope]:
                del self._of_callers[scope]

    def _release(self, ticket: Ticket, now: float, *, ran: bool) -> None:
        if ticket._over:
            return
        if not ticket.admitted:
            self._dismiss(ticket, None)
            return
        self._uncount(ticket)
        self.in_use -= 1
        lasted_s = now - ticket._began_at if ran else None
        self._pace.ended(lasted_s, now)
        ticket._line.pace.ended(lasted_s, now)
        if ticket.place is not None and not ticket._taken:
            ticket.place.release()
        self._let_in(now)

    # Who is next.

    def _ask(self, claim: Claim) -> Place | None:
        self._asking = True
        try:
            return claim()
        finally:
            self._asking = False

    def _let_in(self, now: float) -> None:
        """Those that are called may enter and release as they like: by then all is settled."""
        self.returning.serve(self._ask)
        called: list[Ticket] = []
        looks = LOOKS if self.queued else 0
        while looks and self.in_use < self.max_streams:
            self._told = False
            called += self._lines.serve(partial(self._served, now=now), room=lambda: self.in_use < self.max_streams)
            looks = looks - 1 if self._told else 0
        self._told = False
        _call(called)

    def _served(self, ticket: Ticket, *, now: float) -> bool:
        """Whether it waits no more; whatever `claim` raises, it is told."""
        assert ticket._claim is not None
        try:
            place = self._ask(ticket._claim)
        except RelayError as error:
            self._dismiss(ticket, error)
            return True
        if place is None:
            return False
        self._lines.leave(ticket._line, ticket._number)
        self._admit(ticket, place, now)
        return True

    def _full(self, line: Line[Ticket], now: float) -> RelayError:
        if self.in_use >= self.max_streams:
            return overloaded(ALL_TAKEN, self.retry_after_s(now))
        wait_s = worth_a_retry_s(line.pace.until_s(len(line) + 1, now))
        return overloaded("the upstreams of this model are busy", wait_s)


def _call(tickets: Sequence[Ticket]) -> None:
    for ticket in tickets:
        ticket.on_admitted()


def _nobody() -> None:
    """Is called for a ticket that nobody waits with."""
