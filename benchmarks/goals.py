"""What the figures should come to: ratios, since absolute figures belong to a machine. Told, not written down."""

from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import TypeVar

import msgspec

from benchmarks.departures import Lags
from benchmarks.report import ROWS, Goings, Run
from benchmarks.returning import Returned
from benchmarks.vanishing import HEARTBEAT_SECONDS, Vanished

T = TypeVar("T")


class Goal(msgspec.Struct, frozen=True):
    """A figure and its bound; `least` where it is a lower one. None: not measured, or only to be told."""

    title: str
    value: float | None
    bound: float | None = None
    least: bool = False

    @property
    def met(self) -> bool | None:
        if self.value is None or self.bound is None:
            return None
        return self.value >= self.bound if self.least else self.value <= self.bound

    def __str__(self) -> str:
        if self.value is None:
            return f"not measured  {self.title}"
        if self.bound is None:
            return f"{'told':>12}  {self.title}: {self.value:.2f}"
        bound = f"({'at least' if self.least else 'at most'} {self.bound:g})"
        return f"{'met' if self.met else 'MISSED':>12}  {self.title}: {self.value:.2f} {bound}"


def goals(run: Run) -> list[Goal]:
    ratio = run.main.ratio
    return [
        Goal("CPU per token, 200 streams, relay / floor", ratio("many_cpu_us", "floor"), 2.0),
        Goal("CPU per token, 200 streams, relay / tutorial", ratio("many_cpu_us", "tutorial"), 0.25),
        Goal("CPU per token, 50 streams, relay / tutorial", ratio("few_cpu_us", "tutorial"), 0.25),
        Goal("CPU per token, 200 streams, relay / nginx", ratio("many_cpu_us", "nginx")),
        Goal("flooded tokens/s, relay / tutorial", ratio("flood_tokens_per_s", "tutorial"), 20, least=True),
        Goal("CPU to open a stream, nothing else open, relay / tutorial", ratio("open_cpu_us", "tutorial"), 0.4),
        Goal("CPU to open a stream, 200 others open, relay / tutorial", ratio("open_among_cpu_us", "tutorial"), 0.4),
        Goal(
            "CPU to open a stream, hundreds have just ended, relay / tutorial",
            ratio("open_after_cpu_us", "tutorial"),
            0.4,
        ),
        Goal("memory per idle stream, relay / tutorial", ratio("idle_stream_bytes", "tutorial"), 0.75),
        Goal("memory per idle stream (KiB)", _own(run, "relay", "idle_stream_bytes"), 48),
        Goal(
            "memory per idle stream, TLS to upstream (KiB)", _variant(run, "TLS to upstream", "idle_stream_bytes"), 96
        ),
        Goal("memory of the process at its start (MiB)", _own(run, "relay", "base_bytes"), 90),
        Goal(
            "streams per core, relay / tutorial", _over(run.capacity("relay"), run.capacity("tutorial")), 5, least=True
        ),
        Goal("CPU per token with Redis and telemetry, times itself", _redis(run), 2.0),
        *(_goings(run.goings) if run.goings else ()),
    ]


def _own(run: Run, name: str, figure: str) -> float | None:
    row = next(row for row in ROWS if row.figure == figure)
    return run.main.value(name, row) if name in run.main.servers() else None


def _variant(run: Run, name: str, figure: str) -> float | None:
    row = next(row for row in ROWS if row.figure == figure)
    if run.variants is None or name not in run.variants.servers():
        return None
    return run.variants.value(name, row)


def _redis(run: Run) -> float | None:
    return _over(_variant(run, "Redis, telemetry", "many_cpu_us"), _variant(run, "relay", "many_cpu_us"))


def _over(value: float | None, base: float | None) -> float | None:
    return value / base if value and base else None


def _goings(goings: Goings) -> Iterator[Goal]:
    yield Goal("departure to upstream closed at half of capacity, p99 (ms)", _mid(goings.at_half, _p99_ms), 20)
    yield Goal("departure to upstream closed, 500 flooding, p99 (ms)", _mid(goings.flooded, _p99_ms), 500)
    yield Goal("reconnects at half of capacity, the last (s)", _mid(goings.half_return, _longest_s), 2)
    times = _over(_mid(goings.half_return, _longest_s), _mid(goings.idle_return, _longest_s))
    yield Goal("the same, times an idle relay's", times)
    if isinstance(goings.vanished, Vanished):
        last = max(goings.vanished.flowing_s or 999, goings.vanished.silent_s or 999)
        yield Goal("a client that vanished is gone after (s)", last, HEARTBEAT_SECONDS + 20)


def _p99_ms(lags: Lags) -> float:
    return float("inf") if lags.missed else lags.p99_ms


def _longest_s(returned: Returned) -> float:
    return float("inf") if returned.lost else returned.max_ms / 1000


def _mid(found: Sequence[T], figure: Callable[[T], float]) -> float | None:
    return median(map(figure, found)) if found else None
