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

OPENINGS_PER_LOOP: Final = 4
"""The same for requests that begin a stream, at some 2 ms each: a herd of 500 is a second of work."""

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
