"""What the relay holds while the soak goes on, sample by sample, and whether that grows."""

import http.client
import os
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Final

import msgspec

from benchmarks.processes import Server, upstream_stats

HELD: Final = ("resident_mib", "descriptors", "sockets", "tasks", "upstream_streams", "log_kib")
SLACK: Final = {"resident_mib": 0.02, "descriptors": 0.1, "sockets": 0.1, "tasks": 0.1}
"""Growth over the last half that is no growth, as a share of what is held: what chance leaves when noise is small."""

LEAST_SLACK: Final = {"resident_mib": 2.0, "descriptors": 10.0, "sockets": 10.0, "tasks": 10.0}
LATE_SECONDS: Final = 0.01
_LAG: Final = re.compile(rb'relay_loop_lag_seconds_bucket\{le="([^"]+)"\} ([0-9.e+]+)')
_LOG: Final = re.compile(rb"(?m)^relay_log_bytes ([0-9.e+]+)")


class Sample(msgspec.Struct, frozen=True):
    """`ticks` and `late_ticks` of the loop's timer count from the relay's start; late is 10 ms or more."""

    at_s: float
    ended: int
    resident_mib: float
    descriptors: float
    sockets: float
    tasks: float
    upstream_streams: float
    log_kib: float
    ticks: int
    late_ticks: int


def sample(server: Server, upstream_port: int, admin_port: int, told: Path, *, at_s: float, ended: int) -> Sample:
    metrics = _metrics(admin_port)
    ticks, late = _ticks(metrics)
    links = _links(server.pid)
    log = _LOG.search(metrics)
    return Sample(
        at_s=at_s,
        ended=ended,
        resident_mib=server.resident_bytes() / 2**20,
        descriptors=len(links),
        sockets=sum(link.startswith("socket:") for link in links),
        tasks=float((told.exists() and told.read_text()) or 0),
        upstream_streams=upstream_stats(upstream_port).active,
        log_kib=float(log[1]) / 1024 if log else 0.0,
        ticks=ticks,
        late_ticks=late,
    )


class Growth(msgspec.Struct, frozen=True):
    """Of one quantity over the last half: the fitted slope times its length, beside the noise around it."""

    name: str
    mean: float
    growth: float
    noise: float
    allowed: float

    @property
    def flat(self) -> bool:
        return self.growth <= self.allowed

    def __str__(self) -> str:
        verdict = "flat" if self.flat else "GROWS"
        return (
            f"{verdict:>6}  {self.name}: {self.mean:.1f}, grew by {self.growth:.1f} over the last half "
            f"(noise {self.noise:.1f}, allowed {self.allowed:.1f})"
        )


def growths(samples: Sequence[Sample]) -> list[Growth]:
    half = samples[len(samples) // 2 :]
    return [_growth(name, half) for name in SLACK]


def _growth(name: str, half: Sequence[Sample]) -> Growth:
    times, values = [one.at_s for one in half], [float(getattr(one, name)) for one in half]
    mean = fmean(values)
    slope = _slope(times, values)
    centre = fmean(times)
    noise = stdev(value - mean - slope * (at - centre) for at, value in zip(times, values, strict=True))
    allowed = max(noise, SLACK[name] * mean, LEAST_SLACK[name])
    return Growth(name, mean, slope * (times[-1] - times[0]), noise, allowed)


def _slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Least squares."""
    centre, mean = fmean(times), fmean(values)
    spread = sum((at - centre) ** 2 for at in times)
    return sum((at - centre) * (value - mean) for at, value in zip(times, values, strict=True)) / spread


def latest_shares(samples: Sequence[Sample], parts: int) -> list[float]:
    """The share of the loop's ticks that came late, in each part of the run."""
    bounds = [samples[place * (len(samples) - 1) // parts] for place in range(parts + 1)]
    return [(b.late_ticks - a.late_ticks) / max(1, b.ticks - a.ticks) for a, b in pairwise(bounds)]


def _ticks(metrics: bytes) -> tuple[int, int]:
    counts = {float(bound.replace(b"+Inf", b"inf")): float(count) for bound, count in _LAG.findall(metrics)}
    if not counts:
        raise RuntimeError("the relay's metrics lack relay_loop_lag_seconds")
    ticks = counts[float("inf")]
    return int(ticks), int(ticks - counts[LATE_SECONDS])


def _metrics(port: int) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read()
    finally:
        connection.close()


def _links(pid: int) -> list[str]:
    """What its descriptors are; one may close while we look."""
    links = []
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        try:
            links.append(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
        except FileNotFoundError:
            continue
    return links
