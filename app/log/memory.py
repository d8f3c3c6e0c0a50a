"""The log in memory: append at one end, read by cursor at the other.

- Entry `seq` is the event's place in the answer: 0 is `Start`, then 1, 2 … without gaps; the last is terminal.
- A reader has a cursor and a future of its own. Reading takes nothing away from others, so a cancelled read loses
  nothing, and a reader that stalls costs its own socket only.
- The first `close` wins and is the last entry; who comes later is told so and drops what it had.
- The log stands where backpressure would: it may run ahead of its readers, but every byte is counted. Beyond its
  bound it forgets what the slowest attached reader has taken and the rest of the stream is live only; if that reader
  is too far behind as well, the log is `crowded` and whoever writes has to wait for `room`.
- A log that nobody may resume (`resumable=False`) forgets at once what its readers have taken.
"""

import asyncio
from array import array
from collections.abc import Sequence
from typing import Final

from app.events import Done, Entry, Event, Failed, Start
from app.log import codec
from app.log.budget import ENTRY_OVERHEAD_BYTES, Budget, size_of
from app.log.reader import Reader

SHORT_LAG_BYTES: Final = 16 * 1024
"""The lag that is allowed while the logs of the process are over their bound: about one turn's worth."""


class MemoryLog:
    """One stream's log. All methods but `room` are synchronous: each is one step that nothing can interrupt."""

    def __init__(self, start: Start, budget: Budget, *, max_bytes: int, max_lag_bytes: int) -> None:
        self.resumable: Final = start.resumable
        self.max_bytes: Final = max_bytes
        self.max_lag_bytes: Final = max_lag_bytes
        self.closing: Done | Failed | None = None
        self.closed: Done | Failed | None = None
        self.broken = False
        self.carrying = False
        self.live_from: int | None = None
        self.readers: set[Reader] = set()
        self._budget = budget
        self._dropping = not self.resumable
        self._first = 0
        self._entries: list[Event] = [start]
        self._ends = array("q", [ENTRY_OVERHEAD_BYTES])
        self._forgotten_bytes = 0
        self._pages: list[bytes] | None = None
        self.packed = False
        self._room: asyncio.Future[None] | None = None
        self.kept_bytes = 0
        self._charge(ENTRY_OVERHEAD_BYTES)

    @property
    def next_seq(self) -> int:
        return self._first + len(self._ends)

    @property
    def readable(self) -> int:
        """The seq behind the last entry that readers may have."""
        return self._first + len(self._ends)

    def append(self, entries: Sequence[Entry]) -> None:
        """Adds to the answer; nothing once the log is closing."""
        if self.closing is None:
            self._add(entries)

    def mark_carrying(self) -> None:
        """Upstream has begun to answer: a reader that holds its status line back may let it go."""
        self.carrying = True
        self._wake()

    def close(self, terminal: Done | Failed) -> bool:
        """Ends the log with its terminal event; False when somebody was first."""
        if self.closing is not None:
            return False
        self.closing = terminal
        self._add([terminal])
        self._let_in()
        return True

    def break_off(self) -> None:
        """What its readers miss will never come here: they are sent away before the end, to come back elsewhere."""
        self.broken = True
        self._wake()

    def open_reader(self, after: int = -1) -> Reader:
        """A reader whose next entry is `after + 1`; it counts as attached until it is closed."""
        reader = Reader(self, after)
        self.readers.add(reader)
        return reader

    def slice(self, first: int, count: int) -> list[Event]:
        """At most `count` entries from `first` on, of a log that is not packed."""
        at = first - self._first
        return self._entries[at : at + count]

    def page(self, number: int) -> list[Event]:
        """A page of a packed log; empty behind the last, and when the log was released."""
        pages = self._pages or []
        return codec.unpack(pages[number]) if number < len(pages) else []

    def everything(self) -> list[Event]:
        """All entries that are kept; from 0 on unless the stream is live only or cannot be resumed."""
        if self._pages is None:
            return list(self._entries)
        return [event for page in self._pages for event in codec.unpack(page)]

    def release(self) -> None:
        """Gives the bytes back: nobody will read this log again."""
        self._charge(-self.kept_bytes)
        self._entries, self._pages, self.packed = [], [], True

    @property
    def full(self) -> bool:
        return self.kept_bytes > self.max_bytes or self._budget.exceeded

    @property
    def lag_bytes(self) -> int:
        """What the slowest attached reader has still to take."""
        slowest = min((reader.cursor for reader in self.readers), default=None)
        return 0 if slowest is None else self.kept_bytes - self._bytes_through(slowest)

    @property
    def crowded(self) -> bool:
        """Whether the slowest attached reader is so far behind that upstream must not be read."""
        if not self.readers or not self._dropping:
            return False
        return self.lag_bytes > (SHORT_LAG_BYTES if self._budget.exceeded else self.max_lag_bytes)

    async def room(self) -> None:
        """Waits until the log is no longer crowded, or closing."""
        while self.crowded and self.closing is None:
            self._room = asyncio.get_running_loop().create_future()
            try:
                await self._room
            finally:
                self._room = None

    def moved(self) -> None:
        """A reader has taken entries or has gone."""
        if self._dropping:
            self._forget()
        if self._room is not None:
            self._let_in()

    def _let_in(self) -> None:
        if self._room is not None and not self._room.done() and (self.closing is not None or not self.crowded):
            self._room.set_result(None)

    def _add(self, events: Sequence[Event]) -> None:
        end = self._ends[-1] if self._ends else self._forgotten_bytes
        before = end
        for event in events:
            end += size_of(event) + ENTRY_OVERHEAD_BYTES
            self._ends.append(end)
        self._entries.extend(events)
        self._charge(end - before)
        if not self._dropping and self.closing is None and self.full:
            self._drop_from(self.next_seq)
        elif not self.readers and self._dropping:
            self._forget()
        self._added()

    def _drop_from(self, seq: int) -> None:
        """From here on what every attached reader has taken is dropped: nobody can come back for it."""
        self._dropping = True
        if self.live_from is None:
            self.live_from = seq
        self._forget()

    def _added(self) -> None:
        """What was added can be read at once."""
        if self.closing is not None:
            self._shut(self.closing)
        self._wake()

    def _shut(self, terminal: Done | Failed) -> None:
        """The end can be read."""
        self.closed = terminal
        if not self._dropping and self.live_from is None:
            self._pack()

    def _pack(self) -> None:
        self._pages, self.packed = codec.pack(self._entries), True
        self._first = self.next_seq
        self._entries, self._ends = [], array("q")
        self._charge(sum(map(len, self._pages)) - self.kept_bytes)

    def _charge(self, size: int) -> None:
        self.kept_bytes += size
        self._budget.charge(size)

    def _bytes_through(self, seq: int) -> int:
        """Bytes of the kept entries up to and with `seq`."""
        at = seq - self._first
        return self._ends[at] - self._forgotten_bytes if at >= 0 else 0

    def _forget(self) -> None:
        """Drops what every attached reader has taken; all of it when nobody is attached and nobody may come."""
        through = min((reader.cursor for reader in self.readers), default=self.next_seq - 1)
        self._forget_through(through)

    def _forget_through(self, through: int) -> None:
        count = through + 1 - self._first
        if count <= 0:
            return
        dropped = self._bytes_through(through)
        self._forgotten_bytes += dropped
        self._charge(-dropped)
        del self._entries[:count], self._ends[:count]
        self._first += count

    def _wake(self) -> None:
        for reader in self.readers:
            reader.wake()
