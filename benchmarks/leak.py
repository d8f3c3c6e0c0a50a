"""Looks for what departures leave behind: `python -m benchmarks.leak`.

After 2,000 streams that warm pools and arenas up, 2,000 more are opened and dropped at random moments, some before the
first token, some in the middle, some after the end; three times over. Nothing of them may remain: no descriptor, no
stream at upstream, no memory beyond noise. A leak grows with every batch, an allocator that takes another arena grows
once: the median over the batches tells them apart. The relay keeps what can be read again for a second only, so that
what it is meant to keep is not taken for a leak.

Two more checks time one departure: after the fifth token, and while upstream still holds its status line back. Each
must reach upstream within 100 ms, for all 20 streams.
"""

import sys
from itertools import pairwise
from statistics import median
from typing import Final

import msgspec

from benchmarks.contenders import RELAY, started
from benchmarks.load import Job, Loaded, load
from benchmarks.processes import Server, build, pin_rig, running_upstream, settle
from benchmarks.report import write

STREAMS: Final = 2_000
BATCHES: Final = 3
AT_ONCE: Final = 60
SPREAD_MS: Final = 600
"""Longer than the whole stream of the model takes, so that some departures come after the end."""

MODEL: Final = "sim-20-20000-8-50"
DEPARTING_STREAMS: Final = 20
MAX_LAG_MS: Final = 100.0
MAX_GROWTH_BYTES_PER_STREAM: Final = 2048
MAX_NEW_DESCRIPTORS: Final = AT_ONCE
"""The pool may keep as many idle connections to upstream as were ever in use at once; a leak would leave thousands."""


class Held(msgspec.Struct, frozen=True):
    """What the relay holds when nothing is going on."""

    descriptors: int
    resident_bytes: int
    upstream_active: int


class Departure(msgspec.Struct, frozen=True):
    """20 departures at once: how many upstream noticed, and how long after the last one it noticed its last."""

    model: str
    aborted: int
    lag_ms: float

    def prompt(self) -> bool:
        return self.aborted == DEPARTING_STREAMS and self.lag_ms < MAX_LAG_MS


class Leak(msgspec.Struct, frozen=True):
    """`held` after the warm-up and after each batch; `ok` and `failed`: streams that ended before their client."""

    held: tuple[Held, ...]
    growth_bytes_per_stream: float
    dropped: int
    ok: int
    failed: int
    departures: tuple[Departure, ...]

    def passed(self) -> bool:
        first, last = self.held[0], self.held[-1]
        return (
            self.failed == 0
            and last.upstream_active == 0
            and last.descriptors <= first.descriptors + MAX_NEW_DESCRIPTORS
            and self.growth_bytes_per_stream <= MAX_GROWTH_BYTES_PER_STREAM
            and all(departure.prompt() for departure in self.departures)
        )


def main() -> int:
    build()
    pin_rig()
    with running_upstream() as upstream_port, started(RELAY, upstream_port, RELAY_LOG_TTL_SECONDS="1") as server:
        assert server is not None
        found = _check(server, upstream_port)
    text = msgspec.json.format(msgspec.json.encode(found))
    write("leak.json", text)
    print(text.decode())
    print("passed" if found.passed() else "FAILED", file=sys.stderr)
    return 0 if found.passed() else 1


def _check(server: Server, upstream_port: int) -> Leak:
    _drop(server)
    held, batches = [_held(server, upstream_port)], []
    for _ in range(BATCHES):
        batches.append(_drop(server))
        held.append(_held(server, upstream_port))
    growth_bytes = median(after.resident_bytes - before.resident_bytes for before, after in pairwise(held))
    return Leak(
        held=tuple(held),
        growth_bytes_per_stream=growth_bytes / STREAMS,
        dropped=sum(batch.aborted for batch in batches),
        ok=sum(batch.ok for batch in batches),
        failed=sum(batch.failed for batch in batches),
        departures=(
            _depart(server, upstream_port, "sim-1000-50000-8", "ABORT_AFTER", 5),
            _depart(server, upstream_port, "sim-1000-50000-8-6000", "ABORT_AFTER_MS", 400),
        ),
    )


def _drop(server: Server) -> Loaded:
    job = Job(server.port, RELAY.path, RELAY.request(MODEL, "cancel"), STREAMS, AT_ONCE, 20)
    return load(job, {"ABORT_SPREAD_MS": SPREAD_MS})


def _held(server: Server, upstream_port: int) -> Held:
    active = settle(upstream_port).active
    # One stream later, all that ended before it has been taken off the books: the relay does that as it goes.
    load(Job(server.port, RELAY.path, RELAY.request("sim-100-20000-8", "cancel"), 1, 1, 100))
    return Held(server.descriptors(), server.resident_bytes(), active)


def _depart(server: Server, upstream_port: int, model: str, when: str, value: int) -> Departure:
    before = settle(upstream_port).aborted
    request = RELAY.request(model, "cancel")
    loaded = load(Job(server.port, RELAY.path, request, DEPARTING_STREAMS, DEPARTING_STREAMS, 1000), {when: value})
    stats = settle(upstream_port, seconds=5)
    return Departure(model, stats.aborted - before, round((stats.last_abort_ns - loaded.last_abort_ns) / 1e6, 3))


if __name__ == "__main__":
    sys.exit(main())
