"""How long a generation runs on that nobody reads: one number, `linger_s` (0, some seconds, infinity)."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Final

from app.log.memory import MemoryLog

WATCHED_AGAIN_SECONDS: Final = 5.0
"""How often it is asked whether a stream without readers here is still read elsewhere, at most."""


class Lingering:
    """`gone` is called once, when nobody reads and nobody may come back; never after `stop`.

    `watched` asks whether another process has readers of the stream; None where there are no others.
    """

    def __init__(self, log: MemoryLog, linger_s: float, gone: Callable[[], None]) -> None:
        self.detached = False
        self.may_detach: Callable[[], bool] = lambda: True
        self.watched: Callable[[], Awaitable[bool]] | None = None
        self._log = log
        self._linger_s: Final = linger_s
        self._gone = gone
        self._timer: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[None] | None = None

    @property
    def _resumable(self) -> bool:
        return self._log.resumable and self._log.live_from is None

    def attached(self) -> None:
        self.detached = False
        self._cancel()

    def left(self, *, may_return: bool) -> None:
        """The last reader here has gone. One that cannot know the stream's id will not be back."""
        if not may_return:
            self._gone()
        elif self._linger_s == math.inf and self.may_detach():
            self.detached = True
        elif 0 < self._linger_s < math.inf and self._resumable:
            self._wait(self._linger_s)
        else:
            self._over()

    def stop(self) -> None:
        """The generation has ended."""
        self._gone, self.may_detach = lambda: None, lambda: True
        self._cancel()

    def _wait(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._over)

    def _over(self) -> None:
        if self._log.readers:
            return
        if self.watched is None:
            self._gone()
        else:
            self._asking = asyncio.create_task(self._ask(self.watched), name="watched")

    async def _ask(self, watched: Callable[[], Awaitable[bool]]) -> None:
        if await watched():
            self._wait(min(self._linger_s, WATCHED_AGAIN_SECONDS))
        elif not self._log.readers:
            self._gone()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._asking is not None and self._asking is not asyncio.current_task():
            self._asking.cancel()
