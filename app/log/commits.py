"""Group commit: what the logs of a process have for Redis goes in one call at a time, and what comes meanwhile rides in
the next. Calls begin at least `SPACING_SECONDS` apart: a call costs much, one more entry in it little.

When nothing could be brought for `AWAY_SECONDS`, Redis is away: logs that have something to bring stand alone, and so
does every log that gets something, until a call succeeds. Nothing is lost by trying again: an append that had been done
is known by its seq.
"""

import asyncio
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final

import msgspec
import structlog

from app.events import Done, Failed
from app.log import codec
from app.log.keys import Keys
from app.log.redis import AWAY, COMMAND_SECONDS, Server
from app.log.shared import Parcel, SharedLog

SPACING_SECONDS: Final = 0.002
AWAY_SECONDS: Final = 1.0
FIRST_RETRY_SECONDS: Final = 0.05
MAX_RETRY_SECONDS: Final = 0.5
MAX_PARCELS: Final = 128
"""Streams in one call: Redis does nothing else while it runs, some 10 µs a stream."""

MAX_BATCH_BYTES: Final = 1024 * 1024
"""Where a call is large enough, whatever else there is."""

CLOSED_BY_OTHERS: Final = -1

logger = structlog.get_logger("app.log")


class Commits:
    """`run` is its one task. `away` tells that Redis cannot be used, and for how long it has been so."""

    def __init__(self, server: Server, keys: Keys, in_touch: Callable[[], None]) -> None:
        self._server = server
        self._in_touch = in_touch
        self._keys = keys
        self._dirty: dict[SharedLog, None] = {}
        self._bringing = False
        self._work: asyncio.Future[None] | None = None
        self._failing_since: float | None = None
        self.away = False

    def mark(self, log: SharedLog) -> None:
        """The log has something to bring."""
        self._dirty[log] = None
        if self._work is not None and not self._work.done():
            self._work.set_result(None)

    def check(self, logs: Iterable[SharedLog]) -> None:
        """Redis may have lost what it had of these."""
        for log in logs:
            self.mark(log)

    def reachable(self) -> None:
        """Redis has answered something else: with nothing to bring, that is all that can be known."""
        if self.away and not self._dirty:
            self._succeeded()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        retry_s = FIRST_RETRY_SECONDS
        while True:
            while not self._dirty:
                await self._something(loop)
            began = loop.time()
            if await self._commit(self._batch(), began):
                retry_s = FIRST_RETRY_SECONDS
                await asyncio.sleep(max(began + SPACING_SECONDS - loop.time(), 0))
            else:
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, MAX_RETRY_SECONDS)

    async def flush(self, within_s: float) -> None:
        """Waits until everything was brought, while Redis is not away."""
        until = asyncio.get_running_loop().time() + within_s
        while (self._dirty or self._bringing) and not self.away and asyncio.get_running_loop().time() < until:  # noqa: ASYNC110 — once
            await asyncio.sleep(SPACING_SECONDS)

    async def _something(self, loop: asyncio.AbstractEventLoop) -> None:
        self._work = loop.create_future()
        try:
            await self._work
        finally:
            self._work = None

    def _batch(self) -> list[tuple[SharedLog, Parcel]]:
        parcels: list[tuple[SharedLog, Parcel]] = []
        size = 0
        for log in list(islice(self._dirty, MAX_PARCELS)):
            del self._dirty[log]
            if log.packed and log.settled:
                continue
            parcels.append((log, log.parcel()))
            size += len(parcels[-1][1].entries)
            if size > MAX_BATCH_BYTES:
                break
        return parcels

    async def _commit(self, parcels: list[tuple[SharedLog, Parcel]], began: float) -> bool:
        self._bringing = True
        try:
            deviations = await self._bring(parcels)
            ends = [(log, await self._end_of(log)) for log in deviations if deviations[log] == CLOSED_BY_OTHERS]
        except AWAY as error:
            self._failed((log for log, _ in parcels), error, began)
            return False
        finally:
            self._bringing = False
        self._succeeded()
        for log, parcel in parcels:
            if log not in deviations:
                log.acknowledge(parcel)
            elif deviations[log] != CLOSED_BY_OTHERS:
                log.resume_from(deviations[log])
            if not log.settled and deviations.get(log) != CLOSED_BY_OTHERS:
                self._dirty[log] = None
        for log, (end, seq) in ends:
            log.supersede(end, seq)
        return True

    async def _bring(self, parcels: list[tuple[SharedLog, Parcel]]) -> dict[SharedLog, int]:
        if not parcels:
            return {}
        names: list[str] = []
        args: list[bytes | str | int] = []
        for log, parcel in parcels:
            names += (self._keys.meta(log.id), self._keys.events(log.id))
            birth = msgspec.msgpack.encode(parcel.birth) if parcel.birth else b""
            keep_ms = "" if parcel.keep_ms is None else parcel.keep_ms
            args += (
                parcel.first,
                parcel.behind,
                parcel.entries,
                parcel.state,
                birth,
                keep_ms,
                parcel.key,
                parcel.frees,
                parcel.chat,
            )
        said = await self._server.append(names, args, within_s=COMMAND_SECONDS)
        return {parcels[place - 1][0]: seq for place, seq in said}

    async def _end_of(self, log: SharedLog) -> tuple[Done | Failed, int]:
        """The terminal event that others have given a stream, and its seq."""
        for behind, packed in await self._server.last_batch(self._keys.events(log.id)):
            end = codec.unpack(packed)[-1]
            if isinstance(end, Done | Failed):
                return end, behind - 1
        raise ConnectionError("the end of a stream that is over is not there")

    def _failed(self, batch: Iterable[SharedLog], error: BaseException, began: float) -> None:
        self.check(batch)
        self._failing_since = since = self._failing_since or began
        if not self.away and asyncio.get_running_loop().time() - since >= AWAY_SECONDS:
            self.set_away(error)
        if self.away:
            for log in self._dirty:
                log.stand_alone()

    def set_away(self, error: BaseException) -> None:
        if not self.away:
            self.away = True
            logger.error("shared log away", error=type(error).__name__, told=str(error)[:200])
            for log in list(self._dirty):
                log.stand_alone()

    def _succeeded(self) -> None:
        self._failing_since = None
        self._in_touch()
        if self.away:
            self.away = False
            logger.warning("shared log is back", to_bring=len(self._dirty))
