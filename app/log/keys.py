"""What stands in Redis, under which names.

    {prefix}:{id}:meta       hash    state, next (the seq to come), birth, spent
    {prefix}:{id}:events     stream  entries in batches; a batch's id is the seq behind its last entry
    {prefix}:{id}:watch      string  alive while a process other than the writer's has readers of the stream
    {prefix}:process:{p}     string  the lease of a process: it is there while the process lives
    {prefix}:inbox:{p}       stream  what other processes ask of this one
    {prefix}:key:{hash}      string  whose stream an Idempotency-Key is
    {prefix}:chat:{hash}     string  the stream that a chat waits for

A stream's state:

    open        it runs
    alone       it runs, and was live only for a while: complete, not resumable
    live        it has outgrown its bound: its last batches are here, not resumable
    closed      its writer has ended it
    gone        its writer has ended it, and it was not resumable
    lost        others have ended it, its writer being dead
    abandoned   the same, and it was not resumable
    cut         its writer lives, and could not bring all entries
"""

import hashlib
from typing import Final, Literal

import msgspec

State = Literal["open", "alone", "live", "closed", "gone", "lost", "abandoned", "cut"]


class Birth(msgspec.Struct, frozen=True):
    """What other processes know of a stream. `began`: seconds since the epoch; `key`, `claim`: its Idempotency-Key."""

    process: str
    owner_key: str
    owner: str | None
    model: str
    request_id: str
    began: float
    prompt_tokens: int
    key: str = ""
    claim: bytes = b""


class Keys:
    """The names of one prefix. A stream's keys share a hash tag."""

    def __init__(self, prefix: str) -> None:
        self._prefix: Final = prefix

    def meta(self, stream_id: str) -> str:
        return f"{self._prefix}:{{{stream_id}}}:meta"

    def events(self, stream_id: str) -> str:
        return f"{self._prefix}:{{{stream_id}}}:events"

    def watch(self, stream_id: str) -> str:
        return f"{self._prefix}:{{{stream_id}}}:watch"

    def lease(self, process: str) -> str:
        return f"{self._prefix}:process:{process}"

    def inbox(self, process: str) -> str:
        return f"{self._prefix}:inbox:{process}"

    def idempotency(self, *parts: str | None) -> str:
        return f"{self._prefix}:key:{_digest(parts)}"

    def chat(self, *parts: str | None) -> str:
        return f"{self._prefix}:chat:{_digest(parts)}"

    def owner(self, key: str, subject: str | None) -> str | None:
        """Who a stream belongs to, as it is told to Redis: an anonymous subject is a secret of its browser."""
        return None if subject is None else _digest(("owner", key, subject))

    def may_see(self, key: str, subject: str | None, birth: Birth) -> bool:
        return key == birth.owner_key and birth.owner in (None, self.owner(key, subject))


def _digest(parts: tuple[str | None, ...]) -> str:
    """Names of callers and what they chose themselves are not told to who can list keys."""
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]
