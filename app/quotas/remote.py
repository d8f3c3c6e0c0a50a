"""Windows in Redis, where several processes count together. What is seen of them there is remembered here."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from limits.aio.storage import RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter

from app.quotas.memory import MemoryWindows
from app.quotas.server import AWAY, Server

ROUNDING_SECONDS: Final = 0.5
"""Redis tells the rest of a window in whole seconds, rounded: nobody is to come back before its end."""


class Remote:
    """Decisions by windows in Redis, as long as it can be used."""

    def __init__(self, url: str, prefix: str, seen: MemoryWindows) -> None:
        self._server = Server(url, prefix, "rates")
        self._limiter = FixedWindowRateLimiter(RedisWindows(self._server, f"{prefix}:rate", seen))
        self._returning: asyncio.Task[None] | None = None

    async def decided(self, decide: Callable[[FixedWindowRateLimiter], Awaitable[None]]) -> bool:
        """False where it was not decided here: Redis is away. Raises what `decide` raises."""
        if self._server.away:
            return False
        try:
            async with self._server.deciding():
                await decide(self._limiter)
        except AWAY as error:
            if self._server.lost(error):
                self._returning = asyncio.create_task(self._server.until_back(), name="shared rates return")
            return False
        return True

    async def aclose(self) -> None:
        if self._returning is not None:
            self._returning.cancel()
            await asyncio.wait([self._returning])
        await self._server.aclose()


class RedisWindows(RedisStorage):
    """The library's, which also tells `seen` what it sees."""

    def __init__(self, server: Server, prefix: str, seen: MemoryWindows) -> None:
        pool: dict[str, object] = {"connection_pool": server.pool}
        super().__init__("redis://", implementation="redispy", key_prefix=prefix, **pool)  # type: ignore[arg-type]
        self._seen = seen

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        used = await super().incr(key, expiry, amount)
        if used == amount:
            self._seen.saw(key, used, expiry)
        elif not self._seen.goes_on(key, used, amount):
            await self._see(key, used)
        return used

    async def get(self, key: str) -> int:
        used = await super().get(key)
        if used and not self._seen.goes_on(key, used, 0):
            await self._see(key, used)
        return used

    async def _see(self, key: str, used: int) -> None:
        left_s = await self.get_expiry(key) - time.time()
        self._seen.saw(key, used, left_s + ROUNDING_SECONDS)
