"""What a run found, as tables for people and as JSON for machines."""

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Final

import msgspec

from benchmarks.departures import Lags
from benchmarks.measure import FEW_STREAMS, MANY_STREAMS, Figures
from benchmarks.processes import OUT, RIG_CORE, ROOT, SERVER_CORE
from benchmarks.returning import Returned
from benchmarks.vanishing import Vanished

DOCUMENT: Final = ROOT / "docs" / "benchmarks.md"
BEGIN: Final = "<!-- benchmarks.run: begin -->"
END: Final = "<!-- benchmarks.run: end -->"
NONE: Final = "\N{EN DASH}"
PACKAGES: Final = ("fastapi", "uvicorn", "openai", "httpx2", "aiohttp", "sse-starlette", "uvloop", "httptools")
DIRECT: Final = "direct"


class Row(msgspec.Struct, frozen=True):
    """A line of a table: a figure, its unit, and whether the rig's own share is taken off."""

    title: str
    figure: str
    format: str
    scale: float = 1.0
    added: bool = False


ROWS: Final = (
    Row(f"CPU per token, {FEW_STREAMS} streams of 50 tokens/s (µs)", "few_cpu_us", "{:.1f}"),
    Row(f"CPU per token, {MANY_STREAMS} streams of 50 tokens/s (µs)", "many_cpu_us", "{:.1f}"),
    Row(f"streams of these {MANY_STREAMS} that got under way", "many_standing", "{:.0f}"),
    Row(f"tokens that came of those that were due, {MANY_STREAMS} streams (%)", "many_came_share", "{:.0f}", 100),
    Row(f"share of the core, {MANY_STREAMS} streams (%)", "many_core_share", "{:.0f}", 100),
    Row("CPU per token, flooded (µs)", "flood_cpu_us", "{:.2f}"),
    Row("flooded, tokens/s (thousands)", "flood_tokens_per_s", "{:.1f}", scale=1e-3),
    Row("CPU to open a stream, nothing else open (µs)", "open_cpu_us", "{:.0f}"),
    Row(f"CPU to open a stream, {MANY_STREAMS} others open (µs)", "open_among_cpu_us", "{:.0f}"),
    Row("CPU to open a stream, hundreds have just ended (µs)", "open_after_cpu_us", "{:.0f}"),
    Row("memory per open idle stream (KiB)", "idle_stream_bytes", "{:.1f}", scale=1 / 1024),
    Row("memory of the process at its start (MiB)", "base_bytes", "{:.0f}", scale=2**-20),
    Row("time to first token added, p50 (ms)", "first_token_p50_us", "{:.2f}", scale=1e-3, added=True),
    Row("time to first token added, p99 (ms)", "first_token_p99_us", "{:.2f}", scale=1e-3, added=True),
    Row(f"latency per token added, {FEW_STREAMS} streams, p50 (ms)", "latency_p50_us", "{:.2f}", 1e-3, added=True),
    Row(f"latency per token added, {FEW_STREAMS} streams, p99 (ms)", "latency_p99_us", "{:.2f}", 1e-3, added=True),
    Row("jitter between tokens added, p50 (ms)", "jitter_p50_us", "{:.3f}", scale=1e-3, added=True),
    Row("jitter between tokens added, p99 (ms)", "jitter_p99_us", "{:.2f}", scale=1e-3, added=True),
    Row(
        f"latency per token added, {MANY_STREAMS} streams, p99 (ms)", "many_latency_p99_us", "{:.1f}", 1e-3, added=True
    ),
    Row("departures that reached upstream, of 20", "departures_noticed", "{:.0f}"),
    Row("last departure reached upstream after (ms)", "departure_lag_ms", "{:.2f}"),
)


