"""Metrics of how streams went: the queue, attempts, gaps, and how long it took to let go of an upstream."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

from app.stream import STOPPED
from app.summary import Summary
from app.telemetry.series import counter, histogram

NONE: Final = "none"

QUEUE_SECONDS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
CONNECT_SECONDS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
GAP_SECONDS: Final = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
LAG_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Courses:
    """Fed with what Metrics is fed with; `over` when nothing of a generation remains."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._queued = Histogram("relay_queue_seconds", "Time in the queue.", registry=registry, buckets=QUEUE_SECONDS)
        self._attempts = counter(
            registry, "relay_attempts", "Requests to upstreams, by what became of them.", "upstream", "outcome"
        )
        self._connect = histogram(
            registry, "relay_upstream_connect_seconds", "Until a request had left.", CONNECT_SECONDS, "upstream"
        )
        self._gap = histogram(
            registry, "relay_longest_gap_seconds", "Longest time between two pieces.", GAP_SECONDS, "upstream"
        )
        self._lag = histogram(
            registry, "relay_cancel_lag_seconds", "From a stop or a departure to upstream closed.", LAG_SECONDS, "cause"
        )
        self._live_only = Counter(
            "relay_streams_live_only", "Streams that could not be resumed any more, and were to be.", registry=registry
        )
        self._faults = Counter(
            "relay_faults", "Streams that were ended by a fault of the relay's own.", registry=registry
        )

    def __call__(self, summary: Summary) -> None:
        course = summary.course
        self._queued.observe(summary.queued_s)
        for each in course.tries:
            self._attempts[each.upstream, each.outcome].inc()
            if each.connect_s is not None:
                self._connect[each.upstream,].observe(each.connect_s)
        if course.longest_gap_s is not None:
            self._gap[summary.upstream or NONE,].observe(course.longest_gap_s)
        if course.live_only:
            self._live_only.inc()
        if summary.code == "internal":
            self._faults.inc()

    def over(self, summary: Summary, took_s: float) -> None:
        if summary.cause in STOPPED:
            self._lag[summary.cause,].observe(took_s)
