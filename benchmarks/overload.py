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
from collections.abc import Sequence
from typing import Final

import msgspec

from benchmarks.contenders import Contender, started
from benchmarks.crowds import CROWDS, INTERVAL_US, NOBODY, Crowd, Figures, Size, table
from benchmarks.load import Job, Loaded, load
from benchmarks.processes import Server, build, free_port, pin_rig, running_upstream, settle
from benchmarks.report import DOCUMENT, replace_passage, write

MANY: Final = 1_000_000
WARM_UP_STREAMS: Final = 200
AT_ONCE_SECONDS: Final = 0.01
"""Who had its place later has waited in the queue: a bucket of the relay's histogram."""

BEGIN: Final = "<!-- benchmarks.overload: begin -->"
END: Final = "<!-- benchmarks.overload: end -->"


FULL: Final = Size(capacity=150, queued=100, tokens=200, for_ms=16_000)
QUICK: Final = Size(capacity=20, queued=10, tokens=25, for_ms=1500)


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


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds to take medians of (5)")
    parser.add_argument("--quick", action="store_true", help="one short round with few clients: only whether it works")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
