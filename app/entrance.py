"""One generation's way to a place at an upstream: through the queue, and within what all processes have together.

It begins with a ticket and ends with `close`, which gives back all that it holds, whatever happened in between. Only
who has a place, and may have one more stream, is counted by the minute and the day: a request that waited in vain, or
that was refused, uses nothing up.
"""

import asyncio
from collections.abc import Collection
from functools import partial
from typing import Final

from app.admission.capacity import Ticket
from app.admission.refusals import too_many_streams
from app.errors import RelayError
from app.means import Means
from app.order import Order
from app.places import Place
from app.usage import tokens

FULL_ELSEWHERE_SECONDS: Final = 0.25
"""How often it is looked whether other processes have left a place at an upstream."""


class Entrance:
    """`settle` first, then `place`; both raise `RelayError`. There is one place at a time."""

    def __init__(self, means: Means, order: Order, ticket: Ticket, id: str) -> None:
        self.carried = False
        self._means = means
        self._model: Final = order.chat.model
        self._quotas: Final = order.chat.grant.quotas
        self._prompt_tokens: Final = tokens(order.chat.prompt_bytes)
        self._ticket = ticket
        self._tally = means.tallies.of(id)
        self._place: Place | None = None
        self._settled = False

    @property
    def admitted(self) -> bool:
        """Whether there is room for it in this process; else it waits."""
        return self._ticket.admitted

    async def settle(self) -> None:
        """Counts it among the caller's streams in all processes, and by time. Raises `rate_limited`."""
        scopes = [(quota.scope, quota.max_streams) for quota in self._quotas if quota.max_streams is not None]
        if scopes and (full := await self._tally.take(scopes)) is not None:
            raise too_many_streams(dict(scopes)[full], retry_after_s=self._retry_after_s())
        await self._means.rates.admit(self._quotas, self._prompt_tokens)
        self._settled = True

    async def place(self) -> Place:
        """The first place, in its turn. Raises `overloaded` after the queue's time, and what `settle` raises."""
        if not self.admitted:
            await self._queue()
        self._place = self._ticket.taken()
        if not self._settled:
            await self.settle()
        until = self._now() + self._means.terms.queue_timeout_s
        while (place := await self._counted(())) is None:
            if self._now() >= until:
                raise self._no_place("no place became free at an upstream")
            await asyncio.sleep(FULL_ELSEWHERE_SECONDS)
            self._place = self._claim()
        return place

    async def elsewhere(self, tried: Collection[str]) -> Place | None:
        """A place at none of those, if there is one now."""
        self._leave()
        self._place = self._claim(besides=tried)
        return await self._counted(tried)

    async def again(self, within_s: float) -> Place | None:
        """A place at any, before all who have not begun; None where there is none in that time."""
        until = self._now() + within_s
        self._leave()
        try:
            while self._now() < until and await self._freed(until):
                if (place := await self._counted(())) is not None:
                    return place
                await asyncio.sleep(FULL_ELSEWHERE_SECONDS)
        except RelayError:  # that nobody may be asked any more is less than how the last attempt failed
            pass
        return None

    def close(self) -> None:
        self._leave()
        self._tally.close()
        self._ticket.release(self._now(), ran=self.carried)

    def _leave(self) -> None:
        if self._place is not None:
            self._place.release()
            self._tally.drop(_scope(self._place))
            self._place = None

    def _claim(self, besides: Collection[str] = ()) -> Place | None:
        return self._means.pool.claim(self._model, besides=besides)

    async def _counted(self, besides: Collection[str]) -> Place | None:
        """The place, or one at another upstream, which all processes together may still have."""
        full = {*besides}
        while (place := self._place) is not None:
            limit = place.manner.max_streams
            if limit is None or await self._tally.take([(_scope(place), limit)]) is None:
                return place
            full.add(place.upstream)
            self._leave()
            self._place = self._claim(besides=full)
        return None

    async def _queue(self) -> None:
        ticket, limit_s = self._ticket, self._means.terms.queue_timeout_s
        if ticket.failure is None:
            called = asyncio.get_running_loop().create_future()
            ticket.on_admitted = lambda: None if called.done() else called.set_result(None)
            try:
                async with asyncio.timeout(limit_s):
                    await called
            except TimeoutError:
                if not ticket.admitted:
                    raise self._no_place(f"no place became free within {limit_s:g} s") from None
        if ticket.failure is not None:
            raise ticket.failure

    async def _freed(self, until: float) -> bool:
        """Waits for a place in this process; whether there is one. Raises `upstream_unavailable`."""
        self._place = self._claim()
        if self._place is None:
            called = asyncio.get_running_loop().create_future()
            stop = self._means.capacity.returning.wait(self._claim, partial(self._given, called))
            try:
                async with asyncio.timeout_at(until):
                    await called
            except TimeoutError:
                pass  # what it was given in the last moment it has
            finally:
                stop()
        return self._place is not None

    def _given(self, called: asyncio.Future[None], place: Place) -> None:
        self._place = place
        if not called.done():
            called.set_result(None)

    def _no_place(self, words: str) -> RelayError:
        return RelayError("overloaded", f"{words}; try again", phase="admission", retry_after_s=self._retry_after_s())

    def _retry_after_s(self) -> float:
        return self._ticket.retry_after_s(self._now())

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _scope(place: Place) -> str:
    return f"upstream:{place.upstream}"
