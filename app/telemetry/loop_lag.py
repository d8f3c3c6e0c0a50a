"""How late the loop is: one timer that asks to be called in a tenth of a second, and looks when it was.

Every token, heartbeat and health check of the process waits as long as this timer does.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Gauge, Histogram

TICK_SECONDS: Final = 0.1
BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)

WORST_OF_TICKS: Final = round(60 / TICK_SECONDS)
"""The longest is kept for one to two minutes, whoever scrapes meanwhile: none may take it away from another."""


class LoopLag:
    """Counts while `watching`: 1 µs in a tick, and nothing for streams or tokens."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lateness = Histogram(
            "relay_loop_lag_seconds", "How late the loop called a timer.", registry=registry, buckets=BUCKETS
        )
        longest = Gauge("relay_loop_lag_max_seconds", "The longest of that in the last minute.", registry=registry)
        longest.set_function(lambda: self.longest_s)
        self._worst_s = self._before_s = 0.0
        self._ticks = 0

    @property
    def longest_s(self) -> float:
        """Of the last one to two minutes."""
        return max(self._worst_s, self._before_s)

    def was_late(self, late_s: float) -> None:
        self._lateness.observe(late_s)
        self._worst_s = max(self._worst_s, late_s)
        self._ticks += 1
        if self._ticks == WORST_OF_TICKS:
            self._ticks, self._before_s, self._worst_s = 0, self._worst_s, 0.0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        self._loop = asyncio.get_running_loop()
        self._wait()
        try:
            yield
        finally:
            self._timer.cancel()

    def _wait(self) -> None:
        self._due = time.monotonic() + TICK_SECONDS
        self._timer = self._loop.call_later(TICK_SECONDS, self._look)

    def _look(self) -> None:
        self.was_late(max(time.monotonic() - self._due, 0.0))
        self._wait()
