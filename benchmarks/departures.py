"""How long after a client has left upstream notices, one by one, while the server has other things to do."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from benchmarks.contenders import RELAY, started
from benchmarks.load import Job, loading
from benchmarks.paced import INTERVAL_US, Crowd, standing
from benchmarks.processes import Server, abort_ns, running_upstream

TOKENS_FIRST: Final = 3
NOTICE_SECONDS: Final = 20.0
LOOK_SECONDS: Final = 0.02
FLOODING_STREAMS: Final = 500
FLOOD_MODEL: Final = "sim-1000000000-0-8"
BEGIN_SECONDS: Final = 30.0


class Lags(msgspec.Struct, frozen=True):
    """Milliseconds from the client's close until upstream saw its own connection close; `missed` were never seen."""

    departures: int
    missed: int
    p50_ms: float
    p99_ms: float
    max_ms: float


def at_half(streams: int, departures: int) -> Lags:
    """Beside so many streams of ordinary pace."""
    with running_upstream() as upstream_port, started(RELAY, upstream_port) as server:
        assert server is not None
        with standing(Crowd(RELAY, server, upstream_port, streams)):
            return asyncio.run(_lags(server, upstream_port, departures))


def flooded(departures: int) -> Lags:
    """Beside 500 streams that come as fast as they go."""
    with running_upstream() as upstream_port, started(RELAY, upstream_port) as server:
        assert server is not None
        with _flooding(server):
            return asyncio.run(_lags(server, upstream_port, departures))


@contextmanager
def _flooding(server: Server) -> Iterator[None]:
    tokens = 1_000_000_000
    job = Job(server.port, RELAY.path, RELAY.request(FLOOD_MODEL), FLOODING_STREAMS, FLOODING_STREAMS, tokens)
    with loading(job, {"HOLD": 1}) as process:
        assert process.stdout is not None
        if b"standing" not in process.stdout.readline():
            raise RuntimeError("the flood does not stand")
        yield


async def _lags(server: Server, upstream_port: int, departures: int) -> Lags:
    """Departures come one after the other: each is timed by itself."""
    lags = [await _lag_ms(server.port, upstream_port, tag) for tag in range(1, departures + 1)]
    seen = sorted(lag for lag in lags if lag is not None)
    last = max(0, len(seen) - 1)
    points = [seen[round(last * share)] if seen else 0.0 for share in (0.5, 0.99, 1)]
    return Lags(departures, departures - len(seen), *(round(point, 3) for point in points))


async def _lag_ms(port: int, upstream_port: int, tag: int) -> float | None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(RELAY.whole_request(port, f"sim-100000-{INTERVAL_US}-8-0-{tag}", "cancel"))
    async with asyncio.timeout(BEGIN_SECONDS):
        for _ in range(TOKENS_FIRST):
            await reader.readuntil(b"@")
    left_ns = time.monotonic_ns()
    writer.close()
    deadline = time.monotonic() + NOTICE_SECONDS
    while time.monotonic() < deadline:
        if noticed_ns := await asyncio.to_thread(abort_ns, upstream_port, tag):
            return (noticed_ns - left_ns) / 1e6
        await asyncio.sleep(LOOK_SECONDS)
    return None
