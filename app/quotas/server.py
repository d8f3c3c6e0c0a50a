"""Connections to one Redis or Valkey server for what is decided there, and whether it can be used.

So many are asked at a time; the others wait their turn, which is the process being busy and not Redis being away. A
decision that was begun takes `DECISION_SECONDS` at most, all its commands together. The first that fails makes Redis
away: then those that wait and those that come are decided without it at once, until somebody else finds it back.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

DECISION_SECONDS: Final = 1.0

RETRY_SECONDS: Final = 0.25
"""Between two tries to reach Redis again; no caller waits for them."""

MAX_DECISIONS: Final = 16
"""At a time, each on a connection of its own."""

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
            max_connections=MAX_DECISIONS,
            timeout=DECISION_SECONDS,
            socket_timeout=None,  # `deciding` is the limit; redis-py's own may lose a cancellation (bpo-37658)
            socket_connect_timeout=DECISION_SECONDS,
            health_check_interval=0,
            driver_info=None,  # to tell the server who we are is a round trip of each connection
        )
        self.commands: Final = Redis(connection_pool=self.pool)
        self._turns = asyncio.Semaphore(MAX_DECISIONS)
        self._probe = f"{prefix}:probe"
        self._part = part
        self._away = asyncio.Event()

    @property
    def away(self) -> bool:
        return self._away.is_set()

    @contextlib.asynccontextmanager
    async def deciding(self) -> AsyncIterator[None]:
        """One decision. Raises one of `AWAY`."""
        async with self._turns:
            if self._away.is_set():
                raise ConnectionError("it is away")
            async with asyncio.timeout(DECISION_SECONDS):
                yield

    async def probe(self) -> None:
        """Does what every decision needs: it writes. Raises one of `AWAY`."""
        async with asyncio.timeout(DECISION_SECONDS):
            await self.commands.set(self._probe, "1", px=1000)

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
        """Waits until it is away, and no longer than that."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._away.wait()

    async def until_back(self) -> None:
        while self._away.is_set():
            await asyncio.sleep(RETRY_SECONDS)
            with contextlib.suppress(*AWAY):
                await self.probe()
                self.found()

    async def aclose(self) -> None:
        await self.commands.aclose()
        await self.pool.disconnect()
