"""The measures of one contender, in the order in which they disturb each other least."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from benchmarks.contenders import Contender
from benchmarks.load import Job, Loaded, holding, load
from benchmarks.paced import Crowd, Paced, at, measure
from benchmarks.processes import Server, end_streams, settle

FEW_STREAMS: Final = 50
MANY_STREAMS: Final = 200
FLOODING_STREAMS: Final = 20
DEPARTING_STREAMS: Final = 20
ABORT_AFTER_TOKENS: Final = 5
OPENING: Final = "sim-1-0-8"
STANDING: Final = "sim-6-10000-8!stall"
"""Three tokens soon, and no more until upstream is told to end: who stands so costs nothing."""

WARM_UP_STREAMS: Final = 100


class Sizes(msgspec.Struct, frozen=True):
    """How much of each; bigger is steadier."""

    paced_ms: int
    share: float
    """Of the openings and the flood that a contender names for itself."""
    idle_streams: int


FULL: Final = Sizes(paced_ms=2_000, share=1, idle_streams=400)
SMALL: Final = Sizes(paced_ms=1_000, share=0.5, idle_streams=200)
QUICK: Final = Sizes(paced_ms=1_000, share=0.2, idle_streams=100)


class Figures(msgspec.Struct, frozen=True):
    """What one contender showed in one round. None: it has no server, or it does not do this."""

    base_bytes: float | None
    idle_stream_bytes: float | None
    open_cpu_us: float | None
    open_among_cpu_us: float | None
    """With MANY_STREAMS idle ones open beside."""
    open_after_cpu_us: float | None
    """Just after the idle ones have ended: some keep their connections to upstream, and go through them each time."""
    first_token_p50_us: float
    first_token_p99_us: float
    few_cpu_us: float | None
    many_cpu_us: float | None
    many_standing: float
    many_came_share: float
    """Of the tokens that were due; upstream holds back what the server does not take in time."""
    many_core_share: float | None
    latency_us: tuple[tuple[float, int], ...]
    latency_p50_us: float
    latency_p99_us: float
    jitter_p50_us: float
    jitter_p99_us: float
    many_latency_p99_us: float
    flood_tokens_per_s: float
    flood_cpu_us: float | None
    departures_noticed: float
    departure_lag_ms: float | None


class Costed(msgspec.Struct, frozen=True):
    """A load, and the processor time that the server spent on it."""

    loaded: Loaded
    cpu_us: float


class _Taken(msgspec.Struct, frozen=True):
    """The measures as they were taken."""

    base_bytes: float | None
    idle_stream_bytes: float | None
    openings: int
    opening: Costed
    opening_among: Costed
    opening_after: Costed
    few: Paced
    many: Paced
    flood: Costed
    departures: tuple[int, float | None]

    def figures(self, *, served: bool) -> Figures:
        few, many, flood = self.few, self.many, self.flood
        return Figures(
            base_bytes=self.base_bytes,
            idle_stream_bytes=self.idle_stream_bytes,
            open_cpu_us=self.opening.cpu_us / self.openings if served else None,
            open_among_cpu_us=self.opening_among.cpu_us / self.openings if served else None,
            open_after_cpu_us=self.opening_after.cpu_us / self.openings if served else None,
            first_token_p50_us=self.opening.loaded.ttft_us.p50,
            first_token_p99_us=self.opening.loaded.ttft_us.p99,
            few_cpu_us=few.cpu_per_token_us if served else None,
            many_cpu_us=many.cpu_per_token_us if served else None,
            many_standing=many.standing,
            many_came_share=many.came_share(MANY_STREAMS),
            many_core_share=many.core_share if served else None,
            latency_us=few.latency_us,
            latency_p50_us=at(few.latency_us, 0.5),
            latency_p99_us=at(few.latency_us, 0.99),
            jitter_p50_us=at(few.jitter_us, 0.5),
            jitter_p99_us=at(few.jitter_us, 0.99),
            many_latency_p99_us=at(many.latency_us, 0.99),
            flood_tokens_per_s=flood.loaded.tokens_per_s,
            flood_cpu_us=flood.cpu_us / flood.loaded.tokens if served else None,
            departures_noticed=self.departures[0],
            departure_lag_ms=self.departures[1],
        )


class Bench:
    """One contender's server between the load and the upstream."""

    def __init__(self, contender: Contender, server: Server | None, upstream_port: int) -> None:
        self._contender: Final = contender
        self._server: Final = server
        self._upstream_port: Final = upstream_port

    def opening(self, sizes: Sizes) -> Costed:
        """Streams of one token, one after another. On a server of its own: what others left behind adds to it."""
        self._run("sim-5-0-8", WARM_UP_STREAMS, 10, 5)
        return self._open(sizes)

    def figures(self, sizes: Sizes, opening: Costed) -> Figures:
        """Runs all other measures. RuntimeError when a stream failed that should not: no figure hides an error."""
        base_bytes = self._server.memory_bytes() if self._server else None
        self._run("sim-5-0-8", WARM_UP_STREAMS, 10, 5)
        idle_stream_bytes = self._idle(sizes)
        flood_tokens = int(self._contender.flood_tokens * sizes.share)
        taken = _Taken(
            base_bytes=base_bytes,
            idle_stream_bytes=idle_stream_bytes,
            openings=self._openings(sizes),
            opening=opening,
            opening_after=self._open(sizes),
            opening_among=self._open_among(sizes),
            few=self._paced(FEW_STREAMS, sizes),
            many=self._paced(MANY_STREAMS, sizes),
            flood=self._run(f"sim-{flood_tokens}-0-8", FLOODING_STREAMS, FLOODING_STREAMS, flood_tokens),
            departures=self._depart(),
        )
        return taken.figures(served=self._server is not None)

    @property
    def _port(self) -> int:
        return self._upstream_port if self._server is None else self._server.port

    def _job(self, model: str, streams: int, at_once: int, tokens: int, on_disconnect: str | None = None) -> Job:
        asks = self._contender
        request, headers = asks.request(model, on_disconnect), asks.headers(on_disconnect)
        return Job(self._port, asks.path, request, streams, at_once, tokens, headers)

    def _cpu_us(self) -> float:
        return self._server.cpu_seconds() * 1e6 if self._server else 0.0

    def _run(self, model: str, streams: int, at_once: int, tokens: int, beside: int = 0) -> Costed:
        before = self._cpu_us()
        loaded = load(self._job(model, streams, at_once, tokens))
        settle(self._upstream_port, beside=beside)
        if loaded.ok != streams:
            what = f"status {loaded.bad_status}, {loaded.first_failure or 'cut short'}"
            raise RuntimeError(f"{self._contender.name}: {streams - loaded.ok} of {streams} streams failed: {what}")
        return Costed(loaded, self._cpu_us() - before)

    def _openings(self, sizes: Sizes) -> int:
        return max(10, int(self._contender.openings * sizes.share))

    def _open(self, sizes: Sizes, beside: int = 0) -> Costed:
        return self._run(OPENING, self._openings(sizes), 1, 1, beside)

    def _open_among(self, sizes: Sizes) -> Costed:
        """While many idle streams stand open."""
        with self._standing(MANY_STREAMS):
            return self._open(sizes, beside=MANY_STREAMS)

    @contextmanager
    def _standing(self, streams: int) -> Iterator[None]:
        """So many idle streams stand open, until the block ends."""
        with holding(self._job(STANDING, streams, streams, 6)):
            yield
            end_streams(self._upstream_port)
        settle(self._upstream_port)

    def _paced(self, streams: int, sizes: Sizes) -> Paced:
        """A server that is too slow for so many has begun some of them only; none may end or be refused."""
        paced = measure(Crowd(self._contender, self._server, self._upstream_port, streams), sizes.paced_ms)
        if paced.lost or not paced.tokens:
            what = f"{paced.lost} of {streams} streams were lost, status {paced.bad_status}"
            raise RuntimeError(f"{self._contender.name}: {what}")
        return paced

    def _idle(self, sizes: Sizes) -> float | None:
        """Memory of an open stream that waits for its next token. Taken first: later, it would reuse what floods
        freed."""
        if self._server is None:
            return None
        streams = sizes.idle_streams
        before = self._server.memory_bytes()
        with self._standing(streams):
            standing = self._server.memory_bytes()
        return (standing - before) / streams

    def _depart(self) -> tuple[int, float | None]:
        """How many of the departures upstream noticed, and how long after the last of them. Upstream ends the others:
        some servers would not stop before."""
        before = settle(self._upstream_port).aborted
        job = self._job("sim-1000-50000-8", DEPARTING_STREAMS, DEPARTING_STREAMS, 1000, "cancel")
        loaded = load(job, {"ABORT_AFTER": ABORT_AFTER_TOKENS})
        stats = settle(self._upstream_port, seconds=1)
        noticed = stats.aborted - before
        end_streams(self._upstream_port)
        whole = noticed == DEPARTING_STREAMS
        return noticed, (stats.last_abort_ns - loaded.last_abort_ns) / 1e6 if whole else None
