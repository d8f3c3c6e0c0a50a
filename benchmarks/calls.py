"""How many calls a token and a stream take, of Python's functions and C's: `python -m benchmarks.calls`.

The count is nearly the same on any machine, however busy: a guard against costs that creep in. A coroutine that goes on
counts as a call. What the loop, the sockets and parsers in C do inside themselves is not seen.
"""

import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Final

import msgspec

from app import server
from app.settings import load as load_settings
from benchmarks.contenders import RELAY, started
from benchmarks.load import Job, load
from benchmarks.processes import BIN, Server, build, pin_rig, running_upstream, settle

STREAMS: Final = 20
TOKENS: Final = 100
INTERVAL_US: Final = 10_000
"""Long enough that each token is a read of its own, also where every call is counted."""

TELL_SECONDS: Final = 10.0


class Calls(msgspec.Struct, frozen=True):
    per_token: float
    to_open: float
    """Of a stream of one token, from its request to its end."""


def calls(programs: Path = BIN) -> Calls:
    """RuntimeError when a stream failed."""
    with tempfile.TemporaryDirectory() as folder, running_upstream(programs) as upstream_port:
        told = Path(folder, "calls")
        relay = msgspec.structs.replace(RELAY, command=(sys.executable, "-m", "benchmarks.calls", str(told)))
        with started(relay, upstream_port) as counted:
            assert counted is not None
            counts = []
            for tokens, at_once in ((1, STREAMS), (1, 1), (TOKENS, STREAMS)):
                _stream(counted, upstream_port, tokens, at_once, programs)
                counts.append(_told(counted, told))
    opened, streamed = counts[1] - counts[0], counts[2] - counts[1]
    return Calls((streamed - opened) / (STREAMS * (TOKENS - 1)), opened / STREAMS)


def _stream(counted: Server, upstream_port: int, tokens: int, at_once: int, programs: Path) -> None:
    request = RELAY.request(f"sim-{tokens}-{INTERVAL_US}-8")
    job = Job(counted.port, RELAY.path, request, STREAMS, at_once, tokens, RELAY.headers())
    if (loaded := load(job, programs=programs)).ok != STREAMS:
        raise RuntimeError(f"{loaded.failed} of {STREAMS} streams failed: {loaded.first_failure}")
    settle(upstream_port)


def _told(counted: Server, told: Path) -> int:
    told.unlink(missing_ok=True)
    counted.signal(signal.SIGUSR1)
    deadline = time.monotonic() + TELL_SECONDS
    while time.monotonic() < deadline:
        if told.exists() and (count := told.read_text()).endswith("\n"):
            return int(count)
        time.sleep(0.005)
    raise RuntimeError(f"no count within {TELL_SECONDS:g} s")


def serve_counted(told: Path) -> None:
    """A relay that counts its calls, and writes down how many they are at each SIGUSR1."""
    count = 0

    def look(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        if event in ("call", "c_call"):
            count += 1

    signal.signal(signal.SIGUSR1, lambda _signal, _frame: told.write_text(f"{count}\n") and None)
    sys.setprofile(look)
    server.run(server.serve(load_settings()))


def main() -> None:
    if len(sys.argv) > 1:
        serve_counted(Path(sys.argv[1]))
        return
    build()
    pin_rig()
    found = calls()
    print(f"{found.per_token:.1f} calls for a token, {found.to_open:.0f} to open a stream")


if __name__ == "__main__":
    main()
