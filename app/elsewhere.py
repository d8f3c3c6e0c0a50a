"""Streams that other processes generate: found, followed, stopped, and known by their keys, through the shared log."""

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Final, TypeVar, cast

import msgspec

from app.admission.callers import Caller
from app.errors import RelayError
from app.events import Done, Failed
from app.fleet import Account
from app.following import Followed, Remote
from app.log.budget import Budget
from app.log.keys import Birth, State
from app.log.mirror import Mirror
from app.log.reader import Reader
from app.log.redis import AWAY
from app.log.shared import SharedLog
from app.log.sharing import Sharing
from app.order import Key

T = TypeVar("T")

CLAIM_MS: Final = 10_000
"""How long a key is held for a stream that has not been written yet: its process may die before."""

FIRST_LOOK_SECONDS: Final = 1.0
"""For what is there of a stream to come here; who waits longer is told by a `ping` that it waits."""

CLAIM_POLL_SECONDS: Final = 0.02
CLAIM_WAIT_SECONDS: Final = 2.0


class Claim(msgspec.Struct, frozen=True):
    """Whose stream an `Idempotency-Key` is, and what was asked under it."""

    stream_id: str
    body_hash: bytes


class Elsewhere:
    """Every method that asks raises `overloaded` (503) while the shared log is away."""

    def __init__(self, sharing: Sharing, budget: Budget, *, max_lag_bytes: int, wait_s: float) -> None:
        self.sharing: Final = sharing
        self._budget = budget
        self._max_lag_bytes = max_lag_bytes
        self._redis = sharing.server.commands
        self._keys = sharing.keys
        self._errands: set[asyncio.Task[None]] = set()
        self._away_ms: Final = max(int(wait_s * 1000), sharing.watch.lasts_ms)
        self._sending_away = False

    async def find(self, stream_id: str, caller: Caller) -> Remote | None:
        """None for an unknown stream and for somebody else's."""
        self._reach()
        names = ("birth", "state", "next", "spent")
        found = await self._ask(self._redis.hmget(self._keys.meta(stream_id), *names))
        birth, state, behind, spent = cast(list[bytes | None], found)
        if birth is None or state is None:
            return None
        try:
            known = msgspec.msgpack.decode(birth, type=Birth)
        except msgspec.MsgspecError:  # of another version
            return None
        remote = Remote(stream_id, known, cast(State, state.decode()), int(behind or 0), spent is not None)
        return remote if self._keys.may_see(caller.key, caller.subject, known) else None

    async def follow(self, remote: Remote, after: int) -> tuple[Followed, Reader]:
        """A reader from behind `after` on, which has what is there already."""
        await self._ask(self._redis.set(self._keys.watch(remote.id), "1", px=self.sharing.watch.lasts_ms))
        mirror = Mirror(remote.id, remote.birth, self._budget, after=after, max_lag_bytes=self._max_lag_bytes)
        reader = mirror.open_reader(after)
        self.sharing.tail.follow(mirror)
        if self._sending_away:
            mirror.break_off()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_LOOK_SECONDS):
                    while min(remote.next_seq, after + 2) > mirror.next_seq and not mirror.broken:
                        await reader.wait()
        except asyncio.CancelledError:
            self.unfollow(mirror)
            raise
        return Followed(self, mirror), reader

    def unfollow(self, mirror: Mirror) -> None:
        self.sharing.tail.unfollow(mirror)
        if self._sending_away and mirror.closed is None:  # a reader that was sent away has not gone
            self._send(self._redis.set(self._keys.watch(mirror.id), "1", px=self._away_ms))
        mirror.release()

    def readers_of(self, stream_id: str) -> int:
        """Those of this process that are given entries now."""
        mirrors = self.sharing.tail.mirrors.get(self._keys.events(stream_id), ())
        return sum(not reader.held for mirror in mirrors for reader in mirror.readers)

    def break_off(self) -> None:
        """Readers of streams that live elsewhere are sent away, from here on: they come back to another process, and
        count as readers for as long as a client may be away.
        """
        self._sending_away = True
        for mirrors in self.sharing.tail.mirrors.values():
            for mirror in mirrors:
                mirror.break_off()

    async def account(self, remote: Remote) -> Account:
        events = await self._ask(self.sharing.everything(remote.id))
        end = events[-1] if events and isinstance(events[-1], Done | Failed) else None
        mirror = Mirror(remote.id, remote.birth, Budget(0), after=-1, max_lag_bytes=0)
        mirror.receive(len(events), events)
        return Account(remote.id, remote.birth.model, events, end, mirror.usage())

    async def cancel(self, remote: Remote) -> None:
        if not remote.over:
            await self._ask(self.sharing.tail.ask(remote.birth.process, "cancel", remote.id))

    # Idempotency keys.

    async def claim(self, key: Key, stream_id: str) -> tuple[Key, Claim | None]:
        """Takes a key for a stream to begin; whose it is, where it was taken before."""
        self._reach()
        name = self._keys.idempotency(key.caller.key, key.caller.subject, key.value)
        claim = msgspec.msgpack.encode(Claim(stream_id, key.body_hash))
        claimed = msgspec.structs.replace(key, name=name, claim=claim)
        while not await self._ask(self._redis.set(name, claim, nx=True, px=CLAIM_MS)):
            if held := await self._ask(self.sharing.server.get(name)):
                return claimed, msgspec.msgpack.decode(held, type=Claim)
        return claimed, None

    def give_back(self, name: str, claim: bytes) -> None:
        """Nothing was begun under it."""
        self._send(self._give_back(name, claim))

    async def holder(self, name: str, held: Claim, caller: Caller) -> Remote | None:
        """The stream that a key was taken for, which may be about to be written; None when the key is free again."""
        loop = asyncio.get_running_loop()
        until = loop.time() + CLAIM_WAIT_SECONDS
        while loop.time() < until:
            if remote := await self.find(held.stream_id, caller):
                return remote
            if not await self._ask(self._redis.exists(name)):
                return None
            await asyncio.sleep(CLAIM_POLL_SECONDS)
        message = "another request with this key is being begun"
        raise RelayError("overloaded", message, phase="admission", retry_after_s=1.0)

    # Chats.

    def chat_begun(self, chat_id: str, caller: Caller, log: SharedLog, message_id: str) -> None:
        log.chat_key = self._keys.chat(caller.key, caller.subject, chat_id)
        self._send(self._redis.set(log.chat_key, msgspec.msgpack.encode((log.id, message_id)), px=log.life_ms))

    async def chat(self, chat_id: str, caller: Caller) -> tuple[Remote, str] | None:
        """The answer that a chat waits for, and what its client calls it."""
        if caller.subject is None:
            return None
        self._reach()
        held = await self._ask(self.sharing.server.get(self._keys.chat(caller.key, caller.subject, chat_id)))
        if held is None:
            return None
        stream_id, message_id = msgspec.msgpack.decode(held, type=tuple[str, str])
        remote = await self.find(stream_id, caller)
        return None if remote is None or remote.spent else (remote, message_id)

    def spend(self, stream_id: str) -> None:
        """Its chat waits for it no more."""
        self._send(self._spend(stream_id))

    async def aclose(self) -> None:
        if self._errands:
            await asyncio.wait(self._errands)
        await self.sharing.aclose()

    async def _spend(self, stream_id: str) -> None:
        meta = self._keys.meta(stream_id)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(meta, "spent", "1")
            pipe.pttl(meta)
            _, left_ms = await pipe.execute()
        if left_ms < 0:  # it had just expired, and was made anew
            await self._redis.delete(meta)

    async def _give_back(self, name: str, claim: bytes) -> None:
        if await self.sharing.server.get(name) == claim:
            await self._redis.delete(name)

    def _send(self, command: Awaitable[object]) -> None:
        """Without waiting for an answer; while the shared log is away it is lost."""
        task = asyncio.ensure_future(_quietly(command))
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    def _reach(self) -> None:
        """Raises `overloaded` at once where it is known that nobody would answer."""
        if self.sharing.away:
            raise unreachable()

    async def _ask(self, command: Awaitable[T]) -> T:
        try:
            return await command
        except AWAY:
            raise unreachable() from None


def unreachable() -> RelayError:
    return RelayError("overloaded", "the shared log is away; try again", phase="admission", retry_after_s=1.0)


async def _quietly(command: Awaitable[object]) -> None:
    try:
        await command
    except AWAY:
        return
