"""The shared log of a process: its connections, its lease, and the tasks that write, follow and watch."""

import asyncio
import contextlib
import secrets
import weakref
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import msgspec
import structlog

from app.events import Event, Start
from app.log import codec
from app.log.budget import Budget
from app.log.commits import AWAY_SECONDS, Commits
from app.log.keys import Birth, Keys
from app.log.leases import Leases
from app.log.redis import AWAY, Server
from app.log.shared import SharedLog
from app.log.tail import Tail
from app.log.watch import Watch

FLUSH_SECONDS: Final = 2.0
"""For the last entries to be brought before the process ends."""

RESTART_SECONDS: Final = 1.0

logger = structlog.get_logger("app.log")


class Terms(msgspec.Struct, frozen=True):
    """What an operator chooses. Times in seconds."""

    url: str
    prefix: str
    lease_s: float
    keep_s: float


class Room(Protocol):
    """A part that runs as long as the process."""

    async def run(self) -> None: ...


class Sharing:
    """`start` and `aclose` once each; between them the process has a lease."""

    def __init__(self, terms: Terms) -> None:
        self.process: Final = f"p_{secrets.token_hex(8)}"
        self.keys: Final = Keys(terms.prefix)
        self.server: Final = Server(terms.url)
        self.commits: Final = Commits(self.server, self.keys, self._in_touch)
        self.tail: Final = Tail(self.server, self.keys, self.process, lease_s=terms.lease_s)
        self.keep_ms: Final = int(terms.keep_s * 1000)
        self._leases = Leases(
            self.server, self.keys, self.process, lease_s=terms.lease_s, kept=self._kept, failed=self._failing
        )
        self.watch: Final = Watch(
            self.server, self.keys, self._leases, self.tail.mirrors, lease_s=terms.lease_s, keep_ms=self.keep_ms
        )
        self._logs: weakref.WeakSet[SharedLog] = weakref.WeakSet()
        self._in_touch_at = asyncio.get_running_loop().time()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._closing = False

    def start(self, *, cancel: Callable[[str], None]) -> None:
        """`cancel` is called with the id of a stream that another process was asked to stop."""
        self.tail.cancel = cancel
        for room in (self.commits, self.tail, self._leases, self.watch):
            self._run(room)

    async def flush(self) -> None:
        """What is still to be brought is brought, as far as that goes in `FLUSH_SECONDS`."""
        await self.commits.flush(FLUSH_SECONDS)

    async def aclose(self) -> None:
        """Brings what is still to be brought, as `flush` does, and ends everything."""
        if self._closing:
            return
        await self.flush()
        self._closing = True
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values())
        with contextlib.suppress(*AWAY):  # it ends by itself
            await self._leases.give_up()
        await self.server.aclose()

    @property
    def away(self) -> bool:
        return self.commits.away

    async def everything(self, stream_id: str) -> list[Event]:
        """All entries of a stream. Raises one of `AWAY`."""
        events: list[Event] = []
        for behind, packed in await self.server.batches(self.keys.events(stream_id)):
            batch = codec.unpack(packed)
            events += batch[max(len(events) - (behind - len(batch)), 0) :]
        return events

    async def watched(self, stream_id: str) -> bool:
        """Whether another process has readers of a stream of ours; while nobody can know, none has."""
        try:
            return bool(await self.server.commands.exists(self.keys.watch(stream_id)))
        except AWAY:
            return not self.away

    def log(
        self, start: Start, birth: Birth, budget: Budget, *, life_s: float, max_bytes: int, max_lag_bytes: int
    ) -> SharedLog:
        """A new stream's log. `life_s`: how long the stream may live at most."""
        log = SharedLog(
            start,
            budget,
            self.commits,
            birth,
            life_ms=int(life_s * 1000) + self.keep_ms,
            keep_ms=self.keep_ms,
            max_bytes=max_bytes,
            max_lag_bytes=max_lag_bytes,
        )
        self._logs.add(log)
        return log

    def _in_touch(self) -> None:
        """Redis was reached."""
        now, before = asyncio.get_running_loop().time(), self._in_touch_at
        self._in_touch_at = now
        if (now - before) * 1000 >= self.keep_ms:
            for log in self._logs:
                log.too_late = True

    def _kept(self, lost: bool) -> None:
        self._in_touch()
        if lost:
            self.commits.check(log for log in self._logs if log.closing is None)
        self.commits.reachable()

    def _failing(self, error: BaseException, for_s: float) -> None:
        if for_s >= AWAY_SECONDS:
            self.commits.set_away(error)

    def _run(self, room: Room) -> None:
        if not self._closing:
            name = type(room).__name__.lower()
            self._tasks[name] = asyncio.create_task(room.run(), name=f"shared log {name}")
            self._tasks[name].add_done_callback(partial(self._ended, room))

    def _ended(self, room: Room, task: asyncio.Task[None]) -> None:
        """By a fault of ours: streams go on alone, and the part begins anew."""
        if not task.cancelled():
            logger.critical("shared log stopped", part=task.get_name(), exc_info=task.exception())
            for log in self._logs:
                log.stand_alone()
            asyncio.get_running_loop().call_later(RESTART_SECONDS, self._run, room)
