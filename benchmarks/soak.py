"""100,000 streams of every kind, and nothing may grow: `python -m benchmarks.soak [--streams N] [--per-second N]`.

Streams of random length and pace come at random moments, in all dialects. Some clients read to the end, some leave,
stop their stream, or leave and come back; some upstreams break off, reset, send garbage or errors, fall silent, or
refuse. Each client checks what it got. Meanwhile it is sampled what the relay holds.

Passed is a run in which every stream ended as it should have, memory, descriptors, sockets and tasks have no slope over
the last half beyond the noise, the loop's timer was called within 10 ms in 99 of 100 cases in every tenth of the run (a
short one has fewer parts), and, when all have gone, nothing of them remains. What ends by time ends after seconds here,
so that the relay reaches its steady state in the first half.
"""

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

import msgspec
import uvloop

from benchmarks.contenders import RELAY, started
from benchmarks.processes import OUT, Server, build, free_port, pin_rig, running_upstream
from benchmarks.report import write
from benchmarks.soak_clients import client, planned
from benchmarks.soak_samples import Growth, Sample, growths, latest_shares, sample

STREAMS: Final = 100_000
PER_SECOND: Final = 120.0
AT_ONCE: Final = 2_000
WARM_UP_STREAMS: Final = 4_000
"""Before the first sample: the relay lets its collector look at everything only every few thousand streams, and until
then memory grows."""

SAMPLES: Final = 400
LEAST_SAMPLE_SECONDS: Final = 0.25
LATE_SHARE: Final = 0.01
MOST_PARTS: Final = 10
PART_TICKS: Final = 100
"""At least: with fewer, one late tick would be more than the share that is allowed."""

SETTLE_SECONDS: Final = 30.0
LEFT_DESCRIPTORS: Final = 64
"""The pool may keep connections to upstream; a leak of anything would leave hundreds."""

LEFT_TASKS: Final = 4
FAILURES_SHOWN: Final = 20
TASKS_FILE: Final = OUT / "tasks"

SETTINGS: Final = {
    "RELAY_WAIT_SECONDS": "1",
    "RELAY_LOG_TTL_SECONDS": "4",
    "RELAY_TIMEOUT_IDLE_SECONDS": "2",
    "RELAY_MAX_RETRY_WAIT_SECONDS": "0.2",
    "RELAY_BREAKER_FAILURES": "0",  # faults are meant for their own streams: an upstream that is out fails others
    "RELAY_LOG_LEVEL": "error",
}


class Soak(msgspec.Struct, frozen=True):
    """What came of it."""

    streams: int
    seconds: float
    kinds: dict[str, int]
    failures: tuple[str, ...]
    failed: int
    growths: tuple[Growth, ...]
    late_shares: tuple[float, ...]
    first: Sample
    last: Sample
    samples: tuple[Sample, ...]

    def clean(self) -> bool:
        """Whether the last sample, taken when all had gone, is like the first, taken before any came."""
        return (
            self.last.upstream_streams == 0
            and self.last.tasks <= self.first.tasks + LEFT_TASKS
            and self.last.descriptors <= self.first.descriptors + LEFT_DESCRIPTORS
        )

    def passed(self) -> bool:
        on_time = max(self.late_shares) <= LATE_SHARE
        return not self.failed and on_time and self.clean() and all(growth.flat for growth in self.growths)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    build()
    pin_rig()
    TASKS_FILE.unlink(missing_ok=True)
    relay = msgspec.structs.replace(RELAY, command=_counted())
    admin_port = free_port()
    settings = {**SETTINGS, "RELAY_ADMIN_PORT": str(admin_port)}
    with running_upstream() as upstream_port, started(relay, upstream_port, **settings) as server:
        assert server is not None
        run = _Run(server, upstream_port, admin_port, options)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            found = runner.run(run.all())
    write("soak.json", msgspec.json.format(msgspec.json.encode(found)))
    print(told(found))
    return 0 if found.passed() else 1


def _counted() -> tuple[str, ...]:
    return (sys.executable, "-m", "benchmarks.counted_relay", str(TASKS_FILE))


