"""All streams of the process: who may find which, by id or by idempotency key, and for how long.

A stream that cannot be read again is forgotten when it ends, one that can after its time to live or, where the logs
of the process are over their bound, the oldest first. What is forgotten is remembered as gone (410) to its owner;
everybody else is told what they are told of an id that never was (404).
"""

import asyncio
import secrets
from collections import OrderedDict
from typing import Final

import msgspec

from app.admission.permits import Caller, Permits
from app.attempt import Terms, Upstream
from app.chats import Chats
from app.decode import Limits as DecodeLimits
from app.errors import RelayError, invalid_request
from app.events import Failed, Start
from app.log.budget import Budget
from app.log.memory import MemoryLog, Reader
from app.relay import Generation
from app.request.chat import Chat
from app.settings import Settings
from app.turns import Turns

GONE_SECONDS: Final = 24 * 3600
GONE_MAX: Final = 100_000
"""How long and how many ids are remembered after their logs; an id costs about 300 bytes."""

BUSY_RETRY_SECONDS: Final = 2.0
READERS_RETRY_SECONDS: Final = 2.0

STREAM_BYTES: Final = 4 * 1024
"""What a stream that is kept costs beside its log (measured); a running one holds its request as well."""

LARGE_BODY_BYTES: Final = 64 * 1024
"""Requests up to this are taken however full the logs are: the streams that filled them make room by themselves."""


class Key(msgspec.Struct, frozen=True):
    """An `Idempotency-Key` of a caller, with the hash of the body it was sent with."""

    caller: Caller
    value: str
    body_hash: bytes


