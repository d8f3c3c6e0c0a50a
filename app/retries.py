"""Whether another attempt may help, where, and when. Only asked before anything of an answer has come."""

from typing import Final

from app.errors import Problem

REPEATABLE_STATUSES: Final = {408, 409, 429} | set(range(500, 600))
"""Upstream's statuses that another attempt may cure, as the OpenAI SDKs have it."""

REPEATABLE_CODES: Final = {"rate_limited", "upstream_error", "upstream_unavailable"}
"""The same for failures that came without a status. A broken or truncated answer is none of them."""

FIRST_RETRY_SECONDS: Final = 0.4
"""The most that is waited before the second attempt; twice as much before each that follows."""

RETRY_AFTER_JITTER_SECONDS: Final = 0.2


def curable(problem: Problem) -> bool:
    """Whether the failure is of a kind that passes: a connection that failed, 408, 409, 429, 5xx, or their like."""
    if (status := problem.upstream_status) is None:
        kind = problem.code in REPEATABLE_CODES or problem.phase in ("connect", "first_token")
        return problem.retryable and kind
    return status in REPEATABLE_STATUSES and (problem.retryable or status == 409)


def helps_elsewhere(problem: Problem) -> bool:
    """Whether another upstream may do better: the fault is not the request's, but upstream's or our account's there."""
    upstreams = problem.code.startswith("upstream_") and problem.code != "upstream_rejected"
    return upstreams or problem.code == "rate_limited"


def wait_before_next(
    problem: Problem, attempts: int, *, max_wait_s: float, remaining_s: float, spread: float
) -> float | None:
    """Seconds before the same upstream is asked again; None where that would not help, or come too late.

    `attempts` have failed. What upstream asks for in `Retry-After` is kept to, else the wait is a random part, `spread`
    (0 to 1), of a bound that doubles: full jitter, so that those who failed together do not come back together.
    """
    if not curable(problem):
        return None
    if (asked_s := problem.retry_after_s) is None:
        return spread * min(max_wait_s, FIRST_RETRY_SECONDS * 2.0 ** (attempts - 1))
    wait_s = asked_s + spread * RETRY_AFTER_JITTER_SECONDS  # all who got this answer got the same number
    return wait_s if asked_s <= max_wait_s and wait_s < remaining_s else None
