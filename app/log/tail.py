"""What other processes write, as it comes: one waiting read for all streams that are followed here, and for the inbox
in which others ask something of this process.

The inbox also wakes the read, when it has to look at other streams than those it waits for.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Literal

import msgspec

from app.log import codec
from app.log.keys import Keys
from app.log.mirror import Mirror
from app.log.redis import AWAY, Server, stay_cancelled

INBOX_LENGTH: Final = 1000
RETRY_SECONDS: Final = 0.1


class Tail:
    """`run` is its one task. `cancel` is called with the id of a stream of ours that somebody has asked to stop."""

    def __init__(self, server: Server, keys: Keys, process: str, *, lease_s: float) -> None:
        self._server = server
        self._keys = keys
        self._inbox: Final = keys.inbox(process)
        self._inbox_seen = "0-0"
        self._inbox_ms: Final = int(2 * lease_s * 1000)  # who is dead by then is not asked anything any more
        self.cancel: Callable[[str], None] = lambda _: None
        self._nudging: asyncio.Task[None] | None = None
        self.mirrors: Final[dict[str, set[Mirror]]] = {}
        self._reading: dict[str, list[Mirror]] = {}

    def follow(self, mirror: Mirror) -> None:
        self.mirrors.setdefault(self._keys.events(mirror.id), set()).add(mirror)
        mirror.on_room = self.nudge
        self.nudge()

    def unfollow(self, mirror: Mirror) -> None:
        name = self._keys.events(mirror.id)
        mirrors = self.mirrors.get(name, set())
        mirrors.discard(mirror)
        if not mirrors:
            self.mirrors.pop(name, None)

    def nudge(self) -> None:
        """The read has to look at its streams anew; many nudges at once are one."""
        if self._nudging is None or self._nudging.done():
            self._nudging = asyncio.create_task(self._nudge(), name="nudge")

    async def ask(self, process: str, what: Literal["cancel", "look"], stream_id: str) -> None:
        """Raises one of `AWAY`."""
        inbox = self._keys.inbox(process)
        async with self._server.commands.pipeline(transaction=False) as pipe:
            pipe.xadd(inbox, {"what": what, "id": stream_id}, maxlen=INBOX_LENGTH)
            pipe.pexpire(inbox, self._inbox_ms)
            await pipe.execute()
        stay_cancelled()

    async def run(self) -> None:
        try:
            while True:
                try:
                    answer = await self._server.read(self._places())
                except AWAY:
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                for name, items in answer.items():
                    if name == self._inbox:
                        self._take_in(items)
                    else:
                        self._hand_out(name, items)
        finally:
            if self._nudging is not None:
                self._nudging.cancel()

    def _places(self) -> dict[str, str]:
        """Behind what id each stream is read: where its hindmost reader is that has room."""
        ready = {
            name: [mirror for mirror in mirrors if not (mirror.closing or mirror.broken or mirror.crowded)]
            for name, mirrors in self.mirrors.items()
        }
        self._reading = {name: mirrors for name, mirrors in ready.items() if mirrors}
        places = {name: f"{min(mirror.next_seq for mirror in mirrors)}-0" for name, mirrors in self._reading.items()}
        return {self._inbox: self._inbox_seen} | places

    def _hand_out(self, name: str, items: list[tuple[str, dict[bytes, bytes]]]) -> None:
        for id, fields in items:
            for mirror in self._reading[name]:
                try:
                    mirror.receive(int(id.split("-")[0]), codec.unpack(fields[b"e"]))
                except msgspec.MsgspecError:  # of another version: who made it can read it
                    mirror.break_off()

    def _take_in(self, items: list[tuple[str, dict[bytes, bytes]]]) -> None:
        for id, fields in items:
            self._inbox_seen = id
            if fields.get(b"what") == b"cancel":
                self.cancel(fields.get(b"id", b"").decode())

    async def _nudge(self) -> None:
        try:
            await self.ask(self._inbox.rpartition(":")[2], "look", "")
        except AWAY:
            return  # the read is failing as well, and looks at its streams when it is made anew
