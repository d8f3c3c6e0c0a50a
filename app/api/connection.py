"""What a response has to do with its client's connection, by ASGI extensions of our server where they are there."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from starlette.types import Receive, Scope

ABORT: Final = "relay.abort"
"""Ends the connection without waiting for the client."""

DEPARTURE: Final = "relay.departure"
"""Calls whoever is to know that the client has left; None is nobody. Without it that takes a task for each stream."""

WRITE: Final = "relay.write"
"""Writes a piece of a body that has begun; False, and nothing is written, where `send` may have to wait."""


def writer(scope: Scope) -> Callable[[bytes], bool]:
    """What writes at once where that can be done: `send` goes through a layer or two, and is a task's own call."""
    extension = scope.get("extensions", {}).get(WRITE)
    write: Callable[[bytes], bool] = extension["call"] if extension else _cannot
    return write


def watch_departure(scope: Scope, receive: Receive, tell: Callable[[], None], *, name: str) -> Callable[[], object]:
    """`tell` is called when the client leaves, at once if it has. What is returned ends that."""
    if extension := scope.get("extensions", {}).get(DEPARTURE):
        extension["call"](tell)
        return partial(extension["call"], None)
    return asyncio.create_task(_listen(receive, tell), name=f"departure {name}").cancel


async def abort(scope: Scope) -> None:
    """Ends the connection now: a client that takes nothing would not take a proper end either."""
    if extension := scope.get("extensions", {}).get(ABORT):
        extension["call"]()
        await asyncio.sleep(0)


def _cannot(_body: bytes) -> bool:
    return False


async def _listen(receive: Receive, tell: Callable[[], None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    tell()
