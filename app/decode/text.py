"""Text as upstream cut it → text that can be passed on: whole characters, in pieces of a bounded length."""

import codecs
from collections.abc import Sequence

MAX_PIECE_CHARACTERS = 5_000
"""A character is at most 12 bytes of ASCII JSON (a surrogate pair): 60,000 bytes of a line that stays under 64 KiB."""

EACH_BAD_BYTE = "each-bad-byte"
"""Decoding errors: one U+FFFD for every byte that is no UTF-8. "replace" gives one for a whole truncated sequence."""


def _each_bad_byte(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(EACH_BAD_BYTE, _each_bad_byte)


def pieces(text: str) -> Sequence[str]:
    """The text in pieces that each fit into one line; the empty text is no piece."""
    if len(text) <= MAX_PIECE_CHARACTERS:
        return (text,) if text else ()
    return [text[at : at + MAX_PIECE_CHARACTERS] for at in range(0, len(text), MAX_PIECE_CHARACTERS)]


def without_lone_surrogates(text: str) -> str:
    """Each half of a surrogate pair that stands alone becomes U+FFFD, each pair its character."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class Channel:
    """One text that comes in deltas. A high surrogate at the end of one waits for its other half in the next."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting = ""

    def receive(self, text: str) -> str:
        """What can be passed on now."""
        if not text or (text.isascii() and not self.waiting):
            return text
        text = self.waiting + text
        self.waiting = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""
        return without_lone_surrogates(text[:-1] if self.waiting else text)

    def receive_eof(self) -> str:
        """The half that waited in vain."""
        waiting, self.waiting = self.waiting, ""
        return without_lone_surrogates(waiting)
