"""Compares the contenders: `python -m benchmarks.run [--rounds N] [--quick] [--peers] [--only PART …] [--write]`.

Every round gives each contender a fresh server and a fresh upstream and takes all measures of measure.py; rounds are
interleaved, so that a machine that slows down slows everybody down. Tables and picture show medians over the rounds.
The relay's variants, the search for how many streams a core carries, and who leaves and comes back, have fewer.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import msgspec

from benchmarks.capacity import Search, capacity
from benchmarks.contenders import CONTENDERS, DIRECT, RELAY, TUTORIAL, VARIANTS, Contender, missing, started
from benchmarks.departures import at_half, flooded
from benchmarks.goals import goals
from benchmarks.measure import FULL, QUICK, SMALL, Bench, Figures, Sizes
from benchmarks.paced import INTERVAL_US
from benchmarks.peers import install_peers
from benchmarks.picture import write_picture
from benchmarks.processes import build, pin_rig, running_upstream
from benchmarks.report import (
    BEGIN,
    END,
    Goings,
    Rounds,
    Run,
    Table,
    machine,
    today,
    versions,
    write_json,
    write_passage,
)
from benchmarks.returning import returned
from benchmarks.tables import markdown
from benchmarks.vanishing import vanished

ALONE: Final = 0.5
"""The load average of a machine on which nobody else is at work."""

PARTS: Final = ("main", "variants", "capacity", "goings")
FEWER_ROUNDS: Final = 2

PROMISED_SHARE: Final = 0.75
"""Of a core, before tokens come late."""

RIG_STREAMS: Final = 2400
BEGAN: Final = time.monotonic()


class Plan(msgspec.Struct, frozen=True):
    """How much of everything."""

    sizes: Sizes
    small: Sizes
    rounds: int
    fewer: int
    search_ms: int
    search_steps: int
    search_factor: float
    departures: int
    herd: int
    vanish: bool


def full(rounds: int) -> Plan:
    fewer = min(rounds, FEWER_ROUNDS)
    return Plan(
        FULL,
        SMALL,
        rounds,
        fewer,
        search_ms=2_000,
        search_steps=3,
        search_factor=1.3,
        departures=100,
        herd=1_000,
        vanish=True,
    )


QUICKLY: Final = Plan(
    QUICK,
    QUICK,
    rounds=1,
    fewer=1,
    search_ms=500,
    search_steps=1,
    search_factor=2,
    departures=20,
    herd=100,
    vanish=False,
)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    plan = QUICKLY if options.quick else full(options.rounds)
    company = _company()  # before there is work of ours
    build()
    peers, notes = install_peers() if options.peers else ([], [])
    pin_rig()
    run = _run(plan, options.only, [*CONTENDERS, *peers], notes + company)
    print("\n".join([markdown(run), "", *map(str, goals(run)), "", f"all figures: {write_json(run, 'run')}"]))
    if options.write:
        write_passage(BEGIN, END, markdown(run))
        write_picture(run)
    return 0


def _run(plan: Plan, parts: Sequence[str], contenders: Sequence[Contender], notes: list[str]) -> Run:
    there = _there(contenders, notes)
    table = _rounds(there, plan.sizes, plan.rounds, notes)
    measured = [one for one in there if any(rounds.name == one.name for rounds in table.contenders)]
    variants = capacities = goings = None
    if "variants" in parts:
        variants = _rounds(_there([DIRECT, *VARIANTS], notes), plan.small, plan.fewer, notes)
    if "capacity" in parts:
        capacities = _capacities(measured, table, plan, notes)
    if "goings" in parts:
        goings = _goings(plan, capacities or {})
    return Run(machine(), versions(), today(), tuple(notes), table, variants, capacities or {}, goings)


def _there(contenders: Sequence[Contender], notes: list[str]) -> list[Contender]:
    notes += [note for one in contenders if (note := missing(one))]
    return [one for one in contenders if not missing(one)]


def _rounds(contenders: Sequence[Contender], sizes: Sizes, rounds: int, notes: list[str]) -> Table:
    """A peer that fails is left out from then on; anybody else ends the run."""
    found: dict[str, list[Figures]] = {one.name: [] for one in contenders}
    for number in range(rounds):
        for one in contenders:
            if one.name not in found:
                continue
            _tell(f"round {number + 1} of {rounds}: {one.name}")
            with _excused(one, notes) as excuse:
                found[one.name].append(_figures(one, sizes))
            if excuse:
                del found[one.name]
    return Table(tuple(Rounds(name, tuple(figures)) for name, figures in found.items()))


@contextmanager
def _excused(contender: Contender, notes: list[str]) -> Iterator[list[str]]:
    """A peer may fail: that is noted, and given to who asks. Nobody else may."""
    excuse: list[str] = []
    try:
        yield excuse
    except (RuntimeError, subprocess.SubprocessError, msgspec.DecodeError) as error:
        if not contender.peer:
            raise
        excuse.append(f"{contender.name} is left out: {error}.")
        notes += excuse


def _figures(contender: Contender, sizes: Sizes) -> Figures:
    with running_upstream() as upstream_port:
        with started(contender, upstream_port) as server:
            opening = Bench(contender, server, upstream_port).opening(sizes)
        with started(contender, upstream_port) as server:
            return Bench(contender, server, upstream_port).figures(sizes, opening)


def _capacities(
    contenders: Sequence[Contender], table: Table, plan: Plan, notes: list[str]
) -> dict[str, tuple[int, ...]]:
    """Searches begin near what the cost of a token promises; those that nothing is compared by are made once."""
    found: dict[str, tuple[int, ...]] = {one.name: () for one in contenders}
    for number in range(plan.fewer):
        for one in contenders:
            if number and one.name not in (RELAY.name, TUTORIAL.name):
                continue
            known = found[one.name]
            first = known[-1] if known else _promised(table, one.name)
            search = Search(first, plan.search_ms, plan.search_steps, plan.search_factor)
            _tell(f"streams per core, search {number + 1} of {plan.fewer}: {one.name}")
            with _excused(one, notes):
                found[one.name] = (*known, capacity(one, search))
    return {name: numbers for name, numbers in found.items() if numbers}


def _promised(table: Table, name: str) -> int:
    cpu_us = table.rounds(name).median_of("many_cpu_us")
    return max(1, int(PROMISED_SHARE * INTERVAL_US / cpu_us)) if cpu_us else RIG_STREAMS


def _goings(plan: Plan, capacities: dict[str, tuple[int, ...]]) -> Goings:
    known = sorted(capacities.get("relay", ()))
    half = max(10, known[len(known) // 2] // 2) if known else 50
    rounds = range(plan.fewer)
    _tell("departures")
    noticed = [(at_half(half, plan.departures), flooded(plan.departures // 4 or 1)) for _ in rounds]
    _tell("herds of readers")
    back = [(returned(plan.herd, 0), returned(plan.herd, half)) for _ in rounds]
    _tell("clients that vanish")
    return Goings(
        half=half,
        herd=plan.herd,
        at_half=tuple(lags for lags, _ in noticed),
        flooded=tuple(lags for _, lags in noticed),
        idle_return=tuple(idle for idle, _ in back),
        half_return=tuple(busy for _, busy in back),
        vanished=vanished() if plan.vanish else "Clients that vanish were not measured in this short run.",
    )


def _tell(what: str) -> None:
    minutes, seconds = divmod(int(time.monotonic() - BEGAN), 60)
    print(f"{minutes:3}:{seconds:02} {what} …", file=sys.stderr, flush=True)


def _company() -> list[str]:
    """A note when others are using the machine: ratios of processor time bear that, latencies do not."""
    busy, _, _ = os.getloadavg()
    return (
        [f"Other programs were running (load average {busy:.1f}): do not trust the latencies."] if busy > ALONE else []
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="rounds to take medians of (7)")
    parser.add_argument("--quick", action="store_true", help="one short round of everything: a look, not a proof")
    parser.add_argument("--peers", action="store_true", help="other gateways too, in environments of their own")
    names = f"beside the main table: {', '.join(PARTS[1:])}"
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", default=PARTS, help=names)
    parser.add_argument("--write", action="store_true", help="put tables and picture into docs/")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
