"""One upstream as a member of the pool: what it serves, how busy it is, how it stands."""

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec
import structlog

from app.errors import Problem, RelayError
from app.places import Manner
from app.upstream.breaker import Breaker, Question, State, verdict
from app.upstream.client import Upstream
from app.upstream.listing import Model, described

logger = structlog.get_logger("app.upstream")


class Standing(msgspec.Struct, frozen=True):
    """How an upstream stands. `failures` are those in a row; times in seconds from now, 0 for what is over."""

    name: str
    state: State
    in_use: int
    max_streams: int | None
    failures: int
    opens_in_s: float
    rests_s: float


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator says of an upstream. `models` empty: it serves whatever is asked for, beside its aliases.

    `connect_s` and `first_token_s` are the limits of a request that asks for none.
    """

    name: str
    models: tuple[str, ...] = ()
    aliases: dict[str, str] = {}
    priority: int = 0
    weight: float = 1
    manner: Manner = Manner()
    connect_s: float
    first_token_s: float


class Member:
    """Counts its places, and judges by their ends. `on_room` is called when one more may be had than before."""

    def __init__(self, terms: Terms, upstream: Upstream, breaker: Breaker, on_room: Callable[[], None]) -> None:
        self.terms: Final = terms
        self.name: Final = terms.name
        self.upstream: Final = upstream
        self.breaker: Final = breaker
        self.in_use = 0
        self.turn = 0
        self._on_room = on_room
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def left(self) -> int | None:
        """How many more it may be asked for; None without a limit."""
        most = self.terms.manner.max_streams
        return None if most is None else max(most - self.in_use, 0)

    @property
    def is_full(self) -> bool:
        return self.left == 0

    def rank(self, now: float) -> tuple[bool, int, float, int]:
        """The lowest is asked: rested, of the best priority, the least busy for its weight, the longest not asked."""
        terms = self.terms
        return self.breaker.rests_s(now) > 0, terms.priority, (self.in_use + 1) / terms.weight, self.turn

    def ask(self, now: float, *, turn: int) -> Question:
        """Takes a place; `may_ask` and `is_full` have said that there is one. It ends with the question's verdict."""
        self.turn = turn
        self.in_use += 1
        return self.breaker.ask(now)

    def standing(self, now: float) -> Standing:
        breaker = self.breaker
        return Standing(
            name=self.name,
            state=breaker.state(now),
            in_use=self.in_use,
            max_streams=self.terms.manner.max_streams,
            failures=breaker.failures,
            opens_in_s=breaker.opens_in_s(now),
            rests_s=breaker.rests_s(now),
        )

    async def models(self) -> list[Model] | RelayError:
        """What it is said to serve, else what it lists; why it cannot be asked where nothing else is known of it."""
        named = [described(name) for name in (*self.terms.models, *self.terms.aliases)]
        if self.terms.models or not self.upstream.has_list:
            return named
        try:
            return [*named, *await self.upstream.models()]
        except RelayError as error:
            return named or error

    async def aclose(self) -> None:
        self._closed = True
        self._stop_timer()
        await self.upstream.aclose()

    # How a question goes.

    def answered(self, question: Question) -> None:
        if self.breaker.answered(question):
            self._back()
            self._on_room()

    def whole(self, question: Question) -> None:
        if self.breaker.whole(question):
            self._back()
        self._left()

    def failed(self, question: Question, problem: Problem) -> None:
        now = asyncio.get_running_loop().time()
        judged = verdict(problem)
        if judged.rest_s:
            self.breaker.rest(now + judged.rest_s)
        match judged.kind:
            case "broken" if self.breaker.failed(question, now):
                self._out(problem, now)
            case "lives" if self.breaker.answered(question):
                self._back()
            case "unknown":
                self.breaker.dropped(question)
            case _:
                pass
        self._left()

    def dropped(self, question: Question) -> None:
        self.breaker.dropped(question)
        self._left()

    def _left(self) -> None:
        self.in_use -= 1
        self._on_room()

    def _out(self, problem: Problem, now: float) -> None:
        logger.warning(
            "upstream out",
            upstream=self.name,
            failures=self.breaker.failures,
            code=problem.code,
            upstream_status=problem.upstream_status,
            for_s=round(self.breaker.opens_in_s(now), 3),
        )
        self._wait(now)

    def _back(self) -> None:
        logger.warning("upstream is back", upstream=self.name)

    # A probe may be made when the breaker's time is over, and nobody else would say so.

    def _wait(self, now: float) -> None:
        self._stop_timer()
        if not self._closed:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self.breaker.opens_in_s(now), self._look)

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        if self.breaker.state(now) == "open":
            self._wait(now)  # some loops round their timers down
        else:
            self._on_room()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
