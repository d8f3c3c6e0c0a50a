"""A stream's log as its writer's process keeps it while the truth is in Redis.

It is a log in memory, of which readers may have only what Redis has acknowledged: nobody holds a cursor that the shared
log never had. Its writer notices nothing: entries and the end are taken at once and brought to Redis by `Commits`.

While Redis is away the log stands alone: its attached readers go on, live only, and what they read is still kept,
within the bounds, so that readers elsewhere get the rest when Redis is back. What Redis has lost is brought again.
"""

from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from app.events import Done, Event, Failed, Start
from app.log import codec
from app.log.budget import Budget
from app.log.keys import Birth, State
from app.log.memory import MemoryLog

PARCEL_ENTRIES: Final = 256


class Courier(Protocol):
    """What brings a log's entries to Redis. `away`: not at present."""

    away: bool

    def mark(self, log: "SharedLog") -> None: ...


class Parcel(msgspec.Struct, frozen=True):
    """What is brought at once. Seqs from `first` up to, not with, `behind`; times in milliseconds."""

    first: int
    behind: int
    entries: bytes
    state: State
    birth: Birth | None
    keep_ms: int | None
    key: str = ""
    frees: bytes = b""
    chat: str = ""


class SharedLog(MemoryLog):
    """`life_ms`: how long a stream is kept whose writer says no more; `keep_ms`: how long one is kept after its end.

    `too_late`: Redis was not reached for so long that the stream may have been ended and forgotten; it stays so.
    """

    def __init__(
        self,
        start: Start,
        budget: Budget,
        courier: Courier,
        birth: Birth,
        *,
        life_ms: int,
        keep_ms: int,
        max_bytes: int,
        max_lag_bytes: int,
    ) -> None:
        self.id: Final = start.id
        self.frees_its_key: Callable[[], bool] = lambda: False
        self.on_superseded: Callable[[Done | Failed], None] = lambda _: None
        self.too_late = False
        self.chat_key = ""
        self._courier = courier
        self._birth = birth
        self.life_ms: Final = life_ms
        self._keep_ms = keep_ms
        self._acknowledged = 0
        self._brought = 0
        self._alone = self._cut = self._cut_told = False
        super().__init__(start, budget, max_bytes=max_bytes, max_lag_bytes=max_lag_bytes)
        self._added()

    @property
    def readable(self) -> int:
        return self.next_seq if self._alone else self._acknowledged

    def slice(self, first: int, count: int) -> list[Event]:
        return super().slice(first, max(min(count, self.readable - first), 0))

    @property
    def settled(self) -> bool:
        """Whether there is no more to bring."""
        return self._cut_told if self._cut else self._brought == self.next_seq

    @property
    def crowded(self) -> bool:
        if super().crowded:
            return True
        if self._alone or self.closing is not None:
            return False
        return self.kept_bytes - self._bytes_through(self._acknowledged - 1) > self.max_lag_bytes

    # What Redis is to have, and what it says.

    def parcel(self) -> Parcel:
        """The next entries to bring; none where they are to be asked for only, or are no longer here."""
        first, key, frees = self._brought, "", b""
        if self._cut or first < self._first or self.packed:
            self._cut_loose()
            return Parcel(0, 0, b"", "cut", None, self._keep_ms)
        events = super().slice(first, PARCEL_ENTRIES)
        behind = first + len(events)
        ends = self.closing is not None and behind == self.next_seq
        if ends or first == 0:
            key = self._birth.key
        if ends and key and self.frees_its_key():
            frees = self._birth.claim
        keep_ms = self._keep_ms if ends else self.life_ms if first == 0 else None
        birth = self._birth if first == 0 else None
        chat = self.chat_key if ends else ""
        return Parcel(first, behind, codec.pack_batch(events), self._state(ends), birth, keep_ms, key, frees, chat)

    def _state(self, ends: bool) -> State:
        if self.live_from is None:
            return "closed" if ends else "open"
        return "gone" if ends else "live" if self._dropping else "alone"

    def acknowledge(self, parcel: Parcel) -> None:
        """Redis has it: readers may have it too."""
        if parcel.state == "cut":
            self._cut_told = True
            return
        self._brought = max(self._brought, parcel.behind)
        self._acknowledged = max(self._acknowledged, self._brought)
        if self._brought == self.next_seq:
            self._alone = False
            if self.closing is not None:
                self._shut(self.closing)
        if self._dropping:
            self._forget()
        self._let_in()
        self._wake()

    def resume_from(self, seq: int) -> None:
        """Redis has less than it had acknowledged: it was restarted, or another took its place."""
        if seq == 0 and self.too_late:
            self._cut_loose()
        self._brought = seq

    def supersede(self, end: Done | Failed, seq: int) -> None:
        """Others took this process for dead and have ended the stream: their end, at `seq`, is the end."""
        if self.closed is not None and not self._alone:
            return
        if not self._alone and seq >= self._first:
            self._cut_off(seq)
        ended = self.closed is not None
        self._cut = self._cut_told = self._alone = True
        if not ended:
            self.closing = None
            self.close(end)
            self.on_superseded(end)

    def stand_alone(self) -> None:
        """Redis is away: readers here go on, live only."""
        if not self._alone and self.closed is None:
            self._alone = True
            if self.live_from is None:
                self.live_from = self._acknowledged
            if self.closing is not None:
                self._shut(self.closing)
            self._let_in()
            self._wake()

    def _cut_loose(self) -> None:
        """It stands alone from here on, whether Redis is away or not."""
        self._cut = True
        self.stand_alone()

    # How it differs from a log in memory.

    def _added(self) -> None:
        if self._courier.away:
            self.stand_alone()
        if self._alone:
            super()._added()
        if not self._cut:
            self._courier.mark(self)

    def _shut(self, terminal: Done | Failed) -> None:
        super()._shut(terminal)
        if self.live_from is not None and not self._alone:
            self._drop_from(self.live_from)

    def _forget_through(self, through: int) -> None:
        super()._forget_through(through if self._alone else min(through, self._brought - 1))

    def _cut_off(self, seq: int) -> None:
        """Takes back entries from `seq` on, which nobody has read."""
        at = max(seq - self._first, 0)
        if at < len(self._ends):
            before = self._ends[at - 1] if at else self._forgotten_bytes
            self._charge(before - self._ends[-1])
            del self._entries[at:], self._ends[at:]
