"""How many streams run under a name in all processes together.

A place is held in Redis by a stream's id until its lease is over, and renewed while the stream runs: the places of a
process that died end by themselves. A process that was stopped for longer than a lease takes its places again when it
goes on, and so does every process when Redis comes back or was emptied: for the streams that run, a limit may then be
exceeded. While Redis is away each process counts alone (app/admission/capacity.py), and what is taken is taken.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Final, Self

from app.quotas.server import AWAY, RETRY_SECONDS, Server

TAKE: Final = Path(__file__).with_name("permits.lua").read_text()
RENEW: Final = Path(__file__).with_name("renewal.lua").read_text()

RENEWALS: Final = 3
"""Renewals in a lease."""

MAX_PLACES: Final = 128
"""In one call: Redis does nothing else while it runs, some 3 µs a place."""

Held = tuple[str, str]
"""A place: the key of its name, and the stream that holds it."""


class SharedPermits:
    """`run` is its one task. No method raises because of Redis."""

    def __init__(self, server: Server, prefix: str, lease_s: float) -> None:
        self._server = server
        self._prefix = prefix
        self._lease_s = lease_s
        self._lease_ms = int(lease_s * 1000)
        self._take = server.commands.register_script(TAKE)
        self._renew = server.commands.register_script(RENEW)
        self._held: dict[Held, None] = {}

    @classmethod
    def of(cls, redis_url: str, prefix: str, lease_s: float) -> Self:
        return cls(Server(redis_url, prefix, "permits"), prefix, lease_s)

    async def take(self, stream_id: str, scopes: Sequence[tuple[str, int]]) -> str | None:
        """A place under each name, of which there are so many; or none, and the name that is full.

        A place that the stream has is not taken twice. Where this is cancelled, one may stay until its lease is over.
        """
        keys = [self._key(scope) for scope, _ in scopes]
        if keys and not self._server.away:
            limits = [limit for _, limit in scopes]
            try:
                async with self._server.deciding():
                    full: int = await self._take(keys, [stream_id, self._lease_ms, *limits])
            except AWAY as error:
                self._server.lost(error)
            else:
                if full:
                    return scopes[full - 1][0]
        self._held |= dict.fromkeys((key, stream_id) for key in keys)
        return None

    async def give_back(self, stream_id: str, scopes: Sequence[str]) -> None:
        """The stream needs them no more, whether it had them or not."""
        places = [(self._key(scope), stream_id) for scope in scopes]
        for place in places:
            self._held.pop(place, None)
        if not self._server.away:
            try:
                await self._end(places)
            except AWAY as error:
                self._server.lost(error)  # they end by themselves

    async def run(self) -> None:
        while True:
            if self._server.away:
                await asyncio.sleep(RETRY_SECONDS)
            else:
                await self._server.lost_within(self._lease_s / RENEWALS)
            try:
                await self._renew_all()
            except AWAY as error:
                self._server.lost(error)

    async def aclose(self) -> None:
        """What is held ends now: nothing of it runs."""
        places = list(self._held)
        self._held.clear()
        try:
            await self._end(places)
        except AWAY as error:
            self._server.lost(error)  # they end by themselves
        await self._server.aclose()

    async def _renew_all(self) -> None:
        """Also finds out whether Redis is back."""
        if self._server.away:
            await self._server.probe()
            self._server.found()
        places = iter(list(self._held))
        while some := [place for place in islice(places, MAX_PLACES) if place in self._held]:
            await self._last(some)
            await self._end([place for place in some if place not in self._held])

    async def _last(self, places: Sequence[Held]) -> None:
        async with self._server.deciding():
            await self._renew([key for key, _ in places], [self._lease_ms, *(stream_id for _, stream_id in places)])

    async def _end(self, places: Sequence[Held]) -> None:
        """Those that were given back; one that was taken again meanwhile is held again."""
        if not places:
            return
        async with self._server.deciding(), self._server.commands.pipeline(transaction=False) as pipeline:
            for key, stream_id in places:
                pipeline.zrem(key, stream_id)
            await pipeline.execute()
        if again := [place for place in places if place in self._held]:
            await self._last(again)

    def _key(self, scope: str) -> str:
        """Names of callers are not told to who can list keys."""
        return f"{self._prefix}:permits:{hashlib.sha256(scope.encode()).hexdigest()[:32]}"
