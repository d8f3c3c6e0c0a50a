"""The windows of time in which a caller's use is counted, and what a client is told of them.

The headers are those of draft-ietf-httpapi-ratelimit-headers: `RateLimit-Policy: "requests";q=60;w=60` and
`RateLimit: "requests";r=12;t=34`, for the one window that is nearest to its end of all that count.
"""

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec
from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerMinute

from app.admission.callers import Quota

REMEMBERED_QUOTAS: Final = 4096


class Window(NamedTuple):
    """`whose` is a quota's scope as Redis may be told it; `policy` is its name in headers, `per` in messages."""

    item: RateLimitItem
    whose: str
    policy: str
    per: str

    @property
    def most(self) -> int:
        return self.item.amount


class Windows(NamedTuple):
    requests: tuple[Window, ...]
    tokens: tuple[Window, ...]


class Standing(msgspec.Struct, frozen=True):
    """How much is left of a window, and until when. `reset_s`: seconds from now."""

    policy: str
    most: int
    window_s: int
    remaining: int
    reset_s: float

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        return (
            ("ratelimit-policy", f'"{self.policy}";q={self.most};w={self.window_s}'),
            ("ratelimit", f'"{self.policy}";r={self.remaining};t={math.ceil(self.reset_s)}'),
        )


def windows_of(quotas: Sequence[Quota]) -> Windows | None:
    """None where nothing is counted by time, which is usual and costs nothing."""
    for quota in quotas:
        if not quota.requests_per_minute is quota.tokens_per_minute is quota.tokens_per_day is None:
            break
    else:
        return None
    each = [_windows(quota) for quota in quotas]
    requests = dict.fromkeys(window for of_one in each for window in of_one.requests)
    tokens = dict.fromkeys(window for of_one in each for window in of_one.tokens)
    return Windows(tuple(requests), tuple(tokens))


@lru_cache(REMEMBERED_QUOTAS)
def _windows(quota: Quota) -> Windows:
    """A limit that was changed begins a new window: it is part of the window's name."""
    whose = hashlib.sha256(quota.scope.encode()).hexdigest()[:32]
    requests: list[Window] = []
    tokens: list[Window] = []
    if (most := quota.requests_per_minute) is not None:
        requests.append(Window(RateLimitItemPerMinute(most, 1, "requests"), whose, "requests", "minute"))
    if (most := quota.tokens_per_minute) is not None:
        tokens.append(Window(RateLimitItemPerMinute(most, 1, "tokens"), whose, "tokens", "minute"))
    if (most := quota.tokens_per_day) is not None:
        tokens.append(Window(RateLimitItemPerDay(most, 1, "tokens"), whose, "tokens-per-day", "day"))
    return Windows(tuple(requests), tuple(tokens))
