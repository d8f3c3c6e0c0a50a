"""Which log a new stream gets, and within which bounds."""

import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from app.admission.callers import Caller
from app.errors import RelayError
from app.events import Start
from app.log.budget import Budget
from app.log.keys import Birth
from app.log.memory import MemoryLog
from app.order import Order
from app.settings import Settings
from app.usage import tokens

if TYPE_CHECKING:
    from app.log.sharing import Sharing

AWAY_RETRY_SECONDS: Final = 2.0


class Logs:
    """`reclaim(budget, owner)` is asked for room: among all streams, or among those of one owner."""

    def __init__(
        self, settings: Settings, sharing: "Sharing | None", reclaim: Callable[[Budget, Caller | None], None]
    ) -> None:
        self._settings = settings
        self._sharing = sharing
        self._reclaim = reclaim
        self.budget: Final = Budget(settings.log_total_bytes, lambda budget: reclaim(budget, None))
        self._budgets: weakref.WeakValueDictionary[Caller, Budget] = weakref.WeakValueDictionary()

    def begin(self, id: str, order: Order) -> MemoryLog:
        """In Redis where it is to be read again and can be, else in memory. Raises `overloaded`."""
        away = self._sharing is not None and self._sharing.away
        if away and order.linger_s > 0 and self._settings.redis_away == "refuse":
            message = "the shared log is away; try again"
            raise RelayError("overloaded", message, phase="admission", retry_after_s=AWAY_RETRY_SECONDS)
        start = Start(id, order.chat.model, order.linger_s > 0 and not away)
        budget = self._budget_of(order.owner)
        max_bytes, max_lag_bytes = self._settings.log_stream_bytes, self._settings.log_lag_bytes
        if self._sharing is None or not start.resumable:
            return MemoryLog(start, budget, max_bytes=max_bytes, max_lag_bytes=max_lag_bytes)
        birth = self._birth(self._sharing, order)
        life_s = order.chat.limits.total + self._settings.usage_wait_seconds
        return self._sharing.log(start, birth, budget, life_s=life_s, max_bytes=max_bytes, max_lag_bytes=max_lag_bytes)

    def _birth(self, sharing: "Sharing", order: Order) -> Birth:
        owner, key = order.owner, order.key
        return Birth(
            process=sharing.process,
            owner_key=owner.key,
            owner=sharing.keys.owner(owner.key, owner.subject),
            model=order.chat.model,
            request_id=order.request_id,
            began=time.time(),
            prompt_tokens=tokens(order.chat.prompt_bytes),
            key=key.name if key else "",
            claim=key.claim if key else b"",
        )

    def _budget_of(self, owner: Caller) -> Budget:
        """A caller without a subject is everybody: theirs is the bound of all."""
        if owner.subject is None:
            return self.budget
        budget = self._budgets.get(owner)
        if budget is None:
            reclaim = partial(self._reclaim_of, owner)
            budget = self._budgets[owner] = Budget(self._settings.log_caller_bytes, reclaim, within=self.budget)
        return budget

    def _reclaim_of(self, owner: Caller, budget: Budget) -> None:
        self._reclaim(budget, owner)
