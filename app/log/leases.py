"""Which processes live. Each keeps a lease in Redis and renews it well before it ends.

A living writer is never taken for dead, whatever Redis does. A process is dead only to one that has not seen its lease
throughout one whole lease of its own, in which it was able, all the time, to do what keeps a lease: to write. While
Redis is away, paused, full, loading, or has come back empty, nobody can keep a lease, and nobody is dead.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Final, NamedTuple

from app.log.keys import Keys
from app.log.redis import AWAY, Server

RETRY_SECONDS: Final = 0.2

RENEWALS: Final = 5
"""Renewals in a lease: one that fails is repeated in time."""


class Missing(NamedTuple):
    """Since when a lease was missing each time that it was looked for, and when that was last."""

    since: float
    looked_at: float


class Leases:
    """`run` keeps the lease of this process, and says each time if Redis had lost it, or how long it has failed."""

    def __init__(
        self,
        server: Server,
        keys: Keys,
        process: str,
        *,
        lease_s: float,
        kept: Callable[[bool], None],
        failed: Callable[[BaseException, float], None],
    ) -> None:
        self._server = server
        self._name, self._inbox = keys.lease(process), keys.inbox(process)
        self._lease_s: Final = lease_s
        self._tell_kept = kept
        self._failed = failed
        self._kept = False
        self._kept_at = float("-inf")
        self._missing: dict[str, Missing] = {}

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        failing_since = math.inf
        while True:
            began = loop.time()
            try:
                had = await self._server.renew(self._name, int(self._lease_s * 1000))
            except AWAY as error:
                self.out_of_touch()
                failing_since = min(failing_since, began)
                self._failed(error, loop.time() - failing_since)
                pause_s = min(RETRY_SECONDS, self._lease_s / RENEWALS)
            else:
                self._keep(loop.time(), lost=self._kept and not had)
                failing_since, pause_s = math.inf, self._lease_s / RENEWALS
            await asyncio.sleep(max(began + pause_s - loop.time(), 0))

    def _keep(self, now: float, *, lost: bool) -> None:
        if lost or now - self._kept_at > self._lease_s / 2:
            self.out_of_touch()  # it was paused itself, or Redis was: what it did not see, it does not know
        self._kept, self._kept_at = True, now
        self._tell_kept(lost)

    def out_of_touch(self) -> None:
        """What was seen of others counts no more."""
        self._missing.clear()

    def seen(self, process: str, present: bool, now: float) -> bool:
        """Takes a look at another's lease into account; True when that process is dead."""
        if present or now - self._kept_at > self._lease_s / 2:
            self._missing.pop(process, None)
            return False
        known = self._missing.get(process)
        since = now if known is None or now - known.looked_at > self._lease_s / 2 else known.since
        self._missing[process] = Missing(since, now)
        return now - since >= self._lease_s

    async def give_up(self) -> None:
        """The process has ended in good order: nothing of it runs."""
        await self._server.commands.delete(self._name, self._inbox)
