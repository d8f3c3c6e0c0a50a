"""Who asks when more clients come than may be served, what is seen of each crowd, and the table of it."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Final

import msgspec

from benchmarks.contenders import CONTENDERS, RELAY, Contender

INTERVAL_US: Final = 20_000


class Size(msgspec.Struct, frozen=True):
    """`tokens` of each stream; clients ask for streams for `for_ms`."""

    capacity: int
    queued: int
    tokens: int
    for_ms: int


class Crowd(msgspec.Struct, frozen=True):
    """Clients, as a share of the capacity, and when they come back: `told`, or after so many milliseconds.

    `herd`: they ask for the first time in one moment, not over the length of a stream.
    """

    name: str
    share: float
    back: str | int = "told"
    herd: bool = False
    who: Contender = RELAY


CALM: Final = Crowd("0.8 of the capacity", 0.8)
TOLD: Final = Crowd("3 times", 3)
CALM_HERD: Final = Crowd("0.8, a herd", 0.8, herd=True)
HERD: Final = Crowd("3 times, a herd", 3, herd=True)
DEAF: Final = Crowd("3 times, a deaf herd", 3, 100, herd=True)
NOBODY: Final = Crowd("0.8, without a relay", 0.8, who=CONTENDERS[0])
"""No herd: the relay spreads those that are asked for at once; without it they would bring their tokens in step."""

CROWDS: Final = (CALM, TOLD, CALM_HERD, HERD, DEAF)


class Figures(msgspec.Struct, frozen=True):
    """One crowd in one round. Latencies and waits in milliseconds; `core` is the share of it that the relay used.

    `failed`: let in, or into the queue, and did not end well.
    """

    ok: int
    failed: int
    latency_p50: float
    latency_p99: float
    refused: int
    refusal_p50: float
    refusal_p99: float
    refusal_max: float
    queued: int
    wait_p50: float
    wait_max: float
    overtaken: float
    core: float


class Row(msgspec.Struct, frozen=True):
    """A line of the table. `added`: less what the rig shows without a relay."""

    title: str
    figures: tuple[str, ...]
    format: str
    added: bool = False


ROWS: Final = (
    Row("streams that ended well", ("ok",), "{:.0f}"),
    Row("streams that failed", ("failed",), "{:.0f}"),
    Row("latency per token added, p50 (ms)", ("latency_p50",), "{:.2f}", added=True),
    Row("latency per token added, p99 (ms)", ("latency_p99",), "{:.2f}", added=True),
    Row("refusals", ("refused",), "{:.0f}"),
    Row("until a refusal is there, p50 / p99 / max (ms)", ("refusal_p50", "refusal_p99", "refusal_max"), "{:.1f}"),
    Row("streams that waited in the queue", ("queued",), "{:.0f}"),
    Row("time to the first token, p50 / max (ms)", ("wait_p50", "wait_max"), "{:.0f}"),
    Row("overtaken by at most (ms)", ("overtaken",), "{:.1f}"),
    Row("share of the core", ("core",), "{:.0%}"),
)


def table(size: Size, rounds: Sequence[Mapping[str, Figures]]) -> str:
    """A column for each crowd, and what it comes to."""
    header = [f"{crowd.name}: {int(crowd.share * size.capacity)} clients" for crowd in CROWDS]
    lines = [["", *header], ["---", *["---:"] * len(CROWDS)]]
    lines += [[row.title, *(_cell(row, crowd, rounds) for crowd in CROWDS)] for row in ROWS]
    about = (
        f"A capacity of {size.capacity} streams on one core and a queue of {size.queued}; streams of "
        f"{size.tokens * INTERVAL_US / 1e6:g} s are asked for during {size.for_ms / 1000:g} s; medians of "
        f"{len(rounds)} rounds."
    )
    comes_to = (
        "At three times the capacity the 99th percentile of the latency added is "
        f"{_times(TOLD, CALM, rounds):.1f} times that at 0.8 of it, "
        f"with herds {_times(HERD, CALM_HERD, rounds):.1f} times."
    )
    return "\n".join([about, "", *(f"| {' | '.join(line)} |" for line in lines), "", comes_to])


def _times(crowd: Crowd, other: Crowd, rounds: Sequence[Mapping[str, Figures]]) -> float:
    row = Row("", ("latency_p99",), "", added=True)
    return _value(row, crowd, rounds)[0] / _value(row, other, rounds)[0]


def _cell(row: Row, crowd: Crowd, rounds: Sequence[Mapping[str, Figures]]) -> str:
    return " / ".join(row.format.format(value) for value in _value(row, crowd, rounds))


def _value(row: Row, crowd: Crowd, rounds: Sequence[Mapping[str, Figures]]) -> list[float]:
    """The medians of its figures."""
    base = NOBODY.name if row.added else None
    return [
        _median(figure, crowd.name, rounds) - (_median(figure, base, rounds) if base else 0) for figure in row.figures
    ]


def _median(figure: str, crowd: str, rounds: Sequence[Mapping[str, Figures]]) -> float:
    values: list[float] = [getattr(one[crowd], figure) for one in rounds]
    return median(values)
