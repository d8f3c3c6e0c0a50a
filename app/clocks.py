"""The limits of one generation on one timer.

Upstream's comments and empty chunks reset nothing here: only content does, and the relay says so by `carried`. A
token costs no timer: it moves a number, and the timer, when it fires, looks whether the number has moved.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Literal

from app.request.chat import Limits

Limit = Literal["first_token", "idle", "total", "usage"]


class Clocks:
    """Calls `expired(limit)` once, when the first limit is reached."""

    def __init__(self, limits: Limits, expired: Callable[[Limit], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._limits: Final = limits
        self._expired = expired
        self.began: Final = self._loop.time()
        self._total_due: Final = self.began + limits.total
        self._phase: Limit = "first_token"
        self._phase_due = self.began + limits.first_token
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

    def carried(self) -> None:
        """Content came: from here on the gap to the next is what is limited."""
        if self._phase == "usage":
            return  # what comes after the finish_reason does not make the wait for usage longer
        self._phase_due = self._loop.time() + self._limits.idle
        if self._phase == "first_token":
            self._enter("idle")

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
