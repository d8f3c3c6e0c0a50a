"""Whether another attempt at upstream may help, and when. Only asked before anything of an answer has come."""

import random
from typing import Final

from app.errors import Problem

REPEATABLE_STATUSES: Final = {408, 409, 429} | set(range(500, 600))
"""Upstream's statuses that another attempt may cure, as the OpenAI SDKs have it."""

REPEATABLE_CODES: Final = {"rate_limited", "upstream_error", "upstream_unavailable"}
"""The same for failures that came without a status. A broken or truncated answer is none of them."""

FIRST_RETRY_SECONDS: Final = 0.2


def curable(problem: Problem) -> bool:
    """Whether the failure is of a kind that passes: a connection that failed, 408, 409, 429, 5xx, or their like."""
    if (status := problem.upstream_status) is None:
        return problem.retryable and (problem.code in REPEATABLE_CODES or problem.phase == "connect")
    return status in REPEATABLE_STATUSES and (problem.retryable or status == 409)


def repeat_after(problem: Problem, *, max_wait_s: float, remaining_s: float) -> bool | float:
    """False for no, True for the usual back-off, or the seconds that upstream asks for in `Retry-After`."""
    if not curable(problem) or (wait_s := problem.retry_after_s) is None:
        return curable(problem)
    jittered_s = wait_s + random.uniform(0, FIRST_RETRY_SECONDS)  # all who got this answer got the same number
    return wait_s <= max_wait_s and jittered_s < remaining_s and jittered_s
