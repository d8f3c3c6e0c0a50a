"""Streams of 50 tokens a second that stand while something is measured; see paced.c."""

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.contenders import Contender
from benchmarks.processes import BIN, Server, end_streams, settle

INTERVAL_US: Final = 20_000
MODEL: Final = f"sim-100000000-{INTERVAL_US}-8"
"""Upstream is told when it is over: some servers do not notice that clients have gone, and ours waits for them."""

SLOW_RAMP_US: Final = 10_000
FAST_RAMP_US: Final = 4_000
FASTEST_RAMP_US: Final = 1_000
CHEAP_OPENINGS: Final = 2_000
RAMP_SECONDS: Final = 2
"""Streams are opened so far apart that this costs a fraction of the core, and many of them faster than few; fastest to
who is given so many openings elsewhere, because one costs it little."""

SETTLE_MS: Final = 1000
HOLD_MS: Final = 600_000
PACED_SECONDS: Final = 180


class Paced(msgspec.Struct, frozen=True):
    """What a window of time showed. Percentiles as (share, microseconds), from the least to the most."""

    standing: int
    lost: int
    bad_status: int
    tokens: int
    mbytes: float
    seconds: float
    latency_us: tuple[tuple[float, int], ...]
    jitter_us: tuple[tuple[float, int], ...]
    cpu_us: float = 0.0

    @property
    def cpu_per_token_us(self) -> float:
        return self.cpu_us / self.tokens

    @property
    def core_share(self) -> float:
        """Of one core, in the window."""
        return self.cpu_us / 1e6 / self.seconds

    def came_share(self, streams: int) -> float:
        """Of the tokens that so many streams were due in the window."""
        return self.tokens * INTERVAL_US / 1e6 / (streams * self.seconds)


class Crowd(msgspec.Struct, frozen=True):
    """So many streams of one contender. Without a server they go to upstream itself."""

    contender: Contender
    server: Server | None
    upstream_port: int
    streams: int

    @property
    def port(self) -> int:
        return self.upstream_port if self.server is None else self.server.port


def at(points: tuple[tuple[float, int], ...], share: float) -> int:
    return next(value for point, value in points if point == share)


def ramp_us(streams: int, openings: int) -> int:
    """The remainder spreads them evenly over the interval: in step, every token would wait for all others."""
    fastest = FASTEST_RAMP_US if openings >= CHEAP_OPENINGS else FAST_RAMP_US
    apart = max(fastest, min(SLOW_RAMP_US, RAMP_SECONDS * 1_000_000 // streams))
    return apart + INTERVAL_US // streams


def measure(crowd: Crowd, measure_ms: int, programs: Path = BIN) -> Paced:
    """Opens them, measures, and ends them. `cpu_us` is what the server spent in the window."""
    spent: Callable[[], float] = (lambda: 0.0) if crowd.server is None else crowd.server.cpu_seconds
    with _standing(crowd, measure_ms, programs) as process:
        before = spent()
        output, _ = process.communicate(timeout=PACED_SECONDS)
        cpu_us = (spent() - before) * 1e6
    settle(crowd.upstream_port)
    return msgspec.structs.replace(msgspec.json.decode(output, type=Paced), cpu_us=cpu_us)


@contextmanager
def standing(crowd: Crowd, programs: Path = BIN) -> Iterator[None]:
    """All of them stand, until the block ends."""
    with _standing(crowd, HOLD_MS, programs):
        yield


@contextmanager
def _standing(crowd: Crowd, measure_ms: int, programs: Path) -> Iterator[subprocess.Popen[bytes]]:
    with tempfile.TemporaryDirectory() as folder:
        request = Path(folder, "request")
        request.write_bytes(crowd.contender.whole_request(crowd.port, MODEL))
        ramp = ramp_us(crowd.streams, crowd.contender.openings)
        numbers = [str(n) for n in (crowd.streams, ramp, SETTLE_MS, measure_ms)]
        command = [str(programs / "paced"), str(crowd.port), str(request), *numbers]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                if b"measuring" not in line:
                    raise RuntimeError(f"the streams do not stand: {line!r}")
                yield process
            finally:
                process.kill()
                end_streams(crowd.upstream_port)
