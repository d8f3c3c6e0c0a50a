"""Upstreams as admission sees them: some places each, which may all be taken, or not be asked for."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

import pytest

from app.admission.callers import Quota
from app.admission.capacity import Capacity, Ticket
from app.errors import Problem, RelayError
from app.places import Answer, Manner


class FakePlace:
    """A place at one upstream; it ends once."""

    manner = Manner()
    model = "m"

    def __init__(self, at: "FakeUpstream") -> None:
        self.at: Final = at
        self.upstream: Final = at.name
        self.over = False

    def open(
        self,
        payload: dict[str, object],
        *,
        connect_s: float,
        sent: Callable[[], None],
        headers: Mapping[str, str] | None = None,
    ) -> Awaitable[Answer]:
        raise NotImplementedError

    def carried(self) -> None: ...

    def succeeded(self) -> None:
        self.release()

    def failed(self, problem: Problem) -> None:
        self.release()

    def release(self) -> None:
        if not self.over:
            self.over = True
            self.at.left()


class FakeUpstream:
    """`tell` is called when it has room. One that is `resting` finds out, when it is asked, that it may be."""

    def __init__(self, name: str, limit: int) -> None:
        self.name: Final = name
        self.limit: Final = limit
        self.in_use = 0
        self.broken = self.resting = False
        self.tell: Callable[[], None] = lambda: None

    @property
    def has_room(self) -> bool:
        return self.in_use < self.limit and not self.broken

    def left(self) -> None:
        self.in_use -= 1
        self.tell()

    def heal(self) -> None:
        self.broken = False
        self.tell()


def claim(upstreams: Iterable[FakeUpstream]) -> FakePlace | None:
    for upstream in upstreams:
        if upstream.broken and upstream.resting:
            upstream.resting = False
            upstream.heal()
    healthy = [upstream for upstream in upstreams if not upstream.broken]
    if not healthy:
        raise RelayError("upstream_unavailable", "no upstream may be asked", phase="connect")
    for upstream in healthy:
        if upstream.has_room:
            upstream.in_use += 1
            return FakePlace(upstream)
    return None


class Hall:
    """A capacity with upstreams, whose names are the groups: "ab" are those that a and b serve."""

    def __init__(self, max_streams: int = 100, max_queued: int = 100, **limits: int) -> None:
        self.now = 0.0
        self.capacity = Capacity(max_streams, max_queued, 10.0)
        self.upstreams = {name: FakeUpstream(name, limit) for name, limit in (limits or {"a": 10**6}).items()}
        self.called: list[Ticket] = []
        for upstream in self.upstreams.values():
            upstream.tell = lambda: self.capacity.poke(self.now)

    def enter(self, group: str = "a", quotas: tuple[Quota, ...] = ()) -> Ticket:
        upstreams = [self.upstreams[name] for name in group]
        ticket = self.capacity.enter(quotas, group, lambda: claim(upstreams), self.now)
        ticket.on_admitted = lambda: self.called.append(ticket)
        return ticket

    def refusal(self, group: str = "a", quotas: tuple[Quota, ...] = ()) -> Problem:
        with pytest.raises(RelayError) as refused:
            self.enter(group, quotas)
        return refused.value.problem

    def release(self, *tickets: Ticket) -> None:
        for ticket in tickets:
            ticket.release(self.now)
