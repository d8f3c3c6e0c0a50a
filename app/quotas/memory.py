"""Windows in memory, for the strategies of `limits`: those of this process, and those in Redis as it last saw them.

The library's own storage looks through all its windows after every use of one: with 10,000 callers that is 2 ms in
which nothing else runs. This one drops, with each window that begins, a few that are over.
"""

import heapq
import time
from collections.abc import Callable
from typing import Final

from limits.aio.storage import Storage

MAX_WINDOWS: Final = 100_000
"""Some 400 bytes each. Beyond them those that end soonest are forgotten, of a minute before those of a day."""

DROPPED_AT_ONCE: Final = 4
"""Windows that are over, for each one that begins: there is no moment in which thousands are dropped."""

SAME_SECONDS: Final = 1.5
"""Ends of a window in Redis that are seen this near to each other are the same end: it is told in whole seconds."""


class MemoryWindows(Storage):
    """A window begins with its first use, and lasts as long as its limit says; then it is as if it had never been."""

    STORAGE_SCHEME = None

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, max_windows: int = MAX_WINDOWS) -> None:
        super().__init__()
        self._clock = clock
        self._max_windows = max_windows
        self._windows: dict[str, tuple[int, float]] = {}  # how much was used, and when it is over
        self._ends: list[tuple[float, str]] = []  # a heap; one that began anew before its end stands there twice

    def __len__(self) -> int:
        return len(self._windows)

    @property
    def base_exceptions(self) -> type[Exception]:
        return ValueError

    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        window = self._window(key)
        if window is None:
            self._begin(key, amount, expiry)
            return amount
        self._windows[key] = (window[0] + amount, window[1])
        return window[0] + amount

    async def get(self, key: str) -> int:
        window = self._window(key)
        return 0 if window is None else window[0]

    async def get_expiry(self, key: str) -> float:
        """In seconds since the epoch, as all storages say it."""
        window = self._window(key)
        return time.time() + (0.0 if window is None else window[1] - self._clock())

    def goes_on(self, key: str, used: int, added: int) -> bool:
        """So much is used of a window in Redis, `added` included; False where it may not be the one known here."""
        window = self._window(key)
        if window is None or used < window[0] + added:
            return False
        self._windows[key] = (used, window[1])
        return True

    def saw(self, key: str, used: int, left_s: float) -> None:
        """The same, and when it is over. Answers do not always come in the order in which they were given."""
        window = self._window(key)
        if window is not None and abs(window[1] - self._clock() - left_s) < SAME_SECONDS:
            self._windows[key] = (max(used, window[0]), window[1])
        else:
            self._begin(key, used, left_s)

    async def check(self) -> bool:
        return True

    async def reset(self) -> int:
        held = len(self._windows)
        self._windows.clear()
        self._ends.clear()
        return held

    async def clear(self, key: str) -> None:
        self._windows.pop(key, None)

    def _window(self, key: str) -> tuple[int, float] | None:
        window = self._windows.get(key)
        return None if window is None or window[1] <= self._clock() else window

    def _begin(self, key: str, used: int, lasts_s: float) -> None:
        now = self._clock()
        self._windows[key] = (used, now + lasts_s)
        heapq.heappush(self._ends, (now + lasts_s, key))
        for _ in range(DROPPED_AT_ONCE):
            if self._ends[0][0] > now and len(self._ends) <= self._max_windows:
                break
            ends, old = heapq.heappop(self._ends)
            if self._windows.get(old, (0, 0.0))[1] == ends:
                del self._windows[old]
