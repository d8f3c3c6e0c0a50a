"""What a run found, as a table for people and as JSON for machines."""

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Final

import msgspec

from benchmarks.measure import Figures, Sizes
from benchmarks.processes import OUT, RIG_CORE, ROOT, SERVER_CORE

DOCUMENT: Final = ROOT / "docs" / "benchmarks.md"
BEGIN: Final = "<!-- benchmarks.run: begin -->"
NONE: Final = "\N{EN DASH}"
END: Final = "<!-- benchmarks.run: end -->"
PACKAGES: Final = ("fastapi", "uvicorn", "openai", "httpx2", "aiohttp", "sse-starlette", "uvloop", "httptools")


class Row(msgspec.Struct, frozen=True):
    """A line of the table: a figure, its unit, and whether the rig's own share is taken off."""

    title: str
    figure: str
    format: str
    scale: float = 1.0
    added: bool = False


ROWS: Final = (
    Row("CPU per token, 50 streams of 50 tokens/s (µs)", "paced_cpu_us", "{:.1f}"),
    Row("CPU per token, flooded (µs)", "flood_cpu_us", "{:.2f}"),
    Row("flooded, tokens/s (thousands)", "flood_tokens_per_s", "{:.1f}", scale=1e-3),
    Row("CPU to open a stream (µs)", "open_cpu_us", "{:.0f}"),
    Row("memory per open idle stream (KiB)", "idle_stream_bytes", "{:.1f}", scale=1 / 1024),
    Row("time to first token added, p50 (ms)", "first_token_p50_us", "{:.2f}", scale=1e-3, added=True),
    Row("time to first token added, p99 (ms)", "first_token_p99_us", "{:.2f}", scale=1e-3, added=True),
    Row("latency per token added, p50 (ms)", "latency_p50_us", "{:.2f}", scale=1e-3, added=True),
    Row("latency per token added, p99 (ms)", "latency_p99_us", "{:.2f}", scale=1e-3, added=True),
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
        return None if None in values else median(values)


class Run(msgspec.Struct, frozen=True):
    """A whole run: where, with what, how much, and what came out."""

    machine: str
    versions: tuple[str, ...]
    taken: str
    sizes: Sizes
    notes: tuple[str, ...]
    contenders: tuple[Rounds, ...]

    def value(self, name: str, row: Row) -> float | None:
        """A contender's median in the row's unit; `added` rows are less what the rig shows without any server."""
        value = self._rounds(name).median_of(row.figure)
        base = self._rounds("direct").median_of(row.figure) if row.added else 0.0
        return None if value is None or base is None else (value - base) * row.scale

    def _rounds(self, name: str) -> Rounds:
        return next(rounds for rounds in self.contenders if rounds.name == name)

    def servers(self) -> list[str]:
        return [rounds.name for rounds in self.contenders if rounds.name != "direct"]


def describe(sizes: Sizes, notes: Sequence[str], contenders: Sequence[Rounds]) -> Run:
    return Run(
        machine=f"{_processor()}, {os.cpu_count()} cores, Linux {platform.release().split('-')[0]}",
        versions=(f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES)),
        taken=datetime.now(UTC).date().isoformat(),
        sizes=sizes,
        notes=tuple(notes),
        contenders=tuple(contenders),
    )


def markdown(run: Run) -> str:
    names = run.servers()
    bases = [name for name in ("tutorial", "floor", "nginx") if "relay" in names and name in names]
    header = ["", *names, *(f"relay / {base}" for base in bases)]
    lines = [_line(header), _line(["---", *["---:"] * (len(header) - 1)])]
    for row in ROWS:
        values = {name: run.value(name, row) for name in names}
        cells = [NONE if value is None else row.format.format(value) for value in values.values()]
        lines.append(_line([row.title, *cells, *(_ratio(values["relay"], values[base]) for base in bases)]))
    return "\n".join(lines)


def write_json(run: Run, name: str) -> Path:
    return write(f"{name}.json", msgspec.json.format(msgspec.json.encode(run)))


def write(name: str, content: bytes) -> Path:
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / name
    path.write_bytes(content + b"\n")
    return path


def write_document(run: Run) -> None:
    """Puts the run between the document's markers; what people wrote around them stays."""
    text = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else f"# Benchmarks\n\n{BEGIN}\n{END}\n"
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(replace_passage(text, BEGIN, END, _passage(run)), encoding="utf-8")


def replace_passage(text: str, begin: str, end: str, passage: str) -> str:
    """The text with another passage between two marks; RuntimeError where they are missing."""
    before, begun, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not begun or not ended:
        raise RuntimeError(f"{DOCUMENT} lacks {begin} or {end}")
    return f"{before}{begin}\n{passage}\n{end}{after}"


def _passage(run: Run) -> str:
    rounds = len(run.contenders[0].figures)
    about = (
        f"Taken {run.taken} on {run.machine}; {', '.join(run.versions)}. Medians of {rounds} interleaved rounds, the "
        f"server under test on core {SERVER_CORE}, load and upstream on core {RIG_CORE}. Absolute figures belong to "
        "this machine; the ratios travel."
    )
    return "\n\n".join([about, markdown(run), *run.notes])


def _ratio(value: float | None, base: float | None) -> str:
    if value is None or base is None or base <= 0 or value <= 0:
        return NONE
    return f"{value / base:.2f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
