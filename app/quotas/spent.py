"""Browser tokens that were exchanged, known to all processes that share a Redis: each is good for one exchange."""

import asyncio
import math
from typing import Final

from app.errors import RelayError
from app.quotas.server import AWAY, DECISION_SECONDS, Server

CLOCKS_DIFFER_SECONDS: Final = 10
"""How much longer a token is remembered than it is good for: the clocks of two processes are not the same."""


class SharedSpent:
    """What was spent in any process."""

    def __init__(self, url: str, prefix: str) -> None:
        self._server: Final = Server(url, prefix, "browser tokens")
        self._prefix: Final = prefix

    async def spend(self, token_id: str, seconds: float) -> bool:
        """False where it was spent before. Raises `overloaded` while nobody can know: a token is not spent twice."""
        name, lasts_s = f"{self._prefix}:spent:{token_id}", math.ceil(seconds) + CLOCKS_DIFFER_SECONDS
        try:
            async with asyncio.timeout(DECISION_SECONDS):
                taken = await self._server.commands.set(name, "1", nx=True, ex=lasts_s)
        except AWAY:
            message = "the shared log is away, which knows what tokens were exchanged; try again"
            raise RelayError("overloaded", message, phase="admission", retry_after_s=1.0) from None
        return bool(taken)

    async def aclose(self) -> None:
        await self._server.aclose()