class _Run:
    """Clients that come one by one, and somebody who looks what the relay holds."""

    def __init__(self, server: Server, upstream_port: int, admin_port: int, options: argparse.Namespace) -> None:
        self._server, self._upstream_port, self._admin_port = server, upstream_port, admin_port
        self._streams: int = options.streams
        self._warm_up: int = options.warm_up
        self._per_second: float = options.per_second
        self._chance = random.Random(options.seed)
        self._kinds: Counter[str] = Counter()
        self._failures: list[str] = []
        self._failed = self._ended = 0
        self._samples: list[Sample] = []
        self._began = time.monotonic()

    async def all(self) -> Soak:
        await self._listening()
        await self._come(self._warm_up)
        await self._settle()
        first = await self._sample()
        self._kinds.clear()
        expected_s = self._streams / self._per_second
        async with asyncio.timeout(2 * expected_s + 120):
            sampling = asyncio.create_task(self._sampling(max(LEAST_SAMPLE_SECONDS, expected_s / SAMPLES)))
            began = time.monotonic()
            await self._come(self._streams)
            seconds = time.monotonic() - began
            sampling.cancel()
        await self._settle()
        samples = tuple(self._samples)
        return Soak(
            streams=self._streams,
            seconds=seconds,
            kinds=dict(self._kinds),
            failures=tuple(self._failures),
            failed=self._failed,
            growths=tuple(growths(samples)),
            late_shares=tuple(latest_shares(samples, _parts(samples))),
            first=first,
            last=await self._sample(),
            samples=samples,
        )

    async def _listening(self) -> None:
        """The port of the metrics opens after that of the streams."""
        async with asyncio.timeout(SETTLE_SECONDS):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self._admin_port)
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    return

    async def _come(self, streams: int) -> None:
        """One after the other at random moments; when too many are there the next one waits."""
        room = asyncio.Semaphore(AT_ONCE)
        due = time.monotonic()
        async with asyncio.TaskGroup() as clients:
            for _ in range(streams):
                due += self._chance.expovariate(self._per_second)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await room.acquire()
                clients.create_task(self._client()).add_done_callback(lambda _: room.release())

    async def _client(self) -> None:
        plan = planned(self._chance)
        self._kinds[plan.kind] += 1
        failure = await client(self._server.port, plan)
        self._ended += 1
        if failure is not None:
            self._failed += 1
            self._failures += [failure] if len(self._failures) < FAILURES_SHOWN else []

    async def _sampling(self, every_s: float) -> None:
        while True:
            self._samples.append(await self._sample())
            if len(self._samples) % 40 == 0:
                print(f"{self._ended:,} streams, {self._failed} failed …", file=sys.stderr, flush=True)
            await asyncio.sleep(every_s)

    async def _sample(self) -> Sample:
        where = (self._server, self._upstream_port, self._admin_port, TASKS_FILE)
        at_s = time.monotonic() - self._began
        return await asyncio.to_thread(sample, *where, at_s=at_s, ended=self._ended)

    async def _settle(self) -> None:
        """Until upstream has no stream and logs have had their time."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            now = await self._sample()
            if not now.upstream_streams and now.log_kib < 1:
                return
            await asyncio.sleep(LEAST_SAMPLE_SECONDS)


def _parts(samples: Sequence[Sample]) -> int:
    ticks = samples[-1].ticks - samples[0].ticks
    return max(1, min(MOST_PARTS, ticks // PART_TICKS))


def told(found: Soak) -> str:
    worst, first, last = max(found.late_shares), found.first, found.last
    lines = [
        f"{found.streams:,} streams in {found.seconds:.0f} s: "
        + ", ".join(f"{count:,} {kind}" for kind, count in sorted(found.kinds.items())),
        f"{'ok' if not found.failed else 'FAILED':>6}  {found.failed} did not get what they should have",
        *(f"        {failure}" for failure in found.failures),
        *map(str, found.growths),
        f"{'ok' if worst <= LATE_SHARE else 'LATE':>6}  the loop was 10 ms late or more in {worst:.2%} of its ticks, "
        f"in the worst of {len(found.late_shares)} parts of the run ({LATE_SHARE:.0%} allowed)",
        f"{'ok' if found.clean() else 'LEFT':>6}  afterwards {last.tasks:.0f} tasks (before {first.tasks:.0f}), "
        f"{last.descriptors:.0f} descriptors (before {first.descriptors:.0f}), "
        f"{last.upstream_streams:.0f} streams at upstream",
        "passed" if found.passed() else "FAILED",
    ]
    return "\n".join(lines)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--streams", type=int, default=STREAMS, help=f"how many ({STREAMS:,})")
    parser.add_argument(
        "--per-second", type=float, default=PER_SECOND, help=f"how many come each second ({PER_SECOND:g})"
    )
    warming = f"how many come before what they leave is looked at ({WARM_UP_STREAMS:,})"
    parser.add_argument("--warm-up", type=int, default=WARM_UP_STREAMS, metavar="N", help=warming)
    parser.add_argument("--seed", type=int, default=7, help="of all that is random (7)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
