"""Who may do a lot of work next, so that the many who have little to do never wait long.

A stream that brings a token at a time does its work at once. One that floods, or that replays a whole log, takes a
turn for each piece of up to 16 KiB or 64 entries: turns are given in the order they were asked for, `PER_LOOP` in one
turn of the loop. With 500 flooding streams a health check waited 1.5 s when each yielded by `sleep(0)`: that lets all
500 work between two looks at the sockets.
"""

import asyncio
from collections import deque
from typing import Final

PER_LOOP: Final = 8
"""Turns in one turn of the loop: about 5 ms of work, against some 0.1 ms that a turn of the loop costs by itself."""

REFUSALS_PER_LOOP: Final = 16
"""The same for requests that are refused unread, at 0.1 ms each."""

OPENINGS_PER_LOOP: Final = 1
"""The same for what begins a stream, at some 1 ms each: that long every token waits that comes meanwhile."""

LONG_LOOP_SECONDS: Final = 0.002
OPENINGS_WAIT_SECONDS: Final = 0.01
"""After a turn of the loop as long as the one no stream begins, unless none has for as long as the other: tokens,
arrivals and refusals are first. The loop's clock counts whole milliseconds."""

HEAVY_BYTES: Final = 4 * 1024
"""What a read may bring without asking for a turn: some fifteen tokens."""


class Turns:
    """First come, first served. `take` is safe to cancel."""

    def __init__(self, per_loop: int = PER_LOOP) -> None:
        self._per_loop = per_loop
        self._asked: deque[asyncio.Future[None]] = deque()
        self._giving = False

    async def take(self) -> None:
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._asked.append(turn)
        if not self._giving:
            self._giving = True
            loop.call_soon(self._give)
        await turn

    def _give(self) -> None:
        for _ in range(min(self._per_loop, len(self._asked))):
            turn = self._asked.popleft()
            if not turn.done():
                turn.set_result(None)
        self._giving = bool(self._asked)
        if self._giving:
            asyncio.get_running_loop().call_soon(self._give)


class Openings(Turns):
    """Turns of those who begin a stream, or ask upstream for it: while the loop is busy they come more slowly."""

    def __init__(self) -> None:
        super().__init__(OPENINGS_PER_LOOP)
        self._looked_at = self._gave_at = float("-inf")

    async def take(self) -> None:
        """Who comes alone has nobody to wait for."""
        if self._giving:
            await super().take()
        else:
            loop = asyncio.get_running_loop()
            self._giving, self._looked_at = True, loop.time()
            loop.call_soon(self._give)

    def _give(self) -> None:
        loop = asyncio.get_running_loop()
        now, looked_at, self._looked_at = loop.time(), self._looked_at, loop.time()
        if now - looked_at >= LONG_LOOP_SECONDS and now - self._gave_at < OPENINGS_WAIT_SECONDS:
            loop.call_soon(self._give)
        else:
            self._gave_at = now
            super()._give()
