"""Streams that are no more: their owners are told so (410), and everybody else what they are told of an unknown id."""

import asyncio
from collections import OrderedDict
from typing import Final

from app.admission.callers import Caller

GONE_SECONDS: Final = 24 * 3600
GONE_MAX: Final = 100_000
"""How long and how many ids are remembered after their logs; an id costs about 300 bytes."""


class Gone:
    """The ids of streams that are no longer kept."""

    def __init__(self) -> None:
        self._until: OrderedDict[str, tuple[float, Caller]] = OrderedDict()

    def add(self, stream_id: str, owner: Caller) -> None:
        self._until[stream_id] = (asyncio.get_running_loop().time() + GONE_SECONDS, owner)
        if len(self._until) > GONE_MAX:
            self._until.popitem(last=False)

    def knows(self, stream_id: str, caller: Caller) -> bool:
        until, owner = self._until.get(stream_id, (0.0, None))
        return owner is not None and caller.may_see(owner) and until > asyncio.get_running_loop().time()
