"""What an answer to a call means, and how long to wait before the next attempt."""

from collections.abc import Callable
from typing import Final, Literal

Verdict = Literal["delivered", "refused", "failed"]

PASSING: Final = {408, 425, 429} | set(range(500, 600))
"""What may be another answer later. All other statuses are the receiver's last word, redirects among them."""

FIRST_WAIT_SECONDS: Final = 2.0
WAIT_GROWTH: Final = 3
LONGEST_WAIT_SECONDS: Final = 120.0
"""Six attempts are spread over some hundred seconds: a receiver may be restarted meanwhile. It bounds `Retry-After`
as well: calls that wait hold their place in a bounded queue."""

Draw = Callable[[float], float]
"""A random number between 0 and the one given."""


def verdict(status: int) -> Verdict:
    if 200 <= status < 300:
        return "delivered"
    return "failed" if status in PASSING else "refused"


def wait_s(failures: int, retry_after_s: float | None, draw: Draw) -> float:
    """After so many failures: full jitter, or what the receiver asks for and a little."""
    if retry_after_s is not None:
        return min(retry_after_s, LONGEST_WAIT_SECONDS) + draw(FIRST_WAIT_SECONDS)
    return draw(min(FIRST_WAIT_SECONDS * WAIT_GROWTH ** (failures - 1), LONGEST_WAIT_SECONDS))
