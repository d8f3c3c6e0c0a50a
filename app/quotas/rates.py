"""How much a caller may use in a minute and in a day, in requests and in tokens.

Windows are fixed: each begins with its first use, and its end is known, so what a refused client is told comes true.
What an answer will cost is known at its end. A request is charged for its prompt when it is admitted and for the rest
when it is over: the tokens of a window may be overshot by what was in flight when it was used up, and no more.

Where processes share Redis, they count there. While it is away each decides by what it has seen last of the windows
there and by what it has let in itself since: no caller is refused for that, and none is without a limit. What is
used in that time is not told to Redis afterwards.
"""

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, Self

from limits.aio.strategies import FixedWindowRateLimiter

from app.admission.callers import Quota
from app.errors import RelayError
from app.quotas.memory import MemoryWindows
from app.quotas.windows import Standing, Window, Windows, windows_of

if TYPE_CHECKING:
    from app.quotas.remote import Remote


class Full(Exception):
    """A window has too little left."""

    def __init__(self, window: Window) -> None:
        self.window: Final = window
        super().__init__(window.policy)


class Rates:
    """Counts under all of a caller's quotas, or, where one of them is used up, under none."""

    def __init__(self, windows: MemoryWindows) -> None:
        self._here = FixedWindowRateLimiter(windows)
        self._remote: Remote | None = None

    @classmethod
    def of(cls, redis_url: str | None, prefix: str) -> Self:
        windows = MemoryWindows()
        rates = cls(windows)
        if redis_url is not None:
            from app.quotas.remote import Remote

            rates._remote = Remote(redis_url, prefix, windows)
        return rates

    async def admit(self, quotas: Sequence[Quota], prompt_tokens: int) -> None:
        """Counts a request and its prompt. Raises `rate_limited`, not retryable where the prompt alone is too much."""
        windows = windows_of(quotas)
        if windows is None:
            return
        for window in windows.tokens:
            if prompt_tokens > window.most:
                raise _never(window, prompt_tokens)
        decide = partial(_admit, windows=windows, prompt_tokens=prompt_tokens)
        try:
            if self._remote is None or not await self._remote.decided(decide):
                await decide(self._here)
        except Full as full:
            raise _refused(await self._standing(full.window), full.window, prompt_tokens) from None

    async def charge(self, quotas: Sequence[Quota], tokens: int) -> None:
        """What was used beyond the prompt that was charged when the request was admitted."""
        windows = windows_of(quotas) if tokens > 0 else None
        if windows is None or not windows.tokens:
            return
        charge = partial(_charge, windows=windows.tokens, tokens=tokens)
        if self._remote is None or not await self._remote.decided(charge):
            await charge(self._here)

    async def standing(self, quotas: Sequence[Quota]) -> Standing | None:
        """Of the window of which the smallest part is left, as it was last seen; it asks nobody."""
        windows = windows_of(quotas)
        if windows is None:
            return None
        all_of_them = [await self._standing(window) for window in (*windows.requests, *windows.tokens)]
        return min(all_of_them, key=lambda standing: (standing.remaining / standing.most, -standing.reset_s))

    async def aclose(self) -> None:
        if self._remote is not None:
            await self._remote.aclose()

    async def _standing(self, window: Window) -> Standing:
        stats = await self._here.get_window_stats(window.item, window.whose)
        reset_s = max(stats.reset_time - time.time(), 0.0)
        return Standing(window.policy, window.most, window.item.get_expiry(), stats.remaining, reset_s)


async def _admit(limiter: FixedWindowRateLimiter, *, windows: Windows, prompt_tokens: int) -> None:
    """Looks at all windows before it counts in any; raises `Full`.

    A request is counted in one step. Only where a caller has several windows of requests, and another process uses up a
    later one in between, is a request that is refused counted in the ones before.
    """
    for window in windows.tokens:
        if not await limiter.test(window.item, window.whose, cost=max(prompt_tokens, 1)):
            raise Full(window)
    for window in windows.requests[1:]:
        if not await limiter.test(window.item, window.whose):
            raise Full(window)
    for window in windows.requests:
        if not await limiter.hit(window.item, window.whose):
            raise Full(window)
    if prompt_tokens:
        await _charge(limiter, windows=windows.tokens, tokens=prompt_tokens)


async def _charge(limiter: FixedWindowRateLimiter, *, windows: Sequence[Window], tokens: int) -> None:
    for window in windows:
        await limiter.hit(window.item, window.whose, cost=tokens)


def _refused(standing: Standing, window: Window, prompt_tokens: int) -> RelayError:
    if window.policy == "requests":
        message = f"you have made the {window.most} requests that you may make in a {window.per}; try again later"
    elif standing.remaining:
        left = f"{standing.remaining} of the {window.most} tokens of this {window.per}"
        message = f"the prompt has about {prompt_tokens} tokens, and you have {left} left; try again later"
    else:
        message = f"you have used the {window.most} tokens that you may use in a {window.per}; try again later"
    return RelayError(
        "rate_limited", message, phase="admission", retry_after_s=standing.reset_s, headers=standing.headers
    )


def _never(window: Window, prompt_tokens: int) -> RelayError:
    message = (
        f"the prompt has about {prompt_tokens} tokens, more than the {window.most} that you may use in a {window.per}"
    )
    return RelayError("rate_limited", message, retryable=False, phase="admission")
