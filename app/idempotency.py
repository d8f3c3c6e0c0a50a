"""Idempotency keys of the streams of this process: the same key from the same caller finds what it began."""

from typing import Final

from app.admission.callers import Caller
from app.errors import RelayError
from app.order import Key
from app.relay import Generation


class Keys:
    """A key is bound in the step that begins its stream, and free when that stream is forgotten, or before."""

    def __init__(self) -> None:
        self._bound: Final[dict[tuple[Caller, str], tuple[Key, Generation]]] = {}
        self._key_of: Final[dict[str, Key]] = {}

    def find(self, key: Key) -> Generation | None:
        """Raises `idempotency_conflict`."""
        known = self._bound.get((key.caller, key.value))
        if known is None:
            return None
        refuse_another(key, known[0].body_hash)
        return known[1]

    def bind(self, key: Key, generation: Generation) -> None:
        self._bound[key.caller, key.value] = (key, generation)
        self._key_of[generation.id] = key

    def free(self, stream_id: str) -> None:
        if key := self._key_of.pop(stream_id, None):
            del self._bound[key.caller, key.value]


def refuse_another(key: Key, body_hash: bytes) -> None:
    """Raises `idempotency_conflict` for a body that is not the one that the key was used with."""
    if body_hash != key.body_hash:
        raise RelayError("idempotency_conflict", "this key was used with another body", phase="admission")
