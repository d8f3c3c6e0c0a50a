"""A stream of another process: what is known of it, and what a reader here sees of it."""

import time
from typing import TYPE_CHECKING, Final

import msgspec

from app.events import Usage
from app.log.keys import Birth, State
from app.log.mirror import Mirror
from app.log.reader import Reader
from app.stream import Waiting

if TYPE_CHECKING:
    from app.elsewhere import Elsewhere


class Remote(msgspec.Struct, frozen=True):
    """What was known of a stream when it was looked up."""

    id: str
    birth: Birth
    state: State
    next_seq: int
    spent: bool

    @property
    def over(self) -> bool:
        return self.state in ("closed", "gone", "lost", "abandoned")

    @property
    def resumable(self) -> bool:
        return self.state in ("open", "closed", "lost")


class Followed:
    """A stream of another process, as one reader here sees it."""

    def __init__(self, elsewhere: "Elsewhere", log: Mirror) -> None:
        self.id: Final = log.id
        self.log: Final = log
        self.request_id: Final = log.birth.request_id
        self._elsewhere = elsewhere

    @property
    def waiting(self) -> Waiting:
        return "streaming" if self.log.carrying else "waiting"

    @property
    def elapsed_s(self) -> float:
        return max(time.time() - self.log.birth.began, 0.0)

    @property
    def readers(self) -> int:
        return self._elsewhere.readers_of(self.id)

    def usage(self) -> Usage:
        return self.log.usage()

    def leave(self, reader: Reader, *, may_return: bool) -> None:
        """What it means is decided where it is generated: there the watch on it will end."""
        reader.close()
        if self.log.closed is not None and not reader.behind:
            self._elsewhere.spend(self.id)
        self._elsewhere.unfollow(self.log)
