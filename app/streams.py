"""All streams of the process: who may find which, by id or by idempotency key, and for how long.

A stream that cannot be read again is forgotten when it ends, one that can after its time to live or, where the logs
of the process are over their bound, the oldest first. What is forgotten is remembered as gone (410) to its owner;
everybody else is told what they are told of an id that never was (404).
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from app.admission.callers import Caller
from app.chats import Chats
from app.entrance import Entrance
from app.errors import RelayError, invalid_request
from app.events import Failed
from app.gone import Gone
from app.idempotency import Keys
from app.log.budget import Budget
from app.log.reader import Reader
from app.log.shared import SharedLog
from app.logs import Logs
from app.means import Means
from app.order import Order
from app.relay import Generation
from app.settings import Settings
from app.summary import Afterwards, Listener

if TYPE_CHECKING:
    from app.log.sharing import Sharing

BUSY_RETRY_SECONDS: Final = 2.0
READERS_RETRY_SECONDS: Final = 2.0

STREAM_BYTES: Final = 4 * 1024
"""What a stream that is kept costs beside its log (measured); a running one holds its request as well."""

LARGE_BODY_BYTES: Final = 64 * 1024
"""Requests up to this are taken however full the logs are: the streams that filled them make room by themselves."""


class Streams:
    """The registry, and the one place where a generation is begun."""

    def __init__(self, means: Means, settings: Settings, sharing: "Sharing | None" = None) -> None:
        self.means: Final = means
        self._settings = settings
        self._sharing = sharing
        self._logs = Logs(settings, sharing, self._reclaim)
        self.budget: Final = self._logs.budget
        self._streams: dict[str, Generation] = {}
        self._running: set[Generation] = set()
        self._ended: OrderedDict[str, asyncio.TimerHandle] = OrderedDict()
        self._gone = Gone()
        self.max_readers: Final = settings.max_readers_per_stream
        self.keys: Final = Keys()
        self.listeners: list[Listener] = []
        self.afterwards: list[Afterwards] = []
        self.chats: Final = Chats()
        self.on_close: Callable[[], None] = lambda: None
        self._closed = False
        self.draining = False

    def known(self, order: Order) -> tuple[Generation, Reader] | None:
        """A reader of the generation that lives under the order's key. Raises `idempotency_conflict`."""
        if order.key is None or (generation := self.keys.find(order.key)) is None:
            return None
        return generation, self.attach(generation, -1, held=True)

    def admit(self, order: Order, id: str) -> Entrance:
        """A place for a generation, or in the queue.

        Raises `draining`, `overloaded`, `rate_limited`, `not_found` for a model that nobody serves, and
        `upstream_unavailable` while nobody can be asked for it.
        """
        self._refuse_when_closed()
        chat = order.chat
        if chat.body_bytes > LARGE_BODY_BYTES and self.budget.exceeded:
            message = "the relay holds as much as it may; a large request has to wait"
            raise RelayError("overloaded", message, phase="admission", retry_after_s=BUSY_RETRY_SECONDS)
        pool, now = self.means.pool, asyncio.get_running_loop().time()
        claim = partial(pool.claim, chat.model)
        ticket = self.means.capacity.enter(chat.grant.quotas, pool.serving(chat.model), claim, now)
        return Entrance(self.means, order, ticket, id)

    def begin(self, order: Order, entrance: Entrance, id: str) -> tuple[Generation, Reader]:
        """A new generation, or the one that lives under the same key by now, and a reader of it from the beginning.

        One synchronous step: no key starts two, and no generation is without its reader for a moment. The entrance is a
        new generation's from here on, else it stays the caller's. Raises `overloaded`, `draining`, and what `known`
        raises.
        """
        if known := self.known(order):
            return known
        self._refuse_when_closed()
        generation = self._born(order, entrance, id)
        if order.key is not None:
            self.keys.bind(order.key, generation)
        generation.start()
        return generation, generation.attach(-1)

    def seek(self, stream_id: str, caller: Caller) -> Generation | None:
        generation = self._streams.get(stream_id)
        return generation if generation is not None and caller.may_see(generation.owner) else None

    def find(self, stream_id: str, caller: Caller) -> Generation:
        """Raises `not_found`, and `not_resumable` for an owner's stream that is gone."""
        if generation := self.seek(stream_id, caller):
            return generation
        if self._gone.knows(stream_id, caller):
            raise RelayError("not_resumable", "this stream is over and no longer kept", phase="admission")
        raise RelayError("not_found", "no such stream", phase="admission")

    def attach(self, generation: Generation, after: int, *, held: bool = False) -> Reader:
        """A reader from behind `after` on; raises `not_resumable`, `rate_limited` and, for a seq to come, 400.

        `held`: its client gets nothing before there is an answer, and it does not count as a reader until then.
        """
        log = generation.log
        if not log.resumable or log.live_from is not None:
            raise not_resumable()
        if not held and generation.readers >= self.max_readers:
            raise too_many_readers(generation.readers)
        # What was brought to Redis may have been read elsewhere before its writer has heard that it was.
        last = (log.readable if log.closed is not None else log.next_seq) - 1
        if after > last and log.closed is None:
            raise invalid_request(f"the stream has not come to {after} yet", param="Last-Event-ID", status=400)
        reader = generation.attach(after if after <= last else last - 1)
        reader.held = held
        return reader

    def cancel(self, stream_id: str) -> None:
        """Another process was asked to."""
        if generation := self._streams.get(stream_id):
            generation.cancel()

    @property
    def live(self) -> list[Generation]:
        """Those that have not ended."""
        return [generation for generation in self._running if generation.cause is None]

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def held_bytes(self) -> int:
        """What all streams together are charged for."""
        return self.budget.used_bytes

    async def close(self) -> None:
        """Ends everything as `draining` and returns when nothing of it remains, and the shared log has the ends."""
        self.draining = self._closed = True
        self.means.capacity.close()
        self.on_close()
        running = list(self._running)
        for generation in running:
            generation.drain()
        for generation in running:
            await generation.over()
        if self._sharing is not None:
            await self._sharing.flush()  # what is forgotten before it was brought is lost to readers elsewhere
        for stream_id in list(self._ended):
            self._forget(stream_id)

    def _born(self, order: Order, entrance: Entrance, id: str) -> Generation:
        log = self._logs.begin(id, order)
        generation = Generation(order, log, entrance, self.means, id=id)
        generation.listeners, generation.afterwards = self.listeners, self.afterwards
        generation.on_end = self._ended_now
        generation.on_over = self._running.discard
        generation.lingering.may_detach = partial(self._may_detach, generation)
        if isinstance(log, SharedLog) and self._sharing is not None:
            log.frees_its_key = partial(_frees_its_key, generation)
            log.on_superseded = generation.superseded
            generation.lingering.watched = partial(self._sharing.watched, id)
        self.budget.charge(STREAM_BYTES + order.chat.body_bytes)
        self._streams[id] = generation
        self._running.add(generation)
        return generation

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise RelayError("draining", "the relay is shutting down", phase="admission", retry_after_s=1.0)

    def _may_detach(self, generation: Generation) -> bool:
        mine = (other for other in self.live if other.owner == generation.owner)
        return sum(other.lingering.detached for other in mine) < self._settings.max_detached_streams

    def _ended_now(self, generation: Generation) -> None:
        self.budget.charge(-generation.chat.body_bytes)
        if _frees_its_key(generation):
            self.keys.free(generation.id)
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
        self.budget.charge(-STREAM_BYTES)
        if timer := self._ended.pop(stream_id, None):
            timer.cancel()
            if not generation.log.readers:  # a log released under its reader would end it with [DONE] and half the text
                generation.log.release()
        self.keys.free(stream_id)
        self._gone.add(stream_id, generation.owner)

    def _reclaim(self, budget: Budget, owner: Caller | None) -> None:
        """Gives up finished logs, the oldest first, until the rest is within the budget."""
        for stream_id in [id for id in self._ended if not self._streams[id].log.readers]:
            if not budget.over:
                break
            if owner is None or self._streams[stream_id].owner == owner:
                self._forget(stream_id)


def _frees_its_key(generation: Generation) -> bool:
    """A retryable end without text and a cancel: who asks again under the key wants a new answer."""
    if generation.cause in ("deleted", "left"):
        return True
    end = generation.log.closing
    return isinstance(end, Failed) and end.error.retryable and not end.error.partial


def not_resumable() -> RelayError:
    return RelayError("not_resumable", "this stream can only be read live", phase="admission")


def too_many_readers(readers: int) -> RelayError:
    message = f"this stream has {readers} readers already"
    return RelayError("rate_limited", message, phase="admission", retry_after_s=READERS_RETRY_SECONDS)
