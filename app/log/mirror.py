"""What one reader here has not yet taken of a stream that another process writes.

Nothing is kept beside that: what was taken is dropped, and what is not yet needed is left in Redis, so that a reader
that is slow costs no more here than one that reads its own process's stream.
"""

from array import array
from collections.abc import Callable
from typing import Final

from app.events import Done, Event, Failed, Passed, Start, Usage
from app.log.budget import Budget, size_of
from app.log.keys import Birth
from app.log.memory import MemoryLog
from app.usage import estimate

NO_BOUND: Final = 1 << 62
"""A mirror is bounded by its reader's lag alone."""


class Mirror(MemoryLog):
    """`receive` is its only writer. `on_room`: it was crowded and is no more."""

    def __init__(self, id: str, birth: Birth, budget: Budget, *, after: int, max_lag_bytes: int) -> None:
        super().__init__(Start(id, birth.model, True), budget, max_bytes=NO_BOUND, max_lag_bytes=max_lag_bytes)
        self.id: Final = id
        self.birth: Final = birth
        self.on_room: Callable[[], None] = lambda: None
        self._charge(-self.kept_bytes)
        self._first, self._entries, self._ends = after + 1, [], array("q")
        self._dropping = True
        self._was_crowded = False
        self._pieces = self._text_bytes = 0
        self.carrying = after >= 1

    def receive(self, behind: int, events: list[Event]) -> None:
        """A batch whose last entry is the one before `behind`; what it repeats is passed over."""
        fresh = events[max(self.next_seq - (behind - len(events)), 0) :]
        if behind - len(fresh) > self.next_seq:
            self.break_off()  # entries between were dropped in Redis before they came here
            return
        if not fresh or self.closing is not None:
            return
        last = fresh[-1]
        if isinstance(last, Done | Failed):
            fresh.pop()
        self._count(fresh)
        if fresh:
            self.append(fresh)  # type: ignore[arg-type]
        if isinstance(last, Done | Failed):
            self.close(last)
        self._was_crowded = self.crowded

    def live_only(self) -> None:
        """From here on nobody can come back for it."""
        if self.live_from is None and self.closing is None:
            self.live_from = self.next_seq
            self._wake()

    def usage(self) -> Usage:
        """As the relay estimates it, from what came here."""
        return estimate(self.birth.prompt_tokens, pieces=self._pieces, text_bytes=self._text_bytes)

    def moved(self) -> None:
        super().moved()
        if self._was_crowded and not self.crowded:
            self._was_crowded = False
            self.on_room()

    def _count(self, events: list[Event]) -> None:
        for event in events:
            piece = event.piece if isinstance(event, Passed) else event
            if piece is not None and not isinstance(piece, Start):
                self._pieces += 1
                self._text_bytes += size_of(piece)
        if self._pieces and not self.carrying:
            self.carrying = True
