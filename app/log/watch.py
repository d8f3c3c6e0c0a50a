"""Once in a while: the streams that are followed here are said to be read, and their writers are looked at."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from app.errors import RelayError
from app.events import Failed
from app.log import codec
from app.log.keys import Birth, Keys
from app.log.leases import Leases
from app.log.mirror import Mirror
from app.log.redis import AWAY, Server, stay_cancelled

MAX_TICK_SECONDS: Final = 1.0
TICKS_IN_A_LEASE: Final = 5


def lost(birth: Birth, *, partial: bool) -> Failed:
    """How a stream ends whose writer died: the same words for every reader, whoever finds it out."""
    message = "the process that made this answer is gone; the text so far is kept"
    problem = RelayError("relay_lost", message, phase="relay").problem
    return Failed(msgspec.structs.replace(problem, partial=partial, request_id=birth.request_id))


OVER: Final = (b"closed", b"gone", b"lost", b"abandoned")


STREAMS_AT_ONCE: Final = 100
"""Asked for in one call: about 5 ms in which the process does nothing else."""


class Watch:
    """`run` is its one task; `mirrors` are the streams that are followed, by the name of their events.

    `lasts_ms`: how long a stream counts as read after its last reader elsewhere was seen.
    """

    def __init__(
        self,
        server: Server,
        keys: Keys,
        leases: Leases,
        mirrors: Mapping[str, set[Mirror]],
        *,
        lease_s: float,
        keep_ms: int,
    ) -> None:
        self._server = server
        self._keys = keys
        self._leases = leases
        self._mirrors = mirrors
        self._tick_s: Final = min(lease_s / TICKS_IN_A_LEASE, MAX_TICK_SECONDS)
        self.lasts_ms: Final = int(3000 * self._tick_s) + 1000
        self._keep_ms = keep_ms

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._tick_s)
            streams = {mirror.id: mirror.birth for mirrors in self._mirrors.values() for mirror in mirrors}
            if not streams:
                continue
            try:
                for some in _parts(streams):
                    await self._look(some)
            except AWAY:
                self._leases.out_of_touch()

    async def _look(self, streams: Mapping[str, Birth]) -> None:
        processes = sorted({birth.process for birth in streams.values()})
        async with self._server.commands.pipeline(transaction=False) as pipe:
            for id in streams:
                pipe.set(self._keys.watch(id), "1", px=self.lasts_ms)
                pipe.hmget(self._keys.meta(id), "state", "next")
            for process in processes:
                pipe.exists(self._keys.lease(process))
            answers: list[Any] = await pipe.execute()
        stay_cancelled()
        now = asyncio.get_running_loop().time()
        present = answers[2 * len(streams) :]
        dead = {p for p, there in zip(processes, present, strict=True) if self._leases.seen(p, bool(there), now)}
        for (id, birth), (state, behind) in zip(streams.items(), answers[1 : 2 * len(streams) : 2], strict=True):
            if birth.process in dead:
                await self._end(id, birth, state, int(behind or 0))
            else:
                self._tell(id, state, int(behind or 0))

    def _tell(self, id: str, state: bytes | None, behind: int) -> None:
        """What the entries do not say."""
        for mirror in self._following(id):
            if state in (b"live", b"alone"):
                mirror.live_only()
            elif state == b"cut":
                mirror.break_off()
            elif state in OVER and behind <= mirror.next_seq and mirror.closing is None:
                mirror.break_off()  # its cursor is behind the end: nothing will come

    async def _end(self, id: str, birth: Birth, state: bytes | None, behind: int) -> None:
        end = lost(birth, partial=behind > 1)
        if state is None:  # Redis lost the stream, and who could bring it again is dead
            for mirror in self._following(id):
                mirror.close(lost(birth, partial=mirror.next_seq > 1))
            return
        freed = birth.claim if behind <= 1 else b""
        await self._server.close_lost(
            self._keys.meta(id),
            self._keys.events(id),
            end=codec.pack_batch([end]),
            keep_ms=self._keep_ms,
            key=birth.key,
            claim=freed,
        )

    def _following(self, id: str) -> Iterable[Mirror]:
        return list(self._mirrors.get(self._keys.events(id), ()))


def _parts(streams: Mapping[str, Birth]) -> Iterator[Mapping[str, Birth]]:
    items = list(streams.items())
    return (dict(items[at : at + STREAMS_AT_ONCE]) for at in range(0, len(items), STREAMS_AT_ONCE))
