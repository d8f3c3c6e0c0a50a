"""Compares the contenders: `python -m benchmarks.run [--rounds N] [--quick] [--only NAME …] [--write]`.

Every round gives each contender a fresh server and a fresh upstream and takes all measures of measure.py; rounds are
interleaved, so that a machine that slows down slows everybody down. The table shows medians over the rounds.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final

from benchmarks.contenders import CONTENDERS, Contender, missing, started
from benchmarks.measure import FULL, QUICK, Bench, Figures, Sizes
from benchmarks.processes import build, pin_rig, running_upstream
from benchmarks.report import Rounds, describe, markdown, write_document, write_json

ALONE: Final = 0.5
"""The load average of a machine on which nobody else is at work."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    sizes = QUICK if options.quick else FULL
    build()
    pin_rig()
    chosen = [one for one in CONTENDERS if one.name in options.only or not one.command]
    notes = [*_company(), *(note for one in chosen if (note := missing(one)))]
    contenders = [one for one in chosen if not missing(one)]
    rounds = [_round(contenders, sizes) for _ in range(1 if options.quick else options.rounds)]
    found = [Rounds(one.name, figures) for one, figures in zip(contenders, zip(*rounds, strict=True), strict=True)]
    run = describe(sizes, notes, found)
    print("\n".join([markdown(run), *notes, f"all figures: {write_json(run, 'run')}"]))
    if options.write:
        write_document(run)
    return 0


def _round(contenders: Sequence[Contender], sizes: Sizes) -> list[Figures]:
    return [_figures(contender, sizes) for contender in contenders]


def _figures(contender: Contender, sizes: Sizes) -> Figures:
    print(f"{contender.name} …", file=sys.stderr, flush=True)
    with running_upstream() as upstream_port, started(contender, upstream_port) as server:
        return Bench(contender, server, upstream_port).figures(sizes)


def _company() -> list[str]:
    """A note when others are using the machine: ratios of processor time bear that, latencies do not."""
    busy, _, _ = os.getloadavg()
    return (
        [f"Other programs were running (load average {busy:.1f}): do not trust the latencies."] if busy > ALONE else []
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    names = [contender.name for contender in CONTENDERS]
    parser.add_argument("--rounds", type=int, default=3, help="rounds to take medians of (3)")
    parser.add_argument("--quick", action="store_true", help="one short round, under a minute: a look, not a proof")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", default=names, help=", ".join(names))
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
