"""Streams wherever they are generated: in this process, or in another one of those that share a log.

Without a shared log it is this process alone, and nothing here waits for anything.
"""

import contextlib
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TypeAlias, Union

import msgspec

from app.admission.callers import Caller, Quota
from app.chats import Awaited
from app.errors import RelayError, invalid_request
from app.events import Done, Event, Failed, Usage
from app.idempotency import refuse_another
from app.log.reader import Reader
from app.log.shared import SharedLog
from app.order import Key, Order
from app.overview import Counts
from app.relay import Generation
from app.stream import Stream
from app.streams import Streams, not_resumable, too_many_readers

if TYPE_CHECKING:
    from app.elsewhere import Elsewhere
    from app.following import Remote

Found: TypeAlias = Union[Generation, "Remote"]


class Account(msgspec.Struct, frozen=True):
    """What there is of an answer by now. `usage` is what is known while it runs."""

    id: str
    model: str
    events: list[Event]
    end: Done | Failed | None
    usage: Usage


class Fleet:
    """What it raises beside what `Streams` raises: `overloaded` while the shared log is away and has to be asked."""

    def __init__(self, streams: Streams, elsewhere: "Elsewhere | None") -> None:
        self.streams: Final = streams
        self.counts: Final = Counts()
        self._elsewhere = elsewhere

    @property
    def shared_log(self) -> str | None:
        """`ready` or `away`; None without one."""
        if self._elsewhere is None:
            return None
        return "away" if self._elsewhere.sharing.away else "ready"

    async def begin(self, order: Order) -> tuple[Stream, Reader]:
        """A new generation, or the one that lives under the same key, wherever it is."""
        if known := self.streams.known(order):
            return known
        stream_id = f"s_{secrets.token_hex(16)}"
        if order.key is not None and self._elsewhere is not None and order.linger_s > 0:
            claimed = await self._claim(self._elsewhere, order.key, stream_id, order.owner)
            if not isinstance(claimed, Key):
                return claimed
            order = msgspec.structs.replace(order, key=claimed)
        with contextlib.ExitStack() as undone:
            undone.callback(self._give_back, order.key)
            entrance = self.streams.admit(order, stream_id)
            undone.callback(entrance.close)
            if entrance.admitted:
                await entrance.settle()
            begun = self.streams.begin(order, entrance, stream_id)
            if begun[0].id == stream_id:  # else the key's other request was faster
                undone.pop_all()
                self.counts.started += 1
            return begun

    async def standing(self, quotas: Sequence[Quota]) -> tuple[tuple[str, str], ...]:
        """What a caller's answers say of what it has left."""
        found = await self.streams.means.rates.standing(quotas)
        return () if found is None else found.headers

    async def find(self, stream_id: str, caller: Caller) -> Found:
        """Raises `not_found`, and `not_resumable` for an owner's stream that is gone."""
        if generation := self.streams.seek(stream_id, caller):
            return generation
        if self._elsewhere is not None and (remote := await self._elsewhere.find(stream_id, caller)):
            return remote
        return self.streams.find(stream_id, caller)

    async def attach(self, found: Found, after: int) -> tuple[Stream, Reader]:
        """A reader from behind `after` on; raises `not_resumable`, `rate_limited` and, for a seq to come, 400."""
        if isinstance(found, Generation):
            return found, self.streams.attach(found, after)
        readers = self._reachable.readers_of(found.id)
        if readers >= self.streams.max_readers:
            raise too_many_readers(readers)
        return await self._follow(found, after)

    async def cancel(self, stream_id: str, caller: Caller) -> None:
        """Stops a generation, if it still runs. Raises `not_found`."""
        try:
            await self.cancel_found(await self.find(stream_id, caller))
        except RelayError as error:
            if error.problem.code != "not_resumable":
                raise

    async def cancel_found(self, found: Found) -> None:
        if isinstance(found, Generation):
            found.cancel()
        else:
            await self._reachable.cancel(found)

    async def account(self, found: Found) -> Account:
        """Raises `not_resumable` for a stream whose beginning is not kept."""
        if isinstance(found, Generation):
            if not found.log.resumable or found.log.live_from is not None:
                raise not_resumable()
            return Account(found.id, found.chat.model, found.log.everything(), found.log.closed, found.usage())
        if not found.resumable:
            raise not_resumable()
        return await self._reachable.account(found)

    def over(self, found: Found, after: int) -> bool:
        """Whether the stream has ended and nothing is left behind `after`."""
        if isinstance(found, Generation):
            return found.log.closed is not None and after == found.log.readable - 1
        return found.over and after == found.next_seq - 1

    def chat_begun(self, chat_id: str, stream: Stream, message_id: str) -> None:
        """The chat of the stream's owner waits for it now."""
        if not isinstance(stream, Generation) or not self.streams.chats.begun(chat_id, Awaited(stream, message_id)):
            return
        if self._elsewhere is not None and isinstance(stream.log, SharedLog):
            self._elsewhere.chat_begun(chat_id, stream.owner, stream.log, message_id)
            stream.on_spent = self._elsewhere.spend

    async def chat(self, chat_id: str, caller: Caller) -> tuple[Found, str] | None:
        """The answer that a chat waits for, and what its client calls it."""
        if awaited := self.streams.chats.find(chat_id, caller):
            return awaited.generation, awaited.message_id
        if self._elsewhere is None or self.streams.chats.knows(chat_id, caller):
            return None
        return await self._elsewhere.chat(chat_id, caller)

    async def aclose(self) -> None:
        if self._elsewhere is not None:
            await self._elsewhere.aclose()

    def _give_back(self, key: Key | None) -> None:
        """Nothing was begun under it."""
        if key is not None and key.claim and self._elsewhere is not None:
            self._elsewhere.give_back(key.name, key.claim)

    @property
    def _reachable(self) -> "Elsewhere":
        assert self._elsewhere is not None  # who has found something elsewhere has asked there
        return self._elsewhere

    async def _follow(self, remote: "Remote", after: int) -> tuple[Stream, Reader]:
        if not remote.resumable:
            raise not_resumable()
        if after >= remote.next_seq and not remote.over:
            raise invalid_request(f"the stream has not come to {after} yet", param="Last-Event-ID", status=400)
        return await self._reachable.follow(remote, min(after, remote.next_seq - 2) if remote.over else after)

    async def _claim(
        self, elsewhere: "Elsewhere", key: Key, stream_id: str, owner: Caller
    ) -> Key | tuple[Stream, Reader]:
        """The key, claimed for a stream to begin; or a reader of the stream that it was claimed for."""
        while True:
            claimed, held = await elsewhere.claim(key, stream_id)
            if held is None:
                return claimed
            refuse_another(key, held.body_hash)
            remote = (
                None if self.streams.seek(held.stream_id, owner) else await elsewhere.holder(claimed.name, held, owner)
            )
            if here := self.streams.seek(held.stream_id, owner):
                return here, self.streams.attach(here, -1, held=True)
            if remote is not None:
                stream, reader = await self._follow(remote, -1)
                reader.held = True
                return stream, reader
