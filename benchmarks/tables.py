"""A run as the markdown of docs/benchmarks.md."""

from collections.abc import Sequence
from statistics import median
from typing import Final

from benchmarks.capacity import LATE_MS
from benchmarks.departures import Lags
from benchmarks.report import DIRECT, NONE, ROWS, Goings, Row, Run, Table, about, line
from benchmarks.vanishing import Vanished

PICTURE: Final = "![What is added to the latency of a token, and how many streams one core carries](benchmarks.svg)"
BASES: Final = ("tutorial", "floor", "nginx")

VARIANT_FIGURES: Final = (
    ("many_cpu_us", "CPU per token (µs)"),
    ("flood_cpu_us", "flooded (µs)"),
    ("open_cpu_us", "to open (µs)"),
    ("idle_stream_bytes", "idle stream (KiB)"),
    ("first_token_p50_us", "first token, p50 (ms)"),
    ("latency_p50_us", "latency, p50 (ms)"),
    ("latency_p99_us", "latency, p99 (ms)"),
)


def markdown(run: Run) -> str:
    """All of it; what was not measured is left out."""
    parts = [about(run), main_table(run.main), PICTURE if run.capacities else ""]
    if run.capacities:
        parts += ["### Streams that one core carries", _capacities(run)]
    if run.variants is not None:
        parts += ["### In other shapes and places", _variants(run.variants)]
    if run.goings is not None:
        parts += ["### Who leaves, vanishes and comes back", _goings(run.goings)]
    return "\n\n".join(part for part in (*parts, *run.notes) if part)


def main_table(table: Table) -> str:
    names = table.servers()
    bases = [name for name in BASES if "relay" in names and name in names]
    header = ["", *names, *(f"relay / {base}" for base in bases)]
    lines = [line(header), line(["---", *["---:"] * (len(header) - 1)])]
    for row in ROWS:
        cells = [_cell(table, name, row) for name in names]
        ratios = [table.ratio(row.figure, base) for base in bases]
        lines.append(line([row.title, *cells, *(NONE if ratio is None else f"{ratio:.2f}" for ratio in ratios)]))
    return "\n".join(lines)


def _cell(table: Table, name: str, row: Row) -> str:
    value = table.value(name, row)
    return NONE if value is None else row.format.format(value)


def _capacities(run: Run) -> str:
    relay = run.capacity("relay")
    lines = [line(["", "streams", "relay / it"]), line(["---", "---:", "---:"])]
    for name in run.capacities:
        found = run.capacity(name)
        assert found is not None
        shown = "the rig alone" if name == DIRECT else name
        lines.append(line([shown, f"{found:.0f}", f"{relay / found:.2f}" if relay and found else NONE]))
    rounds = max(map(len, run.capacities.values()))
    words = (
        f"The most streams of 50 tokens a second with which the 99th percentile of the latency added to a token stays "
        f"under {LATE_MS} ms; medians of {rounds} searches. What is near the rig alone may carry more."
    )
    return "\n".join([words, "", *lines])


def _variants(table: Table) -> str:
    rows = [next(row for row in ROWS if row.figure == figure) for figure, _ in VARIANT_FIGURES]
    lines = [line(["", *(title for _, title in VARIANT_FIGURES)]), line(["---", *["---:"] * len(rows)])]
    lines += [line([name, *(_cell(table, name, row) for row in rows)]) for name in table.servers()]
    rounds = len(table.contenders[0].figures)
    words = (
        f"The relay against itself, medians of {rounds} rounds; CPU per token with 200 streams, the latency that is "
        "added with 50. TLS, Redis and the reader of `/metrics` (once a second) run beside the rig."
    )
    return "\n".join([words, "", *lines])


def _goings(goings: Goings) -> str:
    rows = [
        line(["", "p50", "p99", "longest"]),
        line(["---", "---:", "---:", "---:"]),
        line([f"departure reaches upstream, {goings.half} streams beside it (ms)", *_lags(goings.at_half)]),
        line(["departure reaches upstream, 500 flooding streams beside it (ms)", *_lags(goings.flooded)]),
    ]
    for beside, found in (("nothing", goings.idle_return), (f"{goings.half} streams", goings.half_return)):
        values = [median(getattr(one, name) for one in found) for name in ("p50_ms", "p99_ms", "max_ms")]
        title = f"{goings.herd} readers come back in one moment, {beside} beside them (ms)"
        rows.append(line([title, *(f"{value:.0f}" for value in values)]))
    words = f"{goings.half} streams of 50 tokens a second are half of what the relay carries on this core."
    return "\n".join([words, "", *rows, "", _vanished(goings.vanished)])


def _lags(found: Sequence[Lags]) -> list[str]:
    if any(one.missed for one in found):
        return [NONE, NONE, f"{sum(one.missed for one in found)} never"]
    return [f"{median(getattr(one, name) for one in found):.1f}" for name in ("p50_ms", "p99_ms", "max_ms")]


def _vanished(vanished: Vanished | str) -> str:
    if isinstance(vanished, str):
        return vanished
    told = ["never" if value is None else f"after {value:.1f} s" for value in (vanished.flowing_s, vanished.silent_s)]
    return (
        f"A client whose packets are dropped, without FIN or RST, is gone {told[0]} when its stream flows, and "
        f"{told[1]} when only the heartbeat (15 s) would reach it."
    )
