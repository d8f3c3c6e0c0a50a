"""What a stream takes of the limits that several processes share, and gives back when it is over."""

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol


class Shared(Protocol):
    """Places under names, counted over all processes."""

    async def take(self, stream_id: str, scopes: Sequence[tuple[str, int]]) -> str | None: ...
    async def give_back(self, stream_id: str, scopes: Sequence[str]) -> None: ...


class Tallies:
    """Without other processes nothing is counted here: the limits of this one are kept by its capacity and its pool."""

    def __init__(self, shared: Shared | None = None) -> None:
        self._shared = shared
        self._errands: set[asyncio.Task[None]] = set()

    def of(self, stream_id: str) -> "Tally":
        return Tally(self, self._shared, stream_id)

    def give_back(self, shared: Shared, stream_id: str, scopes: Sequence[str]) -> None:
        """Without waiting for it."""
        task = asyncio.create_task(shared.give_back(stream_id, scopes), name=f"tally {stream_id}")
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    async def aclose(self) -> None:
        """What is on its way is waited for."""
        if self._errands:
            await asyncio.wait(self._errands)


class Tally:
    """The places of one stream."""

    def __init__(self, tallies: Tallies, shared: Shared | None, stream_id: str) -> None:
        self._tallies = tallies
        self._shared = shared
        self._id: Final = stream_id
        self._taken: set[str] = set()

    async def take(self, scopes: Sequence[tuple[str, int]]) -> str | None:
        """A place under each name, which has so many; the name that is full, where nothing is taken."""
        if self._shared is None:
            return None
        self._taken.update(scope for scope, _ in scopes)  # before it is known: a stream may be stopped in between
        return await self._shared.take(self._id, scopes)

    def drop(self, scope: str) -> None:
        if scope in self._taken and self._shared is not None:
            self._taken.discard(scope)
            self._tallies.give_back(self._shared, self._id, [scope])

    def close(self) -> None:
        if self._taken and self._shared is not None:
            self._tallies.give_back(self._shared, self._id, sorted(self._taken))
            self._taken.clear()
