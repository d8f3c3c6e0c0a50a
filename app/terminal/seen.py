"""What the admin listener shows of a relay, and why it shows nothing."""

import asyncio
import re
from typing import Final, Self, TypeVar

import httpx2
import msgspec

from app.client.connecting import options

ANSWER_SECONDS: Final = 5.0
LAG_EVERY_SECONDS: Final = 5.0
"""The page of metrics takes the relay some milliseconds, and what is read from it is of the last minute."""

_LAG: Final = re.compile(rb"^relay_loop_lag_max_seconds (\S+)$", re.MULTILINE)

Kind = TypeVar("Kind")


class StreamSeen(msgspec.Struct, frozen=True):
    """A stream that is generated now; `lag_bytes` is how far its slowest reader is behind."""

    id: str
    caller: str
    model: str
    upstream: str | None
    phase: str
    age_s: float
    readers: int
    lag_bytes: int


class UpstreamSeen(msgspec.Struct, frozen=True):
    """`state` is its breaker's, which lets it be asked again in `opens_in_s`; `rests_s`: it asked for so long."""

    name: str
    state: str
    streams: int
    max_streams: int | None
    failures: int
    opens_in_s: float
    rests_s: float


class Places(msgspec.Struct, frozen=True):
    running: int
    max: int


class Queue(msgspec.Struct, frozen=True):
    waiting: int
    max: int


class Logs(msgspec.Struct, frozen=True):
    bytes: int
    max_bytes: int


class Readiness(msgspec.Struct, frozen=True):
    """`/readyz` as the admin listener has it. `shared_log` is None without one."""

    status: str
    shared_log: str | None
    streams: Places
    queue: Queue
    log: Logs
    upstreams: list[UpstreamSeen]


class Seen(msgspec.Struct, frozen=True):
    """One look. `loop_lag_s` is the longest of the last minute, None where it is not told."""

    readiness: Readiness
    streams: list[StreamSeen]
    loop_lag_s: float | None


class Unseen(Exception):
    """Nothing to be seen, and why, for whoever looks."""


class _Streams(msgspec.Struct):
    streams: list[StreamSeen]


class _Error(msgspec.Struct):
    message: str


class _Problem(msgspec.Struct):
    error: _Error


class Lookout:
    """Looks at one relay. Raises ValueError for what is no URL."""

    def __init__(self, url: str) -> None:
        self.url: Final = url.rstrip("/")
        self._client: Final = httpx2.AsyncClient(**options(self.url, None, ANSWER_SECONDS))
        self._lag_s: float | None = None
        self._lag_due = 0.0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def look(self) -> Seen:
        """Raises Unseen."""
        readiness = self._read(await self._get("/readyz"), Readiness)
        streams = self._read(await self._get("/streams"), _Streams).streams
        return Seen(readiness, streams, await self._loop_lag_s())

    async def _loop_lag_s(self) -> float | None:
        now = asyncio.get_running_loop().time()
        if now >= self._lag_due:
            found = _LAG.search((await self._get("/metrics")).content)
            self._lag_s = None if found is None else float(found[1])
            self._lag_due = now + LAG_EVERY_SECONDS
        return self._lag_s

    async def _get(self, path: str) -> httpx2.Response:
        try:
            return await self._client.get(path)
        except httpx2.TimeoutException:
            raise Unseen(f"{self.url} does not answer") from None
        except httpx2.ConnectError:
            raise Unseen(f"no admin listener at {self.url}; the relay says where it is when it starts") from None
        except httpx2.HTTPError:
            raise Unseen(f"what listens at {self.url} does not speak HTTP, or has just gone") from None

    def _read(self, response: httpx2.Response, kind: type[Kind]) -> Kind:
        try:
            return msgspec.json.decode(response.content, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise Unseen(self._why(response)) from None

    def _why(self, response: httpx2.Response) -> str:
        """A relay that starts, or that does not know the name in our URL, says so; its public port has no detail."""
        try:
            return f"{self.url} says: {msgspec.json.decode(response.content, type=_Problem).error.message}"
        except (msgspec.MsgspecError, UnicodeDecodeError):
            hint = "it has a port of its own: RELAY_ADMIN_PORT, 8001 unless set otherwise"
            return f"{self.url} is not the admin listener of a relay; {hint}"
