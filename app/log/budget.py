"""What logs cost, and the bound that all logs of a process share."""

from collections.abc import Callable
from typing import Final

from app.events import Delta, Done, Event, Failed, Passed, Reasoning, Refusal, Start, ToolCall

ENTRY_OVERHEAD_BYTES: Final = 220
"""What an entry is charged beside its text. Struct, string header and list slot take 150 (measured); the rest is what
the allocator holds back and what flooding connections take. With 150 a process that was flooded by 500 streams stood
48 MiB above its base and `log_total_bytes`, with 220 it is 25 MiB below."""


def size_of(event: Event) -> int:
    """UTF-8 bytes of what the event carries and of what it passes on."""
    match event:
        case Delta(content=text) | Reasoning(reasoning=text) | Refusal(refusal=text) | ToolCall(arguments=text):
            return len(text) if text.isascii() else len(text.encode())
        case Passed(chunk=chunk, piece=piece):
            return len(chunk) + (0 if piece is None else size_of(piece))
        case Start() | Done() | Failed():
            return 0


class Budget:
    """The bytes that some logs share: those of a process and, within it, those of a caller.

    `reclaim` is asked to give up finished logs before any is cut.
    """

    def __init__(
        self, total_bytes: int, reclaim: Callable[["Budget"], None] = lambda _: None, *, within: "Budget | None" = None
    ) -> None:
        self.total_bytes: Final = total_bytes
        self.used_bytes = 0
        self._reclaim = reclaim
        self._within = within

    def charge(self, size: int) -> None:
        """Takes bytes, or gives back a negative number of them."""
        self.used_bytes += size
        if self._within is not None:
            self._within.charge(size)

    @property
    def over(self) -> bool:
        return self.used_bytes > self.total_bytes

    @property
    def exceeded(self) -> bool:
        if self.used_bytes > self.total_bytes:
            self._reclaim(self)
            if self.used_bytes > self.total_bytes:
                return True
        return self._within is not None and self._within.exceeded
