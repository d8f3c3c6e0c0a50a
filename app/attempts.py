"""One generation's way to an answer: its place in the queue, then its tries at upstreams, one after the other.

A try that failed before anything was carried may be followed by another: at once where another upstream may do better,
else after a wait. All of them together have one number of attempts and the limits of the request; after the first
content there is no other try, whatever happens.
"""

import asyncio
import contextlib
import math
import random
from collections.abc import Callable
from typing import Final

import msgspec

from app import decode
from app.admission.capacity import Ticket
from app.attempt import Attempt, Deliver
from app.clocks import Clocks, Limit
from app.decode import Complete
from app.errors import Problem, RelayError
from app.log.memory import MemoryLog
from app.means import Means
from app.places import Place
from app.request.chat import Chat
from app.retries import helps_elsewhere, wait_before_next
from app.stream import Waiting

FULL_ELSEWHERE_SECONDS: Final = 0.25
"""How often it is looked whether other processes have left a place at an upstream."""


class Attempts:
    """`run` ends with `complete` called once, or raises `RelayError`."""

    def __init__(
        self,
        id: str,
        chat: Chat,
        log: MemoryLog,
        clocks: Clocks,
        ticket: Ticket,
        *,
        deliver: Deliver,
        complete: Callable[[Complete], None],
    ) -> None:
        self.count = 0
        self._queued_s = 0.0
        self.current: Attempt | None = None
        self.upstream: str | None = None
        self._id = id
        self._chat = chat
        self._log = log
        self._clocks = clocks
        self._ticket = ticket
        self._place: Place | None = None
        self._deliver = deliver
        self._complete = complete

    @property
    def waiting(self) -> Waiting:
        if not self._ticket.admitted:
            return "queued"
        return "connecting" if self.current is None else self.current.waiting

    @property
    def queued_s(self) -> float:
        return self._queued_s if self._ticket.admitted else self._clocks.elapsed_s

    async def run(self, means: Means) -> None:
        self._means = means
        self._tally = means.tallies.of(self._id)
        try:
            await self._answer(await self._admitted())
        finally:
            if self._place is not None:
                self._place.release()
            self._tally.close()

    def timed_out(self, problem: Problem, limit: Limit) -> None:
        """A limit has passed. It is no fault of upstream's where the caller has made it shorter than the operator has,
        nor where content came all the time."""
        if self.current is None or (limit == "total" and self._log.carrying):
            return
        place = self.current.place
        operators_s = min(self._means.terms.idle_s, place.manner.idle_s or math.inf)
        if limit != "idle" or self._clocks.idle_s >= operators_s:
            place.failed(problem)

    def carried(self) -> None:
        if self.current is not None:
            self.current.carried()

    def succeeded(self) -> None:
        if self.current is not None:
            self.current.place.succeeded()

    async def _answer(self, place: Place) -> None:
        tried: set[str] = set()
        while True:
            try:
                return await self._try(place)
            except RelayError as error:
                tried.add(place.upstream)
                self._tally.drop(_scope(place))
                following = await self._next(error.problem, tried)
                if following is None:
                    raise
                place = following

    async def _try(self, place: Place) -> None:
        idle_s, own_idle_s = self._chat.limits.idle, place.manner.idle_s
        self._clocks.idle_s = idle_s if own_idle_s is None else min(idle_s, own_idle_s)
        self.count += 1
        self.upstream = place.upstream
        self.current = Attempt(
            place,
            self._chat,
            self._log,
            self._clocks,
            self._means.turns,
            deliver=self._deliver,
            complete=self._complete,
        )
        await self.current.run(self._limits())

    def _limits(self) -> decode.Limits:
        limits, own = self._means.terms.decode, self._chat.grant.max_answer_bytes
        if own is None or own >= limits.max_answer_bytes:
            return limits
        most = min(limits.max_event_bytes, own)
        return msgspec.structs.replace(limits, max_answer_bytes=own, max_event_bytes=most)

    async def _next(self, problem: Problem, tried: set[str]) -> Place | None:
        """The place for another try; None where there is to be none."""
        terms, pool, model = self._means.terms, self._means.pool, self._chat.model
        if self._log.carrying or self.count >= terms.attempts:
            return None
        if helps_elsewhere(problem) and (other := pool.claim(model, besides=tried)):
            return await self._counted(other)
        wait_s = wait_before_next(
            problem,
            self.count,
            max_wait_s=terms.max_retry_wait_s,
            remaining_s=self._clocks.remaining_s,
            spread=random.random(),
        )
        if wait_s is None:
            return None
        await asyncio.sleep(wait_s)
        with contextlib.suppress(RelayError):  # that nobody may be asked any more is less than how the last one failed
            again = pool.claim(model)
            return None if again is None else await self._counted(again)
        return None

    # Admission: the queue of this process, then what all processes together may do.

    async def _admitted(self) -> Place:
        if not self._ticket.admitted:
            await self._queue()
        self._place = self._ticket.taken()
        quotas = self._chat.grant.quotas
        scopes = [(quota.scope, quota.max_streams) for quota in quotas if quota.max_streams is not None]
        if scopes and await self._tally.take(scopes) is not None:
            words = "you have as many streams as you may; wait for one to end"
            raise RelayError("rate_limited", words, phase="admission", retry_after_s=self._retry_after_s())
        place = await self._counted(self._place)
        self._queued_s = self._clocks.elapsed_s
        self._clocks.admitted()
        return place

    async def _queue(self) -> None:
        loop, ticket, limit_s = asyncio.get_running_loop(), self._ticket, self._means.terms.queue_timeout_s
        if ticket.failure is None:
            called = loop.create_future()
            ticket.on_admitted = lambda: None if called.done() else called.set_result(None)
            try:
                async with asyncio.timeout(limit_s):
                    await called
            except TimeoutError:
                raise self._no_place(f"no place became free within {limit_s:g} s") from None
        if ticket.failure is not None:
            raise ticket.failure

    async def _counted(self, place: Place) -> Place:
        """A place that all processes together may take, where the upstream has a limit."""
        until = asyncio.get_running_loop().time() + self._means.terms.queue_timeout_s
        full: set[str] = set()
        while True:
            self._place = place
            limit = place.manner.max_streams
            if limit is None or await self._tally.take([(_scope(place), limit)]) is None:
                return place
            place.release()
            full.add(place.upstream)
            place = await self._another(full, until)

    async def _another(self, full: set[str], until: float) -> Place:
        while True:
            if other := self._means.pool.claim(self._chat.model, besides=full):
                return other
            if asyncio.get_running_loop().time() >= until:
                raise self._no_place("no place became free at an upstream")
            await asyncio.sleep(FULL_ELSEWHERE_SECONDS)
            full.clear()

    def _no_place(self, words: str) -> RelayError:
        return RelayError("overloaded", f"{words}; try again", phase="admission", retry_after_s=self._retry_after_s())

    def _retry_after_s(self) -> float:
        return self._means.capacity.retry_after_s(asyncio.get_running_loop().time())


def _scope(place: Place) -> str:
    return f"upstream:{place.upstream}"
