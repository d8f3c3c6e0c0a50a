"""What has come of an answer: how much, since when, and where somebody wants to be told it, its text."""

from collections.abc import Sequence
from typing import Final

from app.decode import Decoder
from app.events import Delta, Entry, Passed, Usage
from app.usage import estimate, tokens

MAX_TOLD_BYTES: Final = 1024 * 1024
"""What a call to a webhook may hold of an answer; a queue of them is bounded by its number."""


class Progress:
    """`pieces` and `text_bytes` are those of the attempt that carried something; times in seconds since the beginning.

    `text` is kept for a webhook that is to be told it, else it is None; `text_cut` where it went beyond the bound.
    """

    def __init__(self, prompt_bytes: int, *, told: bool) -> None:
        self.pieces = self.text_bytes = 0
        self.first_carried_s: float | None = None
        self.prompt_tokens: Final = tokens(prompt_bytes)
        self.reported: Usage | None = None
        self.text_cut = False
        self._told: list[str] | None = [] if told else None
        self._told_bytes = 0

    @property
    def text(self) -> str | None:
        return None if self._told is None else "".join(self._told)

    def usage(self) -> Usage:
        """Upstream's, else the larger of the pieces and a quarter of the bytes."""
        return self.reported or estimate(self.prompt_tokens, pieces=self.pieces, text_bytes=self.text_bytes)

    def made(self, entries: Sequence[Entry], decoder: Decoder) -> bool:
        """What a turn has brought; whether it carried something."""
        if self._told is not None:
            self._tell(entries, self._told)
        if (carried := decoder.answer.carried) <= self.pieces:
            return False
        self.pieces, self.text_bytes = carried, decoder.answer.text_bytes
        return True

    def _tell(self, entries: Sequence[Entry], told: list[str]) -> None:
        for entry in entries:
            match entry.piece if isinstance(entry, Passed) else entry:
                case Delta(content=content) if not self.text_cut:
                    self._told_bytes += len(content.encode())
                    self.text_cut = self._told_bytes > MAX_TOLD_BYTES
                    told.append("" if self.text_cut else content)
                case _:
                    pass
