"""How many streams of 50 tokens a second one core carries: with so many, the 99th percentile of what is added to a
token's latency stays under 50 ms.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from benchmarks.contenders import DIRECT, Contender, started
from benchmarks.paced import Crowd, at, measure
from benchmarks.processes import running_upstream

LATE_MS: Final = 50
MUCH: Final = 10
MOST_STREAMS: Final = 4_000
"""Where the rig itself comes to its end, in the end."""


class Search(msgspec.Struct, frozen=True):
    """From `first` on by `factor`, then at most `steps` bisections, to within `share` of the number."""

    first: int
    measure_ms: int
    steps: int
    factor: float = 1.3
    share: float = 0.04
    most: int = MOST_STREAMS


def capacity(contender: Contender, search: Search) -> int:
    """The number of streams. Each trial has a server of its own: what one left behind must not burden the next."""
    limit_us = LATE_MS * 1000 + (0 if contender is DIRECT else _late_us(DIRECT, search.first, search))

    def fits(streams: int) -> bool:
        """What fails by little is tried again: the machine may have done something else meanwhile."""
        late_us = _late_us(contender, streams, search)
        if limit_us <= late_us < MUCH * limit_us:
            late_us = _late_us(contender, streams, search)
        return late_us < limit_us

    return largest(fits, search)


def largest(fits: Callable[[int], bool], search: Search) -> int:
    """The largest number that fits, as far as the search goes; 0 when none was found."""
    good, bad = _bracket(fits, search)
    if bad is None:
        return good
    for _ in range(search.steps):
        if bad - good <= max(1, int(good * search.share)):
            break
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def _bracket(fits: Callable[[int], bool], search: Search) -> tuple[int, int | None]:
    """One that fits, or 0, and one that does not, or None where all do."""
    good, n = 0, min(search.first, search.most)
    while fits(n):
        good = n
        if n == search.most:
            return good, None
        n = min(search.most, max(n + 1, int(n * search.factor)))
    bad = n
    while not good and n > 1:
        n = max(1, int(n / search.factor))
        if fits(n):
            good = n
        else:
            bad = n
    return good, bad


def _late_us(contender: Contender, streams: int, search: Search) -> int:
    """The 99th percentile; endless where not all of them stood."""
    with running_upstream() as upstream_port, started(contender, upstream_port) as server:
        paced = measure(Crowd(contender, server, upstream_port, streams), search.measure_ms)
    whole = paced.standing == streams and paced.tokens
    return at(paced.latency_us, 0.99) if whole else 10**9
