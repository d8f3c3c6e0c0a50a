"""What a response reads, wherever it is generated."""

from typing import Final, Literal, Protocol

from app.events import Usage
from app.log.memory import MemoryLog
from app.log.reader import Reader

Cause = Literal["finished", "failed", "deleted", "left", "drained", "lost"]

STOPPED: Final[set[Cause | None]] = {"deleted", "left"}
"""By the client, or since nobody came back within the grace."""

Waiting = Literal["queued", "connecting", "waiting", "streaming"]


class Stream(Protocol):
    """A generation of this process, or one that is followed here."""

    @property
    def id(self) -> str: ...
    @property
    def log(self) -> MemoryLog: ...
    @property
    def request_id(self) -> str: ...
    @property
    def waiting(self) -> Waiting: ...
    @property
    def elapsed_s(self) -> float: ...
    @property
    def readers(self) -> int: ...
    def usage(self) -> Usage: ...
    def leave(self, reader: Reader, *, may_return: bool) -> None: ...
