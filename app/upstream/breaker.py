"""Whether an upstream may be asked. Pure: who asks says what time it is, in seconds of a clock that never goes back.

    closed ─── so many failures, none of them forgotten ───▶ open ─── `open_s` later ───▶ half-open
      ▲                                                       ▲                               │
      └──────────────── the probe is answered ────────────────┼───────────────────────────────┤
                                                              └────── the probe fails ────────┘

- Half-open, one question at a time is let through: the probe. One that ends without a verdict makes room for another.
- A probe is answered by its first content, or by a refusal: upstream is there. But only a whole answer makes earlier
  failures forgotten, so the first failure after such an answer opens the breaker again. An upstream that dies after
  each first token is therefore taken out, and stays out but for one question each `open_s`.
- What a question has learnt counts only while the breaker stands as it stood when it was asked. Of a hundred streams
  that an outage ends, the late ones say nothing about the upstream that is back.
- A rest is no failure: upstream, or our account with it, wants to be left alone for a while. Others are asked first;
  when there is no other, it is asked all the same. What it says then is truer than what we could say for it.
"""

from typing import Final, Literal

import msgspec

from app.errors import Problem

State = Literal["closed", "open", "half_open"]

PROBE_SECONDS: Final = 1.0
"""When to ask again while a probe is under way: nobody knows when that will be answered."""

RATE_REST_SECONDS: Final = 1.0
"""The rest of one that said 429 and not for how long."""

ACCOUNT_REST_SECONDS: Final = 30.0
"""The rest of one that does not serve our key or account (401, 402, 403, 409, no quota left)."""

MAX_REST_SECONDS: Final = 60.0
"""A `Retry-After` of hours is believed for so long, then one question finds out whether it still holds."""

ACCOUNT_STATUSES: Final = {None, 401, 402, 403, 409, 429}
BROKEN: Final = {
    "upstream_error",
    "upstream_unavailable",
    "upstream_timeout",
    "upstream_protocol",
    "upstream_truncated",
}


class Verdict(msgspec.Struct, frozen=True):
    """What a failed attempt says about its upstream. `unknown`: nothing; `lives`: the failure is not its fault."""

    kind: Literal["broken", "lives", "unknown"]
    rest_s: float = 0.0


def verdict(problem: Problem) -> Verdict:
    """Connections that failed, time-outs, 5xx and broken answers are upstream's fault; refusals are not."""
    asked_s = min(problem.retry_after_s or 0.0, MAX_REST_SECONDS)
    match problem.code:
        case "rate_limited":
            return Verdict("lives", asked_s or RATE_REST_SECONDS)
        case "upstream_rejected":
            return Verdict("lives")
        case "upstream_error" if not problem.retryable:
            return Verdict("lives", ACCOUNT_REST_SECONDS if problem.upstream_status in ACCOUNT_STATUSES else 0.0)
        case code if code in BROKEN:
            return Verdict("broken", asked_s)
        case _:
            return Verdict("unknown")


class Question:
    """One that was let through and has no verdict yet."""

    __slots__ = ("era",)

    def __init__(self, era: int) -> None:
        self.era = era


class Breaker:
    """Opens after `limit` failures; 0 never does. `failures` are those that are not forgotten."""

    def __init__(self, limit: int, open_s: float) -> None:
        self.failures = 0
        self._limit: Final = limit
        self._open_s: Final = open_s
        self._open_until: float | None = None
        self._rests_until = float("-inf")
        self._probe: Question | None = None
        self._era = 0

    def state(self, now: float) -> State:
        if self._open_until is None:
            return "closed"
        return "open" if now < self._open_until else "half_open"

    def may_ask(self, now: float) -> bool:
        return self._open_until is None or (now >= self._open_until and self._probe is None)

    def opens_in_s(self, now: float) -> float:
        """Until a question may be let through: 0 when it may be now."""
        if self.may_ask(now):
            return 0.0
        assert self._open_until is not None
        return PROBE_SECONDS if now >= self._open_until else self._open_until - now

    def rests_s(self, now: float) -> float:
        return max(self._rests_until - now, 0.0)

    def rest(self, until: float) -> None:
        self._rests_until = max(self._rests_until, until)

    def ask(self, now: float) -> Question:
        """Lets a question through; `may_ask` has said that it may be."""
        assert self.may_ask(now)
        question = Question(self._era)
        if self._open_until is not None:
            self._probe = question
        return question

    def answered(self, question: Question) -> bool:
        """Upstream is there. True where that has closed the breaker."""
        if question is not self._probe:
            return False
        self._stands(None)
        question.era = self._era
        return True

    def whole(self, question: Question) -> bool:
        """The answer is whole. True where that has closed the breaker."""
        closed = self.answered(question)
        if question.era == self._era:
            self.failures = 0
        return closed

    def failed(self, question: Question, now: float) -> bool:
        """True where that has opened the breaker."""
        if question.era != self._era:
            return False
        self.failures += 1
        if not 0 < self._limit <= self.failures:
            return False
        self._stands(now + self._open_s)
        return True

    def dropped(self, question: Question) -> None:
        """The question ends without a verdict."""
        if question is self._probe:
            self._probe = None

    def _stands(self, open_until: float | None) -> None:
        self._open_until = open_until
        self._probe = None
        self._era += 1
