"""What the log on Redis costs: `python -m benchmarks.shared_log [--rounds N] [--quick] [--write]`.

200 resumable streams at 20 tokens a second over two relay processes, first with the log in memory, then with Redis: the
processor time of a token in the relays, and in redis-server. The relays share one core; upstream, load and redis-server
the other. How long a cancel takes that comes in on the other process is measured as well.
"""

import argparse
import http.client
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.contenders import RELAY_COMMAND
from benchmarks.load import Job, Loaded, load
from benchmarks.processes import Server, build, free_port, running, running_upstream, upstream_stats
from benchmarks.redis_server import redis_server
from benchmarks.report import DOCUMENT, replace_passage

INTERVAL_US: Final = 50_000
BEGIN: Final = "<!-- benchmarks.shared_log: begin -->"
END: Final = "<!-- benchmarks.shared_log: end -->"
CANCELS: Final = 20


class Size(msgspec.Struct, frozen=True):
    """`streams` over both processes, each of so many tokens."""

    streams: int
    tokens: int


FULL: Final = Size(200, 120)
QUICK: Final = Size(40, 20)


class Figures(msgspec.Struct, frozen=True):
    """One log in one round. Microseconds of processor time a token; latency of a token in milliseconds."""

    relay_us: float
    redis_us: float
    latency_p50_ms: float
    latency_p99_ms: float
    cancel_ms: float | None


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    build()
    size = QUICK if options.quick else FULL
    rounds = [one_round(size) for _ in range(options.rounds)]
    passage = table(size, rounds)
    print(passage)
    if options.write:
        text = DOCUMENT.read_text(encoding="utf-8")
        DOCUMENT.write_text(replace_passage(text, BEGIN, END, passage), encoding="utf-8")


def one_round(size: Size) -> dict[str, Figures]:
    with tempfile.TemporaryDirectory() as folder, running_upstream() as upstream, redis_server(Path(folder)) as redis:
        shared = {"RELAY_REDIS_URL": f"unix://{folder}/redis.sock", "RELAY_REDIS_TTL_SECONDS": "5"}
        return {"memory": _measured(size, upstream, None, {}), "redis": _measured(size, upstream, redis, shared)}


def _measured(size: Size, upstream: int, redis: Server | None, shared: Mapping[str, str]) -> Figures:
    with ExitStack() as stack:
        relays = [stack.enter_context(_relay(upstream, shared)) for _ in range(2)]
        watched = [*relays, *([redis] if redis else [])]
        _loaded(relays, Size(40, 20))
        before = [server.cpu_seconds() for server in watched]
        _loaded(relays, Size(size.streams, 1))
        between = [server.cpu_seconds() for server in watched]
        loads = _loaded(relays, size)
        after = [server.cpu_seconds() for server in watched]
        # What the openings cost is taken off: they are the same in both loads.
        spent = [(c - b) - (b - a) for a, b, c in zip(before, between, after, strict=True)]
        tokens = size.streams * (size.tokens - 1)
        return Figures(
            relay_us=sum(spent[:2]) / tokens * 1e6,
            redis_us=sum(spent[2:]) / tokens * 1e6,
            latency_p50_ms=max(loaded.latency_us.p50 for loaded in loads) / 1000,
            latency_p99_ms=max(loaded.latency_us.p99 for loaded in loads) / 1000,
            cancel_ms=_cancel_ms(relays, upstream) if redis else None,
        )


@contextmanager
def _relay(upstream: int, shared: Mapping[str, str]) -> Iterator[Server]:
    port = free_port()
    own = {
        "OPENAI_BASE_URL": f"http://127.0.0.1:{upstream}/v1",
        "OPENAI_API_KEY": "none",
        "RELAY_PORT": str(port),
        "RELAY_ADMIN_PORT": "-1",
        "RELAY_LOG_LEVEL": "warning",
    }
    with running(RELAY_COMMAND, {**own, **shared}, port) as server:
        yield server


def _loaded(relays: Sequence[Server], size: Size) -> list[Loaded]:
    streams = size.streams // len(relays)
    request = json.dumps({"model": f"sim-{size.tokens}-{INTERVAL_US}-8", "message": "x", "on_disconnect": "wait"})
    ramp = {"RAMP_US": INTERVAL_US // streams}

    def run(relay: Server) -> Loaded:
        return load(Job(relay.port, "/chat/stream", request, streams, streams, size.tokens), ramp)

    with ThreadPoolExecutor(len(relays)) as threads:
        loads = list(threads.map(run, relays))
    if failed := [loaded for loaded in loads if loaded.ok != streams]:
        raise RuntimeError(f"streams failed: {failed}")
    return loads


def _cancel_ms(relays: Sequence[Server], upstream: int) -> float:
    """The slowest of some: from the DELETE on one process until upstream saw the connection of the other close."""
    return max(_one_cancel_ms(relays, upstream) for _ in range(CANCELS))


def _one_cancel_ms(relays: Sequence[Server], upstream: int) -> float:
    body = json.dumps({"model": "sim-1000-50000-8", "message": "x", "on_disconnect": "wait"})
    reading = http.client.HTTPConnection("127.0.0.1", relays[0].port, timeout=10)
    reading.request("POST", "/chat/stream", body, {"content-type": "application/json"})
    answer = reading.getresponse()
    answer.readline()
    aborted = upstream_stats(upstream).aborted
    other = http.client.HTTPConnection("127.0.0.1", relays[1].port, timeout=10)
    began_ns = time.monotonic_ns()
    other.request("DELETE", f"/chat/stream/{answer.headers['x-stream-id']}")
    other.getresponse().read()
    while (stats := upstream_stats(upstream)).aborted == aborted:
        time.sleep(0.002)
    reading.close()
    other.close()
    return (stats.last_abort_ns - began_ns) / 1e6


def table(size: Size, rounds: Sequence[Mapping[str, Figures]]) -> str:
    def median(log: str, name: str) -> float:
        values: list[float] = [getattr(figures[log], name) for figures in rounds]
        return statistics.median(values)

    memory, redis = median("memory", "relay_us"), median("redis", "relay_us")
    rows = [
        ("processor time of the relays per token (µs)", memory, redis),
        ("processor time of redis-server per token (µs)", 0.0, median("redis", "redis_us")),
        ("latency per token, p50 (ms)", median("memory", "latency_p50_ms"), median("redis", "latency_p50_ms")),
        ("latency per token, p99 (ms)", median("memory", "latency_p99_ms"), median("redis", "latency_p99_ms")),
    ]
    lines = [
        f"{size.streams} resumable streams at {1_000_000 // INTERVAL_US} tokens a second over two processes, "
        f"medians of {len(rounds)} rounds:",
        "",
        "| | in memory | on Redis |",
        "|---|---:|---:|",
        *(f"| {name} | {a:.1f} | {b:.1f} |" for name, a, b in rows),
        "",
        f"Redis adds {(redis - memory) / memory:.2f} of the relays' processor time; redis-server itself takes "
        f"{median('redis', 'redis_us') / memory:.2f} of it. The slowest of {CANCELS} cancels that came in on the other "
        f"process reached upstream after {max(figures['redis'].cancel_ms or 0 for figures in rounds):.1f} ms.",
    ]
    return "\n".join(lines)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shared_log", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds, whose medians are shown")
    parser.add_argument("--quick", action="store_true", help="fewer streams, shorter: only whether it works")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