class Rounds(msgspec.Struct, frozen=True):
    """All rounds of one contender."""

    name: str
    figures: tuple[Figures, ...]

    def median_of(self, figure: str) -> float | None:
        """None when a round has no such figure: a median of what is left would flatter."""
        values = [getattr(one, figure) for one in self.figures]
        return None if None in values or not values else median(values)

    def latency_us(self) -> list[tuple[float, float]]:
        """Medians of the percentiles over the rounds."""
        shares = [share for share, _ in self.figures[0].latency_us]
        return [(share, median(one.latency_us[place][1] for one in self.figures)) for place, share in enumerate(shares)]


class Table(msgspec.Struct, frozen=True):
    """Contenders beside each other; the rig alone among them, which gets no column."""

    contenders: tuple[Rounds, ...]

    def value(self, name: str, row: Row) -> float | None:
        """A contender's median in the row's unit; `added` rows are less what the rig shows without any server."""
        value = self.rounds(name).median_of(row.figure)
        base = self.rounds(DIRECT).median_of(row.figure) if row.added else 0.0
        return None if value is None or base is None else (value - base) * row.scale

    def rounds(self, name: str) -> Rounds:
        return next(rounds for rounds in self.contenders if rounds.name == name)

    def servers(self) -> list[str]:
        return [rounds.name for rounds in self.contenders if rounds.name != DIRECT]

    def ratio(self, figure: str, base: str) -> float | None:
        """The relay's over another's."""
        row = next(row for row in ROWS if row.figure == figure)
        if not {"relay", base} <= set(self.servers()):
            return None
        value, other = self.value("relay", row), self.value(base, row)
        return value / other if value and other and value > 0 and other > 0 else None


class Goings(msgspec.Struct, frozen=True):
    """Who leaves, who comes back, who vanishes; `half` is half of the relay's capacity."""

    half: int
    herd: int
    at_half: tuple[Lags, ...]
    flooded: tuple[Lags, ...]
    idle_return: tuple[Returned, ...]
    half_return: tuple[Returned, ...]
    vanished: Vanished | str


class Run(msgspec.Struct, frozen=True):
    """A whole run: where, with what, how much, and what came out. `capacities`: each round's number of streams."""

    machine: str
    versions: tuple[str, ...]
    taken: str
    notes: tuple[str, ...]
    main: Table
    variants: Table | None
    capacities: Mapping[str, tuple[int, ...]]
    goings: Goings | None

    def capacity(self, name: str) -> float | None:
        found = self.capacities.get(name)
        return median(found) if found else None


def machine() -> str:
    return f"{_processor()}, {os.cpu_count()} cores, Linux {platform.release().split('-')[0]}"


def versions() -> tuple[str, ...]:
    return (f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES))


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def about(run: Run) -> str:
    rounds = len(run.main.contenders[0].figures)
    return (
        f"Taken {run.taken} on {run.machine}; {', '.join(run.versions)}. Medians of {rounds} interleaved rounds, the "
        f"server under test on core {SERVER_CORE}, load and upstream on core {RIG_CORE}. Absolute figures belong to "
        "this machine; the ratios travel."
    )


def write_json(run: Run, name: str) -> Path:
    return write(f"{name}.json", msgspec.json.format(msgspec.json.encode(run)))


def write(name: str, content: bytes) -> Path:
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / name
    path.write_bytes(content + b"\n")
    return path


def write_passage(begin: str, end: str, passage: str) -> None:
    """Puts it between the document's markers; what people wrote around them stays."""
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(replace_passage(text, begin, end, passage), encoding="utf-8")


def replace_passage(text: str, begin: str, end: str, passage: str) -> str:
    """The text with another passage between two marks; RuntimeError where they are missing."""
    before, begun, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not begun or not ended:
        raise RuntimeError(f"{DOCUMENT} lacks {begin} or {end}")
    return f"{before}{begin}\n{passage}\n{end}{after}"


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _processor() -> str:
    for each in Path("/proc/cpuinfo").read_text().splitlines():
        if each.startswith("model name"):
            return each.partition(":")[2].strip()
    return platform.machine()