class Streams:
    """The registry, and the one place where a generation is begun."""

    def __init__(self, upstream: Upstream, settings: Settings) -> None:
        self._upstream = upstream
        self._settings = settings
        self._terms = terms(settings)
        self._permits = Permits(settings.max_streams)
        self._budget = Budget(settings.log_total_bytes, self._reclaim)
        self._streams: dict[str, Generation] = {}
        self._running: set[Generation] = set()
        self._ended: OrderedDict[str, asyncio.TimerHandle] = OrderedDict()
        self._keys: dict[tuple[Caller, str], tuple[Key, Generation]] = {}
        self._key_of: dict[str, Key] = {}
        self._gone: OrderedDict[str, tuple[float, Caller]] = OrderedDict()
        self.turns: Final = Turns()
        self.chats: Final = Chats()
        self._closed = False
        self.draining = False

    def begin(
        self, chat: Chat, owner: Caller, *, request_id: str, linger_s: float, key: Key | None
    ) -> tuple[Generation, Reader]:
        """A new generation, or the one that lives under the same key, and a reader of it from the beginning.

        One synchronous step: no key starts two, and no generation is without its reader for a moment. Raises
        `idempotency_conflict`, `overloaded`, `draining`, and what `attach` raises.
        """
        if key is not None and (known := self._keys.get((key.caller, key.value))):
            if known[0].body_hash != key.body_hash:
                raise RelayError("idempotency_conflict", "this key was used with another body", phase="admission")
            return known[1], self.attach(known[1], -1)
        if self._closed:
            raise RelayError("draining", "the relay is shutting down", phase="admission", retry_after_s=1.0)
        generation = self._born(chat, owner, request_id, linger_s)
        if key is not None:
            self._keys[key.caller, key.value] = (key, generation)
            self._key_of[generation.id] = key
        generation.start(self._upstream, self._terms, self.turns)
        return generation, generation.attach(-1)

    def find(self, stream_id: str, caller: Caller) -> Generation:
        """Raises `not_found`, and `not_resumable` for an owner's stream that is gone."""
        generation = self._streams.get(stream_id)
        if generation is not None and caller.may_see(generation.owner):
            return generation
        gone = self._gone.get(stream_id)
        if gone is not None and caller.may_see(gone[1]) and gone[0] > asyncio.get_running_loop().time():
            raise RelayError("not_resumable", "this stream is over and no longer kept", phase="admission")
        raise RelayError("not_found", "no such stream", phase="admission")

    def attach(self, generation: Generation, after: int) -> Reader:
        """A reader from behind `after` on; raises `not_resumable`, `rate_limited` and, for a seq to come, 400."""
        log = generation.log
        if not log.resumable or log.live_from is not None:
            raise RelayError("not_resumable", "this stream can only be read live", phase="admission")
        if len(log.readers) >= self._settings.max_readers_per_stream:
            message = f"this stream has {len(log.readers)} readers already"
            raise RelayError("rate_limited", message, phase="admission", retry_after_s=READERS_RETRY_SECONDS)
        last = log.next_seq - 1
        if after <= last:
            return generation.attach(after)
        if log.closed is None:
            raise invalid_request(f"the stream has not come to {after} yet", param="Last-Event-ID", status=400)
        return generation.attach(last - 1)

    def cancel(self, stream_id: str, caller: Caller) -> None:
        """Stops a generation, if it still runs. Raises `not_found`."""
        try:
            self.find(stream_id, caller).cancel()
        except RelayError as error:
            if error.problem.code != "not_resumable":
                raise

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def held_bytes(self) -> int:
        """What all streams together are charged for."""
        return self._budget.used_bytes

    async def idle(self) -> None:
        """Waits until no generation runs, nor one that began meanwhile."""
        while self._running:
            await next(iter(self._running)).over()

    async def close(self) -> None:
        """Ends everything as `draining` and returns when nothing of it remains."""
        self.draining = self._closed = True
        running = list(self._running)
        for generation in running:
            generation.drain()
        for generation in running:
            await generation.over()
        for stream_id in list(self._ended):
            self._forget(stream_id)

    def _born(self, chat: Chat, owner: Caller, request_id: str, linger_s: float) -> Generation:
        if chat.body_bytes > LARGE_BODY_BYTES and self._budget.exceeded:
            message = "the relay holds as much as it may; a large request has to wait"
            raise RelayError("overloaded", message, phase="admission", retry_after_s=BUSY_RETRY_SECONDS)
        permit = self._permits.acquire()
        stream_id = f"s_{secrets.token_hex(16)}"
        log = MemoryLog(
            Start(stream_id, chat.model, linger_s > 0),
            self._budget,
            max_bytes=self._settings.log_stream_bytes,
            max_lag_bytes=self._settings.log_lag_bytes,
        )
        generation = Generation(chat, owner, log, permit, id=stream_id, request_id=request_id, linger_s=linger_s)
        generation.on_end = self._ended_now
        generation.on_over = self._running.discard
        generation.may_detach = self._may_detach
        self._budget.used_bytes += STREAM_BYTES + chat.body_bytes
        self._streams[stream_id] = generation
        self._running.add(generation)
        return generation

    def _may_detach(self, generation: Generation) -> bool:
        mine = (other for other in self._running if other.owner == generation.owner and other.log.closed is None)
        return sum(other.detached for other in mine) < self._settings.max_detached_streams

    def _ended_now(self, generation: Generation) -> None:
        self._budget.used_bytes -= generation.chat.body_bytes
        if _frees_its_key(generation):
            self._free_key(generation)
        if generation.log.resumable and generation.log.live_from is None:
            loop = asyncio.get_running_loop()
            self._ended[generation.id] = loop.call_later(self._settings.log_ttl_seconds, self._expire, generation.id)
        else:
            self._forget(generation.id)

    def _expire(self, stream_id: str) -> None:
        """A log that somebody is still reading lives on for another while."""
        if self._streams[stream_id].log.readers:
            loop = asyncio.get_running_loop()
            self._ended[stream_id] = loop.call_later(self._settings.log_ttl_seconds, self._expire, stream_id)
        else:
            self._forget(stream_id)

    def _forget(self, stream_id: str) -> None:
        generation = self._streams.pop(stream_id)
        self.chats.forgotten(generation)
        self._budget.used_bytes -= STREAM_BYTES
        if timer := self._ended.pop(stream_id, None):
            timer.cancel()
            if not generation.log.readers:  # a log released under its reader would end it with [DONE] and half the text
                generation.log.release()
        self._free_key(generation)
        self._gone[stream_id] = (asyncio.get_running_loop().time() + GONE_SECONDS, generation.owner)
        if len(self._gone) > GONE_MAX:
            self._gone.popitem(last=False)

    def _free_key(self, generation: Generation) -> None:
        if key := self._key_of.pop(generation.id, None):
            del self._keys[key.caller, key.value]

    def _reclaim(self) -> None:
        for stream_id in [id for id in self._ended if not self._streams[id].log.readers]:
            if self._budget.used_bytes <= self._budget.total_bytes:
                break
            self._forget(stream_id)


def terms(settings: Settings) -> Terms:
    return Terms(
        attempts=settings.attempts,
        max_retry_wait_s=settings.max_retry_wait_seconds,
        usage_wait_s=settings.usage_wait_seconds,
        decode=DecodeLimits(
            max_event_bytes=settings.max_event_bytes,
            max_answer_bytes=settings.max_answer_bytes,
            finish_optional=settings.finish_reason == "optional",
        ),
    )


def _frees_its_key(generation: Generation) -> bool:
    """A retryable end without text and a cancel: who asks again under the key wants a new answer."""
    if generation.cause in ("deleted", "left"):
        return True
    end = generation.log.closed
    return isinstance(end, Failed) and end.error.retryable and not end.error.partial
