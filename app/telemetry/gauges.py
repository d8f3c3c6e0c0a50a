"""What is now, and what was counted beside streams, as families for Prometheus."""

from collections.abc import Iterator, Sequence
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from app.overview import Counts, Now, UpstreamNow, WebhookNow

STATES: Final = ("closed", "half_open", "open")


def gauges(now: Now) -> Iterator[Metric]:
    yield GaugeMetricFamily("relay_draining", "1 while the process is shutting down.", float(now.status == "draining"))
    if now.shared_log is not None:
        away = float(now.shared_log == "away")
        yield GaugeMetricFamily("relay_shared_log_away", "1 while the shared log cannot be reached.", away)
    yield GaugeMetricFamily("relay_streams", "Streams that are generated now.", now.streams)
    yield GaugeMetricFamily("relay_max_streams", "Streams that may be generated at once.", now.max_streams)
    yield GaugeMetricFamily("relay_queued", "Requests in the queue.", now.queued)
    yield GaugeMetricFamily("relay_max_queued", "Requests that may be in the queue.", now.max_queued)
    yield GaugeMetricFamily("relay_log_bytes", "What the logs of all streams are charged for.", now.log_bytes)
    yield GaugeMetricFamily("relay_max_log_bytes", "What they may be charged for.", now.max_log_bytes)
    yield from _counts(now.counts)
    yield from _upstreams(now.upstreams)
    if now.webhook is not None:
        yield from _webhook(now.webhook)


def _counts(counts: Counts) -> Iterator[Metric]:
    yield CounterMetricFamily("relay_streams_started", "Streams that were begun, in the queue or not.", counts.started)
    refused = CounterMetricFamily(
        "relay_requests_refused", "HTTP answers that were an error, by its code.", labels=("status", "code")
    )
    for (status, code), count in counts.refused.items():
        refused.add_metric((str(status), code), count)
    yield refused
    attached = CounterMetricFamily(
        "relay_attached", "Readers that came to a stream, from a cursor on or from its beginning.", labels=("from",)
    )
    attached.add_metric(("cursor",), counts.resumed)
    attached.add_metric(("beginning",), counts.replayed)
    yield attached
    ended = CounterMetricFamily(
        "relay_readers_ended_early",
        "Readers whose response was ended before the stream: they took nothing, or were to come back.",
        labels=("reason",),
    )
    ended.add_metric(("cut_off",), counts.cut_off)
    ended.add_metric(("sent_off",), counts.sent_off)
    yield ended


def _upstreams(upstreams: Sequence[UpstreamNow]) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        "relay_upstream_state",
        "1 for the state that an upstream's breaker is in, 0 for the others.",
        labels=("upstream", "state"),
    )
    streams = GaugeMetricFamily("relay_upstream_streams", "Streams that it is asked for now.", labels=("upstream",))
    most = GaugeMetricFamily("relay_upstream_max_streams", "Streams at once, at most.", labels=("upstream",))
    failures = GaugeMetricFamily("relay_upstream_failures", "Failures in a row.", labels=("upstream",))
    for upstream in upstreams:
        for each in STATES:
            state.add_metric((upstream.name, each), float(upstream.state == each))
        streams.add_metric((upstream.name,), upstream.in_use)
        failures.add_metric((upstream.name,), upstream.failures)
        if upstream.max_streams is not None:
            most.add_metric((upstream.name,), upstream.max_streams)
    yield from (state, streams, most, failures)


def _webhook(webhook: WebhookNow) -> Iterator[Metric]:
    calls = CounterMetricFamily("relay_webhook_calls", "Calls of the webhook, by how they ended.", labels=("outcome",))
    for outcome in ("delivered", "refused", "given_up", "dropped", "lost"):
        calls.add_metric((outcome,), getattr(webhook, outcome))
    yield calls
    yield GaugeMetricFamily("relay_webhook_waiting", "Calls that have not ended.", webhook.waiting)
