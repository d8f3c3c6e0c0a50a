"""Two relays as processes of their own on one Redis, behind one nginx; and clients that come back to either."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.nginx import balanced
from tests.redis_server import RedisServer, redis_server
from tests.relay import SSE, Response, chat, connect, event_of, fetch
from tests.served import SERVE, Served, forked
from tests.upstream import Upstream

LEASE_SECONDS: Final = 1.0
TTL_SECONDS: Final = 2.0

Event = dict[str, Any]


class Fleet(msgspec.Struct):
    """`one` and `two` are the relays, `port` is nginx's."""

    redis: RedisServer
    upstream: Upstream
    one: Served
    two: Served
    port: int


@contextlib.asynccontextmanager
async def fleet(folder: Path, **variables: str) -> AsyncIterator[Fleet]:
    async with (
        redis_server(folder) as redis,
        Upstream() as upstream,
        replica(folder, upstream, redis.url, **variables) as one,
        replica(folder, upstream, redis.url, **variables) as two,
        balanced((one.port, two.port)) as port,
    ):
        yield Fleet(redis, upstream, one, two, port)


def replica(
    folder: Path, upstream: Upstream, redis_url: str, **variables: str
) -> contextlib.AbstractAsyncContextManager[Served]:
    own = {
        "RELAY_REDIS_URL": redis_url,
        "RELAY_REDIS_LEASE_SECONDS": str(LEASE_SECONDS),
        "RELAY_REDIS_TTL_SECONDS": str(TTL_SECONDS),
        "RELAY_LOG_TTL_SECONDS": "1",
        "RELAY_LOG_LEVEL": "warning",
    }
    return forked(folder, upstream, *SERVE, **(own | variables))


class Reading:
    """What one client has of one stream, over all its connections. Pings are not kept."""

    def __init__(self) -> None:
        self.id = ""
        self.events: list[Event] = []
        self._response: Response | None = None

    @property
    def cursor(self) -> int:
        return max((event["seq"] for event in self.events if "seq" in event), default=-1)

    @property
    def text(self) -> str:
        return "".join(event.get("content", "") for event in self.events)

    @property
    def over(self) -> bool:
        return bool(self.events) and self.events[-1]["type"] == "[DONE]"

    @property
    def types(self) -> list[str]:
        return [event["type"] for event in self.events]

    async def begin(self, port: int, *, events: int, **fields: Any) -> None:
        """Asks, reads so many events, and leaves."""
        async with connect(port) as connection:
            await self.read(await connection.request("POST", "/chat/stream", chat(**fields), SSE), events)

    async def go_on(self, port: int, events: int | None = None) -> None:
        """Comes back with the cursor, reads so many events or to the end, and leaves."""
        cursor = {"last-event-id": f"{self.id}.{self.cursor}"} if self.events else {}
        async with connect(port) as connection:
            await self.read(await connection.request("GET", f"/chat/stream/{self.id}", None, SSE | cursor), events)

    async def read(self, response: Response, events: int | None = None) -> None:
        """So many events, or to the end. The response can be read further."""
        assert response.status == 200, await response.read()
        self.id = response.headers["x-stream-id"]
        if self._response is not response:
            self._response, self._blocks = response, response.blocks()
        async for block in self._blocks:
            if (event := event_of(block))["type"] != "ping":
                self.events.append(event)
                events = events if events is None else events - 1
            if events == 0:
                return

    def is_whole(self, text: str, end: str = "done") -> None:
        """No gap, nothing twice, one end, and all of the text."""
        assert self.types[-2:] == [end, "[DONE]"], self.events[-3:]
        assert sum(kind in ("done", "error") for kind in self.types) == 1
        seqs = [event["seq"] for event in self.events if "seq" in event]
        assert seqs == list(range(len(seqs)))
        assert self.text == text
        if "live_only" not in self.types:
            assert len(seqs) == len(self.events) - 1


async def result_of(port: int, stream_id: str) -> Event:
    response, body = await fetch(port, "GET", f"/chat/stream/{stream_id}/result")
    assert response.status == 200, body
    decoded: Event = msgspec.json.decode(body)
    return decoded
