"""The measures of one contender, in the order in which they disturb each other least."""

from typing import Final

import msgspec

from benchmarks.contenders import Contender
from benchmarks.load import Job, Loaded, holding, load
from benchmarks.processes import Server, settle

PACED_STREAMS: Final = 50
PACED_INTERVAL_US: Final = 20_000
PACED_RAMP_US: Final = 10_400
"""Spreads the streams evenly over the interval: in step, every token would wait for up to 49 others."""

FLOODING_STREAMS: Final = 20
DEPARTING_STREAMS: Final = 20
ABORT_AFTER_TOKENS: Final = 5
WARM_UP_STREAMS: Final = 100


class Sizes(msgspec.Struct, frozen=True):
    """How much of each; bigger is steadier."""

    paced_seconds: int
    share: float
    """Of the openings and the flood that a contender names for itself."""
    idle_streams: int
    idle_interval_us: int


FULL: Final = Sizes(paced_seconds=6, share=1, idle_streams=400, idle_interval_us=3_000_000)
QUICK: Final = Sizes(paced_seconds=2, share=0.4, idle_streams=100, idle_interval_us=700_000)


class Figures(msgspec.Struct, frozen=True):
    """What one contender showed in one round. None: it has no server, or it does not do this."""

    open_cpu_us: float | None
    first_token_p50_us: float
    first_token_p99_us: float
    paced_cpu_us: float | None
    latency_p50_us: float
    latency_p99_us: float
    flood_tokens_per_s: float
    flood_cpu_us: float | None
    idle_stream_bytes: float | None
    departures_noticed: float
    departure_lag_ms: float | None


class Costed(msgspec.Struct, frozen=True):
    """A load, and the processor time that the server spent on it."""

    loaded: Loaded
    cpu_us: float


class Bench:
    """One contender's server between the load and the upstream."""

    def __init__(self, contender: Contender, server: Server | None, upstream_port: int) -> None:
        self._contender: Final = contender
        self._server: Final = server
        self._upstream_port: Final = upstream_port

    def figures(self, sizes: Sizes) -> Figures:
        """Runs all measures. Raises RuntimeError when a stream failed that should not: no figure hides an error."""
        self._run("sim-5-0-8", WARM_UP_STREAMS, 10, 5)
        idle_stream_bytes = self._idle(sizes)
        openings = int(self._contender.openings * sizes.share)
        opening = self._run("sim-1-0-8", openings, 1, 1)
        open_cpu_us = opening.cpu_us / openings
        paced_tokens = sizes.paced_seconds * 1_000_000 // PACED_INTERVAL_US
        paced_model = f"sim-{paced_tokens}-{PACED_INTERVAL_US}-8"
        paced = self._run(paced_model, PACED_STREAMS, PACED_STREAMS, paced_tokens, RAMP_US=PACED_RAMP_US)
        flood_tokens = int(self._contender.flood_tokens * sizes.share)
        flood = self._run(f"sim-{flood_tokens}-0-8", FLOODING_STREAMS, FLOODING_STREAMS, flood_tokens)
        noticed, lag_ms = self._depart()
        served = self._server is not None
        return Figures(
            open_cpu_us=open_cpu_us if served else None,
            first_token_p50_us=opening.loaded.ttft_us.p50,
            first_token_p99_us=opening.loaded.ttft_us.p99,
            paced_cpu_us=(paced.cpu_us - PACED_STREAMS * open_cpu_us) / paced.loaded.tokens if served else None,
            latency_p50_us=paced.loaded.latency_us.p50,
            latency_p99_us=paced.loaded.latency_us.p99,
            flood_tokens_per_s=flood.loaded.tokens_per_s,
            flood_cpu_us=flood.cpu_us / flood.loaded.tokens if served else None,
            idle_stream_bytes=idle_stream_bytes,
            departures_noticed=noticed,
            departure_lag_ms=lag_ms,
        )

    def _job(self, model: str, streams: int, at_once: int, tokens: int, on_disconnect: str | None = None) -> Job:
        port = self._upstream_port if self._server is None else self._server.port
        return Job(port, self._contender.path, self._contender.request(model, on_disconnect), streams, at_once, tokens)

    def _cpu_us(self) -> float:
        return self._server.cpu_seconds() * 1e6 if self._server else 0.0

    def _run(self, model: str, streams: int, at_once: int, tokens: int, **options: int) -> Costed:
        before = self._cpu_us()
        loaded = load(self._job(model, streams, at_once, tokens), options)
        settle(self._upstream_port)
        if loaded.ok != streams:
            what = f"status {loaded.bad_status}, {loaded.first_failure or 'cut short'}"
            raise RuntimeError(f"{self._contender.name}: {streams - loaded.ok} of {streams} streams failed: {what}")
        return Costed(loaded, self._cpu_us() - before)

    def _idle(self, sizes: Sizes) -> float | None:
        """Memory of an open stream that waits for its next token. Taken first: later, it would reuse what floods freed.

        The model has few tokens, since a server that does not notice departures serves all of them to nobody.
        """
        if self._server is None:
            return None
        before = self._server.memory_bytes()
        model = f"sim-2-{sizes.idle_interval_us}-8"
        with holding(self._job(model, sizes.idle_streams, sizes.idle_streams, 2)):
            standing = self._server.memory_bytes()
        settle(self._upstream_port)
        return (standing - before) / sizes.idle_streams

    def _depart(self) -> tuple[int, float | None]:
        """How many of the departures upstream noticed, and how long after the last of them. Taken last: streams that
        nobody ends are still going when the server is stopped."""
        before = settle(self._upstream_port).aborted
        job = self._job("sim-1000-50000-8", DEPARTING_STREAMS, DEPARTING_STREAMS, 1000, "cancel")
        loaded = load(job, {"ABORT_AFTER": ABORT_AFTER_TOKENS})
        stats = settle(self._upstream_port, seconds=1)
        noticed = stats.aborted - before
        whole = noticed == DEPARTING_STREAMS
        return noticed, (stats.last_abort_ns - loaded.last_abort_ns) / 1e6 if whole else None
