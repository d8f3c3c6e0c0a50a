"""Charges callers for what their streams have used, when they are over: what a stream costs is known at its end."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Final, Protocol

from app.admission.callers import Quota
from app.summary import Summary


class Accounts(Protocol):
    """Where tokens are charged."""

    def charge(self, quotas: Sequence[Quota], tokens: int) -> Awaitable[None]: ...


class Charging:
    """A listener of generations. The prompt was charged at admission; finished, failed and cancelled streams alike pay
    for the rest.
    """

    def __init__(self, accounts: Accounts) -> None:
        self._accounts: Final = accounts
        self._errands: set[asyncio.Future[None]] = set()

    def __call__(self, summary: Summary) -> None:
        tokens = summary.usage.total_tokens - summary.prompt_tokens
        quotas = [quota for quota in summary.grant.quotas if quota.tokens_per_minute or quota.tokens_per_day]
        if quotas and tokens > 0:
            errand = asyncio.ensure_future(self._accounts.charge(quotas, tokens))
            self._errands.add(errand)
            errand.add_done_callback(self._errands.discard)

    async def aclose(self) -> None:
        """What is on its way is waited for."""
        if self._errands:
            await asyncio.wait(self._errands)
