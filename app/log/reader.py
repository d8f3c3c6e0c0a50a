"""A cursor on a log."""

import asyncio
from typing import TYPE_CHECKING, Final

from app.events import Event
from app.log import codec

if TYPE_CHECKING:
    from app.log.memory import MemoryLog

TAKE_ENTRIES: Final = 256
"""The most a reader takes at once: more than a writer brings in a turn, so that whoever fell behind catches up."""


class Reader:
    """`wait` is safe to cancel at any time."""

    def __init__(self, log: "MemoryLog", after: int) -> None:
        self.log: Final = log
        self.cursor = after
        self.held = False
        self._waiter: asyncio.Future[None] | None = None
        self._page_number = -1
        self._page: list[Event] = []

    def peek(self) -> list[Event]:
        """The next entries, at most `TAKE_ENTRIES`; their first seq is `cursor + 1`."""
        first = self.cursor + 1
        if not self.log.packed:
            return self.log.slice(first, TAKE_ENTRIES)
        number, offset = divmod(first, codec.PAGE_ENTRIES)
        if number != self._page_number:
            self._page_number, self._page = number, self.log.page(number)
        return self._page[offset : offset + TAKE_ENTRIES]

    def advance(self, count: int) -> None:
        """Takes the first `count` of what was peeked at."""
        self.cursor += count
        self.log.moved()

    def skip(self) -> None:
        """Takes all that there is, unseen."""
        self.advance(self.log.readable - 1 - self.cursor)

    @property
    def behind(self) -> bool:
        return self.cursor + 1 < self.log.readable

    async def wait(self) -> None:
        """Until something may have changed: entries, the end, or a call of `wake`."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        self.log.readers.discard(self)
        self.log.moved()
