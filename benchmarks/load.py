"""Runs the load program against one port and reads its line of JSON."""

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.processes import BIN

LOAD_SECONDS: Final = 120
"""The longest one load may take; a server that is slower is broken, not slow."""


class Percentiles(msgspec.Struct, frozen=True):
    """Microseconds."""

    p50: int
    p90: int
    p99: int
    p999: int
    max: int


class Loaded(msgspec.Struct, frozen=True):
    """What one load saw; see load.c."""

    ok: int
    failed: int
    aborted: int
    bad_status: int
    timeouts: int
    tokens: int
    seconds: float
    tokens_per_s: float
    mbytes: float
    latency_us: Percentiles
    ttft_us: Percentiles
    refused_429: int
    refused_503: int
    given_up: int
    turned_away: int
    overtaken_us: int
    refusal_us: Percentiles
    last_abort_ns: int
    first_failure: str


class Job(msgspec.Struct, frozen=True):
    """What one load does: so many streams, so many at once, each expected to bring so many tokens."""

    port: int
    path: str
    request: str
    streams: int
    at_once: int
    tokens: int
    headers: tuple[str, ...] = ()


def load(job: Job, options: Mapping[str, int | str] | None = None, programs: Path = BIN) -> Loaded:
    """Runs a load to its end. `options` are load.c's, without their `LOAD_`."""
    with loading(job, options or {}, programs) as process:
        output, _ = process.communicate(timeout=LOAD_SECONDS)
    return msgspec.json.decode(output, type=Loaded)


@contextmanager
def holding(job: Job, programs: Path = BIN) -> Iterator[None]:
    """All streams of the job stand, each with a token or more, until the block ends."""
    with loading(job, {"HOLD": 1}, programs) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if b"standing" not in line:
            raise RuntimeError(f"the streams do not stand: {line!r}")
        yield
        process.communicate(timeout=LOAD_SECONDS)


@contextmanager
def loading(job: Job, options: Mapping[str, int | str], programs: Path = BIN) -> Iterator[subprocess.Popen[bytes]]:
    """A load that runs until the block ends, at the latest."""
    with tempfile.TemporaryDirectory() as folder:
        body = Path(folder, "request.json")
        body.write_text(job.request)
        counts = [str(n) for n in (job.streams, job.at_once, job.tokens)]
        command = [str(programs / "load"), str(job.port), job.path, str(body), *counts, *job.headers]
        environment = dict(os.environ) | {f"LOAD_{name}": str(value) for name, value in options.items()}
        with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            try:
                yield process
            finally:
                process.kill()
