"""What is counted of callers: in this process, or in all that share a Redis."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec

from app.quotas.rates import Rates
from app.quotas.tallies import Tallies

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
        closing.push_async_callback(_ended, asyncio.create_task(shared.run(), name="shared permits"))
        tallies = Tallies(shared)
        closing.push_async_callback(tallies.aclose)
        yield Counting(rates, tallies, spent.spend)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
