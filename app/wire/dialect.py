"""What every dialect is: a module of this package whose encoder turns the entries of a log into a client's bytes."""

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from app.errors import Problem, RelayError
from app.events import Done, Event, Failed

CONTENT_TYPE: Final = "text/event-stream; charset=utf-8"
HEADERS: Final = (
    (b"content-type", CONTENT_TYPE.encode()),
    (b"cache-control", b"no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
)
"""Of every stream. nginx reads the last, and buffers nothing of it."""

MAX_WRITE_BYTES: Final = 64 * 1024
"""About the most that one write holds: at least one entry."""

CANCELLED: Final = RelayError("cancelled", "the generation was cancelled", phase="relay").problem


class Encoder(Protocol):
    """How one reader wants its stream. Pure: the same entries give the same bytes, in one batch or one by one."""

    eof_means_lost: bool
    """Whether clients take an end without a terminal event for a lost connection; else it has to be cut off."""

    def encode(self, first_seq: int, events: Sequence[Event], live_from: int | None) -> tuple[bytes, int]:
        """The bytes of the first entries, and how many they are: as many as fit into one write.

        Entries come in order and without gaps. From `live_from` on, the stream cannot be resumed.
        """

    def ping(self, phase: str, elapsed_s: float) -> bytes:
        """Says that the stream is alive."""

    def end(self, terminal: Done | Failed) -> bytes:
        """What follows the terminal entry."""


def batch(events: Sequence[Event], block: Callable[[Event], bytes]) -> tuple[bytes, int]:
    """The blocks of the first entries, up to the one with which a write is full, and how many entries they are of.

    No entry is asked for twice, so `block` may keep a state.
    """
    blocks: list[bytes] = []
    size = 0
    for event in events:
        blocks.append(block(event))
        size += len(blocks[-1])
        if size >= MAX_WRITE_BYTES:
            break
    return b"".join(blocks), len(blocks)


def failure_of(terminal: Done | Failed) -> Problem | None:
    """Why there is no whole answer, for dialects that have no word for one that was cancelled but an error."""
    match terminal:
        case Failed(error=problem):
            return problem
        case Done(finish_reason="cancelled"):
            return CANCELLED
        case Done():
            return None
