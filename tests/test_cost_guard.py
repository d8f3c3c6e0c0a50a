"""What a token and a stream cost does not creep up: counted in calls, and against the route that everybody copies."""

import shutil
from pathlib import Path
from statistics import median
from typing import Final

import pytest

from benchmarks.calls import calls
from benchmarks.contenders import RELAY, TUTORIAL, Contender, started
from benchmarks.load import Job, load
from benchmarks.processes import Server, running_upstream, settle

pytestmark = [
    pytest.mark.skipif(shutil.which("cc") is None, reason="cc is missing: the rig cannot be built"),
    pytest.mark.usefixtures("cores"),
]

CALLS_PER_TOKEN: Final = 97
"""It takes 88 with Python 3.11: what makes it more is to be worth it, and then stands here."""

CALLS_TO_OPEN: Final = 1_980
"""It takes 1,800, half of them of the SDK and the framework."""

STREAMS: Final = 20
TOKENS: Final = 100
ROUNDS: Final = 3
SHARE_OF_TUTORIAL: Final = 0.5
"""Of its processor time, where it is 0.3 at most: without what waits in parsers, sockets and the kernel seen, calls
alone would not tell."""


def test_a_token_and_a_stream_take_as_many_calls_as_they_did(programs: Path) -> None:
    found = calls(programs)
    assert 0 < found.per_token <= CALLS_PER_TOKEN
    assert 0 < found.to_open <= CALLS_TO_OPEN


def test_a_token_costs_half_of_the_tutorial_routes_at_most(programs: Path) -> None:
    with (
        running_upstream(programs) as upstream_port,
        started(RELAY, upstream_port) as relay,
        started(TUTORIAL, upstream_port) as tutorial,
    ):
        assert relay is not None
        assert tutorial is not None

        def cpu_seconds(contender: Contender, server: Server) -> float:
            before = server.cpu_seconds()
            request = contender.request(f"sim-{TOKENS}-5000-8")
            job = Job(server.port, contender.path, request, STREAMS, STREAMS, TOKENS, contender.headers())
            assert load(job, programs=programs).ok == STREAMS
            settle(upstream_port)
            return server.cpu_seconds() - before

        shares = [cpu_seconds(RELAY, relay) / cpu_seconds(TUTORIAL, tutorial) for _ in range(1 + ROUNDS)]
    assert median(shares[1:]) < SHARE_OF_TUTORIAL
