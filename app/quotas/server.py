"""Connections to one Redis or Valkey server for what is decided there, and whether it can be used.

A decision waits for `DECISION_SECONDS` at most, all its commands and the wait for a connection together; then it is
made without Redis. Whoever is refused by a part that has lost Redis is refused by this process's own counts.
"""

import asyncio
from typing import Final

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

DECISION_SECONDS: Final = 0.5

RETRY_SECONDS: Final = 0.25
"""Between two tries to reach Redis again; nobody waits for them."""

MAX_CONNECTIONS: Final = 8

AWAY: Final = (RedisError, OSError, TimeoutError)
"""What a call raises while the server cannot be used: gone, slow, full, loading, a replica."""

logger = structlog.get_logger("app.quotas")


class Server:
    """For one part of admission, by whose name it is known in the log."""

    def __init__(self, url: str, prefix: str, part: str) -> None:
        self.pool: Final = BlockingConnectionPool.from_url(
            url,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            max_connections=MAX_CONNECTIONS,
            timeout=DECISION_SECONDS,
            socket_timeout=DECISION_SECONDS,
            socket_connect_timeout=DECISION_SECONDS,
            health_check_interval=0,
        )
        self.commands: Final = Redis(connection_pool=self.pool)
        self._probe = f"{prefix}:probe"
        self._part = part
        self._away = asyncio.Event()

    @property
    def away(self) -> bool:
        return self._away.is_set()

    def lost(self, error: BaseException) -> bool:
        """A call has failed; True for the first since it was there."""
        if self._away.is_set():
            return False
        self._away.set()
        logger.error("shared limits away", part=self._part, error=type(error).__name__, told=str(error)[:200])
        return True

    def found(self) -> None:
        """A call has been answered."""
        if self._away.is_set():
            self._away.clear()
            logger.warning("shared limits are back", part=self._part)

    async def lost_within(self, seconds: float) -> None:
        """Waits until it is away, or so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._away.wait()
        except TimeoutError:
            return

    async def until_back(self) -> None:
        """Tries what decisions need as well: to write."""
        while self._away.is_set():
            await asyncio.sleep(RETRY_SECONDS)
            try:
                async with asyncio.timeout(DECISION_SECONDS):
                    await self.commands.set(self._probe, "1", px=1000)
            except AWAY:
                continue
            self.found()

    async def aclose(self) -> None:
        await self.commands.aclose()
        await self.pool.disconnect()
