"""What is counted of callers: in this process, or in all that share a Redis."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from app.quotas.rates import Rates
from app.quotas.tallies import Tallies

if TYPE_CHECKING:
    from app.quotas.shared import SharedPermits

RESTART_SECONDS: Final = 1.0

logger = structlog.get_logger("app.quotas")

Spend = Callable[[str, float], Awaitable[bool]]


class Counting(msgspec.Struct, frozen=True):
    """`spend` says whether a browser token is exchanged for the first time; None where this process decides alone."""

    rates: Rates
    tallies: Tallies
    spend: Spend | None


@contextlib.asynccontextmanager
async def counting(redis_url: str | None, prefix: str, *, lease_s: float) -> AsyncIterator[Counting]:
    async with contextlib.AsyncExitStack() as closing:
        rates = Rates.of(redis_url, prefix)
        closing.push_async_callback(rates.aclose)
        if redis_url is None:
            yield Counting(rates, Tallies(), None)
            return
        from app.quotas.shared import SharedPermits  # who needs no Redis need not wait for its client, nor hold it
        from app.quotas.spent import SharedSpent

        spent = SharedSpent(redis_url, prefix)
        closing.push_async_callback(spent.aclose)
        shared = SharedPermits.of(redis_url, prefix, lease_s)
        closing.push_async_callback(shared.aclose)
        closing.push_async_callback(Upkeep(shared).aclose)
        tallies = Tallies(shared)
        closing.push_async_callback(tallies.aclose)
        yield Counting(rates, tallies, spent.spend)


class Upkeep:
    """Renews what this process holds; begun anew where a fault of ours ended it, since places end with their lease."""

    def __init__(self, shared: "SharedPermits") -> None:
        self._shared = shared
        self._closing = False
        self._begin()

    async def aclose(self) -> None:
        self._closing = True
        self._task.cancel()
        await asyncio.wait([self._task])

    def _begin(self) -> None:
        if not self._closing:
            self._task = asyncio.create_task(self._shared.run(), name="shared permits")
            self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            logger.critical("shared permits stopped", exc_info=task.exception())
            asyncio.get_running_loop().call_later(RESTART_SECONDS, self._begin)
