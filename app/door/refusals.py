"""Tells the operator of credentials that are refused: why, from where and how many, never which."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from app.admission.credentials import Reason, Refused

BETWEEN_LINES_SECONDS: Final = 1.0
"""One line a second for each reason: who tries keys by the thousand shall not fill a disk."""

logger = structlog.get_logger("app.door")


class Refusals:
    """What was refused, of which some is told."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock: Final = clock
        self._told_at: Final[dict[Reason, float]] = {}
        self._untold: Final[dict[Reason, int]] = {}

    @contextmanager
    def told(self, address: str | None) -> Iterator[None]:
        """Tells of a `Refused` that passes through; of a request without a credential there is nothing to tell."""
        try:
            yield
        except Refused as refused:
            if refused.reason != "missing":
                self._tell(refused.reason, address)
            raise

    def _tell(self, reason: Reason, address: str | None) -> None:
        now = self._clock()
        if now - self._told_at.get(reason, float("-inf")) < BETWEEN_LINES_SECONDS:
            self._untold[reason] = self._untold.get(reason, 0) + 1
            return
        self._told_at[reason] = now
        logger.warning(
            "a credential was refused", reason=reason, address=address, others_since=self._untold.pop(reason, 0)
        )
