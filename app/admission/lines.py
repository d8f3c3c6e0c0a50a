"""Lines of those that wait, one for each set of upstreams: who is next, whatever room there is."""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

from app.admission.pace import Pace

Waiter = TypeVar("Waiter")


class Line(Generic[Waiter]):
    """Those that wait for the same upstreams, by the number of their arrival, and the pace of streams there."""

    def __init__(self) -> None:
        self.waiting: OrderedDict[int, Waiter] = OrderedDict()
        self.pace: Final = Pace()

    def __len__(self) -> int:
        return len(self.waiting)

    @property
    def first(self) -> tuple[int, Waiter]:
        return next(iter(self.waiting.items()))


class Lines(Generic[Waiter]):
    """Whoever gives up leaves from the middle of its line, which costs no more than at its head."""

    def __init__(self) -> None:
        self.waiting = 0
        self._lines: dict[Hashable, Line[Waiter]] = {}  # as many as there are sets of upstreams that serve a model
        self._arrivals = 0

    def of(self, group: Hashable) -> Line[Waiter]:
        line = self._lines.get(group)
        if line is None:
            line = self._lines[group] = Line()
        return line

    def join(self, line: Line[Waiter], waiter: Waiter) -> int:
        """Its number."""
        self._arrivals += 1
        line.waiting[self._arrivals] = waiter
        self.waiting += 1
        return self._arrivals

    def leave(self, line: Line[Waiter], number: int) -> None:
        del line.waiting[number]
        self.waiting -= 1

    def everybody(self) -> list[Waiter]:
        return [waiter for line in self._lines.values() for waiter in line.waiting.values()]

    def serve(self, served: Callable[[Waiter], bool], *, room: Callable[[], bool]) -> list[Waiter]:
        """Those that `served` let leave its line: the first of each line is tried, in the order of arrival.

        Behind one that found its upstreams full, none of its line is tried: there are at most as many vain attempts as
        there are lines.
        """
        done: list[Waiter] = []
        firsts = [(line.first[0], line) for line in self._lines.values() if line.waiting]
        heapq.heapify(firsts)
        while firsts and room():
            line = firsts[0][1]
            waiter = line.first[1]
            if leaves := served(waiter):
                done.append(waiter)
            if leaves and line.waiting:
                heapq.heapreplace(firsts, (line.first[0], line))
            else:
                heapq.heappop(firsts)
        return done
