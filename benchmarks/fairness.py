"""Floods the relay and asks whether everybody else is still served: `python -m benchmarks.fairness`.

500 streams come as fast as they go, and one more whose client never reads. Meanwhile `/healthz` is asked every 20 ms
on a connection of its own, as a balancer would, on a fixed schedule: a probe that waits delays no other, so that slow
answers are counted as often as they happen. In the middle a stream of ordinary pace is stopped, and the time runs until
upstream has noticed. Memory is the relay's resident set; the peak is the kernel's own record of it.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from benchmarks.contenders import RELAY, started
from benchmarks.load import Job, Loaded, load
from benchmarks.processes import Server, build, pin_rig, running_upstream, settle, upstream_stats
from benchmarks.report import write
from benchmarks.wire import OpenStream, ask_and_never_read, exchange

FLOODING_STREAMS: Final = 500
FLOOD_TOKENS: Final = 4_000
NEVER_READ_MODEL: Final = "sim-100000-0-8"
PACED_MODEL: Final = "sim-3000-20000-8"
PROBE_SECONDS: Final = 0.02
QUIET_PROBES: Final = 100
STOP_AFTER_SECONDS: Final = 1.0
STATS_SECONDS: Final = 0.005
STOP_SECONDS: Final = 30.0


class Waits(msgspec.Struct, frozen=True):
    """Milliseconds that probes waited for their answer; `refused` counts those that got none, or not a 200."""

    probes: int
    refused: int
    p50: float
    p99: float
    max: float


class Stopped(msgspec.Struct, frozen=True):
    """Milliseconds from sending the DELETE: to its answer, until upstream noticed, until the reader had `[DONE]`."""

    status: int
    answered_ms: float
    upstream_closed_ms: float | None
    reader_done_ms: float


class Fairness(msgspec.Struct, frozen=True):
    """What the flood did to everybody else."""

    health_quiet_ms: Waits
    health_flooded_ms: Waits
    stopped: Stopped
    flood: Loaded
    resident_mib_before: float
    resident_mib_peak: float
    resident_mib_after: float


def main() -> int:
    build()
    pin_rig()
    with running_upstream() as upstream_port, started(RELAY, upstream_port) as server:
        assert server is not None
        _flood(server, streams=20, tokens=20)
        found = asyncio.run(_check(server, upstream_port))
    text = msgspec.json.format(msgspec.json.encode(found))
    write("fairness.json", text)
    print(text.decode())
    return 0 if found.flood.timeouts == 0 and found.health_flooded_ms.refused == 0 else 1


async def _check(server: Server, upstream_port: int) -> Fairness:
    before = server.resident_bytes()
    quiet = await _probe_while(server.port, lambda: asyncio.sleep(QUIET_PROBES * PROBE_SECONDS))
    ordinary = await OpenStream.open(server.port, PACED_MODEL)
    deaf = ask_and_never_read(server.port, NEVER_READ_MODEL)
    try:
        async with asyncio.TaskGroup() as tasks:
            flood = tasks.create_task(asyncio.to_thread(_flood, server, FLOODING_STREAMS, FLOOD_TOKENS))
            stopped = tasks.create_task(_stop(server.port, upstream_port, ordinary))
            probes = tasks.create_task(_probe_while(server.port, lambda: asyncio.shield(flood)))
    finally:
        deaf.close()
        ordinary.close()
    settle(upstream_port)
    return Fairness(
        health_quiet_ms=quiet,
        health_flooded_ms=probes.result(),
        stopped=stopped.result(),
        flood=flood.result(),
        resident_mib_before=_mib(before),
        resident_mib_peak=_mib(server.peak_resident_bytes()),
        resident_mib_after=_mib(server.resident_bytes()),
    )


def _flood(server: Server, streams: int, tokens: int) -> Loaded:
    request = RELAY.request(f"sim-{tokens}-0-8")
    return load(Job(server.port, RELAY.path, request, streams, streams, tokens))


async def _probe_while(port: int, busy: Callable[[], Awaitable[object]]) -> Waits:
    """Probes from now until `busy` has returned."""
    probes: list[asyncio.Task[float | None]] = []
    async with asyncio.TaskGroup() as tasks:
        until = asyncio.ensure_future(busy())
        began = time.monotonic()
        while not until.done():
            probes.append(tasks.create_task(_probe(port)))
            await asyncio.sleep(max(0.0, began + len(probes) * PROBE_SECONDS - time.monotonic()))
    waits = sorted(wait for probe in probes if (wait := probe.result()) is not None)
    return Waits(len(probes), len(probes) - len(waits), _at(waits, 0.5), _at(waits, 0.99), _at(waits, 1))


async def _probe(port: int) -> float | None:
    began = time.monotonic()
    try:
        status, _ = await exchange(port, "GET", "/healthz")
    except (OSError, TimeoutError, IndexError):
        return None
    return _ms_since(began) if status == 200 else None


async def _stop(port: int, upstream_port: int, stream: OpenStream) -> Stopped:
    await asyncio.sleep(STOP_AFTER_SECONDS)
    aborted = (await asyncio.to_thread(upstream_stats, upstream_port)).aborted
    began = time.monotonic()
    done = asyncio.create_task(stream.read_to_done())
    status, _ = await exchange(port, "DELETE", f"{RELAY.path}/{stream.id}")
    answered_ms = _ms_since(began)
    noticed_ns = await _noticed_ns(upstream_port, aborted)
    await done
    return Stopped(
        status=status,
        answered_ms=answered_ms,
        upstream_closed_ms=None if noticed_ns is None else round(noticed_ns / 1e6 - began * 1e3, 3),
        reader_done_ms=_ms_since(began),
    )


async def _noticed_ns(upstream_port: int, aborted_before: int) -> int | None:
    """When upstream saw one more stream aborted, on its own word; None when it does not."""
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline:
        stats = await asyncio.to_thread(upstream_stats, upstream_port)
        if stats.aborted > aborted_before:
            return stats.last_abort_ns
        await asyncio.sleep(STATS_SECONDS)
    return None


def _at(values: list[float], share: float) -> float:
    return values[int((len(values) - 1) * share)] if values else 0.0


def _ms_since(began: float) -> float:
    return round((time.monotonic() - began) * 1e3, 3)


def _mib(size_bytes: int) -> float:
    return round(size_bytes / 2**20, 1)


if __name__ == "__main__":
    sys.exit(main())
