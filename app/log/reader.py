"""A cursor on a log."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from app.events import Event
from app.log import codec

if TYPE_CHECKING:
    from app.log.memory import MemoryLog

TAKE_ENTRIES: Final = 256
"""The most a reader takes at once: more than a writer brings in a turn, so that whoever fell behind catches up."""


class Reader:
    """What `wait` gives is for one who waits, and may be cancelled at any time."""

    def __init__(self, log: "MemoryLog", after: int) -> None:
        self.log: Final = log
        self.cursor = after
        self.held = False
        self._waiter: asyncio.Future[None] | None = None
        self._take: Callable[[], bool] | None = None
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

    def wait(self, take: Callable[[], bool] | None = None) -> asyncio.Future[None]:
        """Done when something may have changed: entries, the end, or a call of `wake`. With `take`, that is asked first
        each time, where the change is made: while it says that it has done what there was to do, nobody is woken.
        """
        self._take = take
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter

    def wake(self) -> None:
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        try:
            if self._take is not None and self._take():
                return
        except BaseException as fault:  # noqa: BLE001 — it is raised where it is waited for, not in the writer
            waiter.set_exception(fault)
        else:
            waiter.set_result(None)

    def close(self) -> None:
        self._waiter = self._take = None
        self.log.readers.discard(self)
        self.log.moved()
