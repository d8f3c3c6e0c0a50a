"""How soon there is room for another stream."""

import math
from typing import Final

UNKNOWN_RETRY_SECONDS: Final = 2.0
"""Before a stream has ended, nobody knows how long one lasts."""

MIN_RETRY_SECONDS: Final = 1.0
MAX_RETRY_SECONDS: Final = 60.0

NEWEST_SHARE: Final = 0.1
"""What the last stream counts in how long one lasts: the last twenty or so decide."""


class Pace:
    """Of n streams that last t seconds each, one ends every t/n.

    The intervals are not measured: when the crowd comes in the morning, they would be those of a quiet night.
    """

    def __init__(self) -> None:
        self._running = 0
        self._lasts_s: float | None = None
        self._moved_at = float("-inf")

    def began(self, now: float) -> None:
        self._running += 1
        self._moved_at = now

    def ended(self, lasted_s: float | None, now: float) -> None:
        """`lasted_s` is None for one that says nothing about how long others last."""
        self._running -= 1
        self._moved_at = now
        if lasted_s is None:
            return
        before_s = lasted_s if self._lasts_s is None else self._lasts_s
        self._lasts_s = before_s + NEWEST_SHARE * (lasted_s - before_s)

    def until_s(self, ends: int, now: float) -> float | None:
        """Until so many have ended, if that is known; where nothing has moved for long, as long again."""
        if self._lasts_s is None or not self._running:
            return None
        return max(self._lasts_s / self._running * ends, now - self._moved_at)

    def next_of_s(self, streams: int) -> float | None:
        """Until one of so many has ended, if that is known."""
        return None if self._lasts_s is None else self._lasts_s / streams


def worth_a_retry_s(wait_s: float | None) -> float:
    """What a client is told: neither to come back at once, nor to stay away for longer than anybody can foresee."""
    return UNKNOWN_RETRY_SECONDS if wait_s is None else min(max(wait_s, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS)


def spread_s(wait_s: float, share: float) -> float:
    """Whole seconds from the wait to twice as long, a `share` (from 0, below 1) of the way: of many that are told at
    once, only some would find room at the first moment at which there is any. Above half the longest, from there on.
    """
    soonest = math.ceil(min(wait_s, MAX_RETRY_SECONDS / 2))
    return float(soonest + math.floor(share * (soonest + 1)))
