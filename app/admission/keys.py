"""API keys of our own. Only their hashes are known: whoever reads the settings cannot ask in a caller's name."""

import base64
import hashlib
import hmac
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

KEY_PREFIX: Final = "rk_"
"""So that a key that leaked is found by those who look for keys in what is published."""

KEY_BYTES: Final = 32


class Known(msgspec.Struct, frozen=True):
    """One key of a table of keys; `digest` is its SHA-256."""

    name: str
    digest: bytes


class KeyRing:
    """All keys that are known."""

    def __init__(self, known: Iterable[Known], compare: Callable[[bytes, bytes], bool] = hmac.compare_digest) -> None:
        self._known: Final = tuple(known)
        self._compare: Final = compare

    def find(self, key: str) -> str | None:
        """The name of the table that a key is in.

        It is compared with every key that is known, each in constant time, so that how long it takes says neither how
        much of a key was right nor which one it is.
        """
        digest = digest_of(key)
        found = None
        for known in self._known:
            if self._compare(digest, known.digest):
                found = known.name
        return found


def digest_of(key: str) -> bytes:
    """A fast hash is enough: nobody guesses 256 random bits, however fast."""
    return hashlib.sha256(key.encode()).digest()


def key_from(random: bytes) -> str:
    """A key of `KEY_BYTES` random bytes."""
    return KEY_PREFIX + base64.urlsafe_b64encode(random).rstrip(b"=").decode()
