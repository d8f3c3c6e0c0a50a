"""Which tokens were exchanged: each is exchanged once."""

from collections import OrderedDict
from typing import Final

from app.errors import RelayError

MAX_SPENT: Final = 50_000
"""About 10 MB. Of more within the life of a token (600 s) each is refused: one that is forgotten could come again."""


class Spent:
    """The ids of tokens that were exchanged, until each has expired by itself."""

    def __init__(self, keep_s: float, most: int = MAX_SPENT) -> None:
        self._keep_s: Final = keep_s
        self._most: Final = most
        self._until: Final[OrderedDict[str, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def spend(self, token_id: str, now: float) -> bool:
        """Whether it is the first time; `now` in seconds, never going back. Raises `overloaded` when there is no room.

        All are kept equally long, as long as the longest lives, so that the oldest is always the first to go.
        """
        while self._until and (oldest := next(iter(self._until.items())))[1] <= now:
            del self._until[oldest[0]]
        if token_id in self._until:
            return False
        if len(self._until) >= self._most:
            wait_s = next(iter(self._until.values())) - now
            raise RelayError("overloaded", "too many tokens are exchanged", phase="admission", retry_after_s=wait_s)
        self._until[token_id] = now + self._keep_s
        return True
