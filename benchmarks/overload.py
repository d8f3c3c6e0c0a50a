"""Three times as many clients as may be served: `python -m benchmarks.overload [--rounds N] [--quick] [--write]`.

The capacity is RELAY_MAX_STREAMS: so many streams of 50 tokens a second as one core carries comfortably, turnover
included. First 0.8 of it ask, each for one stream after the other; then three times of it and, when they are refused,
come back after the `Retry-After` that they are told. They come as clients come, one after the other, over the length
of a stream; then again as a herd, all in the same moment; and last as a herd that comes back after a tenth of a second
whatever it is told, which is worse than any client in use.

What counts: that no stream fails that was let in, how late its tokens are, how soon the others know that they are
refused, and that nobody in the queue is overtaken.
"""

import argparse
import http.client
import re
import sys
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Final

import msgspec

from benchmarks.contenders import CONTENDERS, RELAY, Contender, started
from benchmarks.load import Job, Loaded, load
from benchmarks.processes import Server, build, free_port, pin_rig, running_upstream, settle
from benchmarks.report import DOCUMENT, replace_passage, write

INTERVAL_US: Final = 20_000
MANY: Final = 1_000_000
WARM_UP_STREAMS: Final = 200
AT_ONCE_SECONDS: Final = 0.01
"""Who had its place later has waited in the queue: a bucket of the relay's histogram."""

BEGIN: Final = "<!-- benchmarks.overload: begin -->"
END: Final = "<!-- benchmarks.overload: end -->"


class Size(msgspec.Struct, frozen=True):
    """`tokens` of each stream; clients ask for streams for `for_ms`."""

    capacity: int
    queued: int
    tokens: int
    for_ms: int


FULL: Final = Size(capacity=150, queued=100, tokens=200, for_ms=16_000)
QUICK: Final = Size(capacity=20, queued=10, tokens=25, for_ms=1500)


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


def main(arguments: Sequence[str] | None = None) -> int:
    """1 when a stream failed that was let in, else 0: how slow is too slow depends on the machine."""
    options = _options(arguments)
    size = QUICK if options.quick else FULL
    build()
    pin_rig()
    rounds = [one_round(size) for _ in range(1 if options.quick else options.rounds)]
    passage = table(size, rounds)
    print(passage)
    write("overload.json", msgspec.json.format(msgspec.json.encode(rounds)))
    if options.write:
        text = DOCUMENT.read_text(encoding="utf-8")
        DOCUMENT.write_text(replace_passage(text, BEGIN, END, passage), encoding="utf-8")
    return 1 if any(figures.failed for one in rounds for figures in one.values()) else 0


def one_round(size: Size) -> dict[str, Figures]:
    return {crowd.name: _measured(crowd, size) for crowd in (NOBODY, *CROWDS)}


def _measured(crowd: Crowd, size: Size) -> Figures:
    admin_port = free_port()
    settings = {
        "RELAY_MAX_STREAMS": str(size.capacity),
        "RELAY_MAX_QUEUED": str(size.queued),
        "RELAY_LOG_LEVEL": "warning",
        "RELAY_ADMIN_PORT": str(admin_port),
    }
    with running_upstream() as upstream_port, started(crowd.who, upstream_port, **settings) as server:
        port = upstream_port if server is None else server.port
        _ask(crowd.who, port, WARM_UP_STREAMS, at_once=10, model="sim-5-0-8", tokens=5)
        settle(upstream_port)
        before, waited = _cpu_seconds(server), _waited(server, admin_port)
        clients = int(crowd.share * size.capacity)
        loaded = _ask(
            *(crowd.who, port, MANY),
            at_once=clients,
            model=f"sim-{size.tokens}-{INTERVAL_US}-8",
            tokens=size.tokens,
            FOR_MS=size.for_ms,
            REFUSED=crowd.back,
            RAMP_US=0 if crowd.herd else size.tokens * INTERVAL_US // clients,
        )
        core = (_cpu_seconds(server) - before) / loaded.seconds
        settle(upstream_port)
        return _figures(loaded, _waited(server, admin_port) - waited, core)


def _ask(
    who: Contender, port: int, streams: int, *, at_once: int, model: str, tokens: int, **options: str | int
) -> Loaded:
    return load(Job(port, who.path, who.request(model), streams, at_once, tokens), options)


def _cpu_seconds(server: Server | None) -> float:
    return 0.0 if server is None else server.cpu_seconds()


def _waited(server: Server | None, admin_port: int) -> int:
    """Streams that waited in the queue, as the relay itself has counted them."""
    if server is None:
        return 0
    connection = http.client.HTTPConnection("127.0.0.1", admin_port, timeout=5)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    at_once = f'relay_queue_seconds_bucket{{le="{AT_ONCE_SECONDS}"}}'
    return _count(text, "relay_queue_seconds_count") - _count(text, at_once)


def _count(metrics: str, series: str) -> int:
    found = re.search(rf"^{re.escape(series)} (\S+)$", metrics, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"the relay's metrics lack {series}")
    return int(float(found[1]))


def _figures(loaded: Loaded, queued: int, core: float) -> Figures:
    latency, refusal, first = loaded.latency_us, loaded.refusal_us, loaded.ttft_us
    return Figures(
        ok=loaded.ok,
        failed=loaded.failed + loaded.given_up,
        latency_p50=latency.p50 / 1000,
        latency_p99=latency.p99 / 1000,
        refused=loaded.refused_429 + loaded.refused_503,
        refusal_p50=refusal.p50 / 1000,
        refusal_p99=refusal.p99 / 1000,
        refusal_max=refusal.max / 1000,
        queued=queued,
        wait_p50=first.p50 / 1000,
        wait_max=first.max / 1000,
        overtaken=loaded.overtaken_us / 1000,
        core=core,
    )


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


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds to take medians of (5)")
    parser.add_argument("--quick", action="store_true", help="one short round with few clients: only whether it works")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
