"""One generation's tries at upstreams, one after the other.

A try that failed before anything was carried may be followed by another: at once where another upstream may do better,
else after a wait. All of them together have one number of attempts and the limits of the request; after the first
content there is no other try, whatever happens.
"""

import asyncio
import math
import random
from collections.abc import Callable

import msgspec

from app import decode
from app.attempt import Attempt, Deliver
from app.clocks import Clocks, Limit
from app.decode import Complete
from app.entrance import Entrance
from app.errors import Problem, RelayError
from app.log.memory import MemoryLog
from app.means import Means
from app.places import Place
from app.request.chat import Chat
from app.retries import helps_elsewhere, wait_before_next
from app.stream import Waiting
from app.summary import Try
from app.trace_context import TraceContext


class Attempts:
    """`run` ends with `complete` called once, or raises `RelayError`."""

    def __init__(
        self,
        means: Means,
        log: MemoryLog,
        clocks: Clocks,
        entrance: Entrance,
        *,
        deliver: Deliver,
        complete: Callable[[Complete], None],
        trace: TraceContext | None,
    ) -> None:
        self.count = 0
        self.current: Attempt | None = None
        self.upstream: str | None = None
        self._queued_s: float | None = None
        self._failed: list[Try] = []
        self._asked_s = 0.0
        self._trace = trace
        self._span: TraceContext | None = None
        self._means = means
        self._log = log
        self._clocks = clocks
        self._entrance = entrance
        self._deliver = deliver
        self._complete = complete

    @property
    def waiting(self) -> Waiting:
        if self._queued_s is None and not self._entrance.admitted:
            return "queued"
        return "connecting" if self.current is None else self.current.waiting

    @property
    def queued_s(self) -> float:
        return self._clocks.elapsed_s if self._queued_s is None else self._queued_s

    def tries(self, end: str) -> tuple[Try, ...]:
        """All of them; `end` is what became of the one that runs."""
        if self.current is None or self.count == len(self._failed):
            return tuple(self._failed)
        return *self._failed, self._tried(self.current, end)

    async def run(self, chat: Chat) -> None:
        place = await self._entrance.place()
        self._queued_s = self._clocks.elapsed_s
        self._clocks.admitted()
        tried: set[str] = set()
        while self._log.closing is None:  # nobody is asked for what has ended, whoever has lost our cancellation
            try:
                await self._try(chat, place)
            except RelayError as error:
                tried.add(place.upstream)
                following = await self._next(error.problem, tried)
                if following is None:
                    raise
                place = following
            else:
                return

    def let_go(self) -> None:
        """It is over: nobody is told any more."""
        self._deliver, self._complete = _nobody, _nobody

    def carried(self) -> None:
        self._entrance.carried = True
        if self.current is not None:
            self.current.carried()

    def succeeded(self) -> None:
        if self.current is not None:
            self.current.place.succeeded()

    def timed_out(self, problem: Problem, limit: Limit) -> None:
        """A limit has passed. It is no fault of upstream's where the caller has made it shorter than the operator has,
        nor where content came all the time.
        """
        if self.current is None or (limit == "total" and self._log.carrying):
            return
        place = self.current.place
        operators_s = min(self._means.terms.idle_s, place.manner.idle_s or math.inf)
        if limit != "idle" or self._clocks.idle_s >= operators_s:
            place.failed(problem)

    async def _try(self, chat: Chat, place: Place) -> None:
        idle_s, own_idle_s = chat.limits.idle, place.manner.idle_s
        self._clocks.idle_s = idle_s if own_idle_s is None else min(idle_s, own_idle_s)
        await self._means.openings.take()  # those that a queue lets in together are a herd as well
        self.count += 1
        self.upstream = place.upstream
        self._asked_s = self._clocks.elapsed_s
        self._span = None if self._trace is None else self._trace.child()
        attempt = self.current = Attempt(
            place,
            chat,
            self._log,
            self._clocks,
            self._means.turns,
            deliver=self._deliver,
            complete=self._complete,
            headers=None if self._span is None else self._span.headers(),
        )
        try:
            await attempt.run(_limits(self._means.terms.decode, chat))
        except RelayError as error:
            self._failed.append(self._tried(attempt, error.problem.code))
            raise

    def _tried(self, attempt: Attempt, outcome: str) -> Try:
        return Try(
            upstream=attempt.place.upstream,
            outcome=outcome,
            connect_s=attempt.connect_s,
            asked_s=self._asked_s,
            ended_s=self._clocks.elapsed_s,
            span_id=None if self._span is None else self._span.span_id,
        )

    async def _next(self, problem: Problem, tried: set[str]) -> Place | None:
        """The place for another try; None where there is to be none."""
        terms = self._means.terms
        if self._log.carrying or self.count >= terms.attempts:
            return None
        if helps_elsewhere(problem) and (other := await self._entrance.elsewhere(tried)):
            return other
        wait_s = wait_before_next(
            problem,
            self.count,
            max_wait_s=terms.max_retry_wait_s,
            remaining_s=self._clocks.remaining_s,
            spread=random.random(),
        )
        if wait_s is None:
            return None
        self.current = None
        await asyncio.sleep(wait_s)
        return await self._entrance.again(min(terms.queue_timeout_s, self._clocks.remaining_s))


def _nobody(*_: object) -> None:
    pass


def _limits(limits: decode.Limits, chat: Chat) -> decode.Limits:
    """A caller may have a bound of its own."""
    own = chat.grant.max_answer_bytes
    if own is None or own >= limits.max_answer_bytes:
        return limits
    return msgspec.structs.replace(limits, max_answer_bytes=own)
