"""The limits of one generation on one timer.

Upstream's comments and empty chunks reset nothing here: only content does, and the relay says so by `carried`. A
token costs no timer: it moves a number, and the timer, when it fires, looks whether the number has moved.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Final, Literal

from app.errors import Phase, RelayError
from app.request.chat import Limits
from app.stream import Waiting

QUEUE_RETRY_SECONDS: Final = 2.0

Limit = Literal["first_token", "idle", "total", "usage"]


class Clocks:
    """Calls `expired(limit)` once, when the first limit is reached. In a queue only the total limit runs.

    `longest_gap_s`: between two pieces of content; the times in which upstream was not read do not count.
    """

    def __init__(self, limits: Limits, expired: Callable[[Limit], None], *, queued: bool = False) -> None:
        self._loop = asyncio.get_running_loop()
        self._time: Final = self._loop.time
        self._limits: Final = limits
        self._expired = expired
        self.began: Final = self._loop.time()
        self._total_due: Final = self.began + limits.total
        self._phase: Limit = "first_token"
        self._phase_due = math.inf if queued else self.began + limits.first_token
        self.idle_s = limits.idle
        self.longest_gap_s = 0.0
        self._paused_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._arm()

    @property
    def elapsed_s(self) -> float:
        return self._loop.time() - self.began

    @property
    def remaining_s(self) -> float:
        """Until the first limit that is running now would be reached."""
        return min(self._phase_due, self._total_due) - self._loop.time()

    def admitted(self) -> None:
        """The queue is over."""
        if self._phase_due == math.inf:
            self._phase_due = self._loop.time() + self._limits.first_token
            self._enter("first_token")

    def carried(self) -> None:
        """Content came: from here on the gap to the next is what is limited."""
        due, phase = self._time() + self.idle_s, self._phase
        if phase == "idle":
            if due - self._phase_due > self.longest_gap_s:
                self.longest_gap_s = due - self._phase_due
            self._phase_due = due
        elif phase == "first_token":
            self._phase_due = due
            self._enter("idle")
        # What comes after the finish_reason does not make the wait for usage longer.

    def finishing(self, usage_wait_s: float) -> None:
        """The answer is whole; only its usage may still come."""
        if self._phase != "usage":
            self._phase_due = self._loop.time() + usage_wait_s
            self._enter("usage")

    def pause(self) -> None:
        """Upstream is not being read, so its silence is no fault of its own; the total limit runs on."""
        self._paused_at = self._loop.time()

    def resume(self) -> None:
        if self._paused_at is not None:
            self._phase_due += self._loop.time() - self._paused_at
            self._paused_at = None

    def overdue(self, limit: Limit, waiting: Waiting) -> RelayError:
        """What a client is told of a limit that has passed while it waited for this or that."""
        limit_s = self.idle_s if limit == "idle" else getattr(self._limits, limit, 0)
        if waiting == "queued":
            words = f"the {limit} limit of {limit_s:g} s passed in the queue; try again"
            return RelayError("overloaded", words, phase="admission", retry_after_s=QUEUE_RETRY_SECONDS)
        phase: Phase = "stream" if waiting == "streaming" else "first_token"
        return RelayError("upstream_timeout", f"upstream passed the {limit} limit of {limit_s:g} s", phase=phase)

    def close(self) -> None:
        """It is over: nobody is told any more."""
        self.stop()
        self._expired = lambda _: None

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _enter(self, phase: Limit) -> None:
        self._phase = phase
        self.stop()
        self._arm()

    def _arm(self) -> None:
        self._timer = self._loop.call_at(min(self._phase_due, self._total_due), self._look)

    def _look(self) -> None:
        now = self._loop.time()
        if now >= self._total_due:
            self._end("total")
        elif self._paused_at is not None:
            self._phase_due += now - self._paused_at
            self._paused_at = now
            self._timer = self._loop.call_at(min(max(self._phase_due, now + 0.1), self._total_due), self._look)
        elif now >= self._phase_due:
            self._end(self._phase)
        else:
            self._arm()

    def _end(self, limit: Limit) -> None:
        self.stop()
        self._expired(limit)
