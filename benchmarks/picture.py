"""docs/benchmarks.svg: what is added to the latency of a token, and how many streams one core carries.

Written by hand from the figures. It has a ground of its own, which changes with the colours of the text on it, so that
it is readable on light pages and on dark ones, also where only one of the two is told to the picture.
"""

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

from benchmarks.measure import FEW_STREAMS
from benchmarks.report import DIRECT, DOCUMENT, Run

PATH: Final = DOCUMENT.with_suffix(".svg")
WIDTH: Final = 860
HEIGHT: Final = 340
LEFT: Final = (64, 70, 400, 220)
RIGHT: Final = (560, 70, 230, 220)
"""x, y, width and height of what is drawn in."""

SHARES: Final = ((0.0, "0"), (0.5, "50"), (0.9, "90"), (0.99, "99"), (0.999, "99.9"), (0.9999, "99.99"))
LAST_SHARE: Final = 0.9999
LEAST_MS: Final = 0.01
LABEL_GAP: Final = 13

COLOURS: Final = (("#1d4ed8", "#7db0ff"), ("#b45309", "#f5b35c"), ("#57606a", "#a9b4c0"), ("#15803d", "#63d18b"))
MORE_COLOURS: Final = (("#7e22ce", "#cf9bff"), ("#be123c", "#ff8fa3"))

STYLE: Final = """
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 13px } .small { font-size: 11px; fill: #57606a }
.ground { fill: #ffffff; stroke: #d0d7de } .grid { stroke: #d8dee4; stroke-width: 1 }
.curve { fill: none; stroke-width: 2.2; stroke-linejoin: round }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .small { fill: #9da7b3 } .ground { fill: #0d1117; stroke: #30363d } .grid { stroke: #262c34 }
}
"""


def draw(run: Run) -> str:
    names = run.main.servers()
    colours = (*COLOURS, *MORE_COLOURS)
    light = "".join(_paint(place, colours[place % len(colours)][0]) for place in range(len(names)))
    dark = "".join(_paint(place, colours[place % len(colours)][1]) for place in range(len(names)))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="t">',
        '<title id="t">Latency added to a token, and streams per core</title>',
        f"<style>{STYLE}{light}@media (prefers-color-scheme: dark) {{{dark}}}</style>",
        f'<rect class="ground" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="8"/>',
        *_distribution(run, names),
        *_bars(run, names),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def write_picture(run: Run) -> None:
    PATH.write_text(draw(run), encoding="utf-8")


def _paint(place: int, colour: str) -> str:
    return f".stroke{place} {{ stroke: {colour} }} .fill{place} {{ fill: {colour} }}\n"


def added_ms(run: Run, name: str) -> list[tuple[float, float]]:
    """Each percentile less the rig's own."""
    base = dict(run.main.rounds(DIRECT).latency_us())
    return [
        (share, (value - base[share]) / 1000)
        for share, value in run.main.rounds(name).latency_us()
        if share <= LAST_SHARE
    ]


def _distribution(run: Run, names: Sequence[str]) -> Iterator[str]:
    curves = {name: added_ms(run, name) for name in names}
    most_ms = 10 ** math.ceil(math.log10(max(LEAST_MS * 100, *(ms for points in curves.values() for _, ms in points))))
    x, y, width, height = LEFT
    yield _text(x, 28, "Added to the latency of a token (ms)", "title")
    yield _text(x, 46, f"{FEW_STREAMS} streams of 50 tokens/s; by percentile of tokens", "small")
    for share, label in SHARES:
        yield _line(_x(share), y, _x(share), y + height)
        yield _text(_x(share), y + height + 17, label, "small", "middle")
    decade = LEAST_MS
    while decade <= most_ms * 1.001:
        yield _line(x, _y(decade, most_ms), x + width, _y(decade, most_ms))
        yield _text(x - 6, _y(decade, most_ms) + 4, f"{decade:g}", "small", "end")
        decade *= 10
    ends = _apart({name: _y(points[-1][1], most_ms) for name, points in curves.items()})
    for place, (name, points) in enumerate(curves.items()):
        path = " ".join(f"{_x(share):.1f},{_y(ms, most_ms):.1f}" for share, ms in points)
        yield f'<polyline class="curve stroke{place}" points="{path}"/>'
        yield _text(x + width + 6, ends[name] + 4, _short(name), f"fill{place}")


def _x(share: float) -> float:
    """Every nine takes the same room."""
    nines = -math.log10(1 - min(share, LAST_SHARE))
    return LEFT[0] + LEFT[2] * nines / -math.log10(1 - LAST_SHARE)


def _y(ms: float, most_ms: float) -> float:
    decades = math.log10(most_ms / LEAST_MS)
    return LEFT[1] + LEFT[3] * (1 - math.log10(max(ms, LEAST_MS) / LEAST_MS) / decades)


def _apart(places: dict[str, float]) -> dict[str, float]:
    """The labels' heights, moved up where they would cover each other."""
    moved: dict[str, float] = {}
    most = float(LEFT[1] + LEFT[3])
    for name, place in sorted(places.items(), key=lambda item: -item[1]):
        moved[name] = min(place, most)
        most = moved[name] - LABEL_GAP
    return moved


def _short(name: str) -> str:
    """Without the version, for which there is no room; the table has it."""
    return name.partition(" ")[0]


def _bars(run: Run, names: Sequence[str]) -> Iterator[str]:
    found = {name: run.capacity(name) or 0.0 for name in names if name in run.capacities}
    x, y, width, height = RIGHT
    yield _text(x, 28, "Streams of 50 tokens/s on one core", "title")
    yield _text(x, 46, "with p99 of what is added under 50 ms", "small")
    most, step = max([1.0, *found.values()]), height / max(1, len(found))
    for row, (name, value) in enumerate(found.items()):
        top = y + row * step
        yield _text(x, top + 12, _short(name))
        bar = max(1.0, (width - 44) * value / most)
        yield f'<rect class="fill{names.index(name)}" x="{x}" y="{top + 18:.1f}" width="{bar:.1f}" height="14" rx="3"/>'
        yield _text(x + bar + 6, top + 29, f"{value:.0f}")


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="grid" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
