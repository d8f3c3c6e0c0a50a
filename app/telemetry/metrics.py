"""Metrics for Prometheus: each generation is counted once, when it ends; what is now is read when somebody asks.

docs/operate.md says what each means, and a test holds it to what is exposed.

No label is of a client's making: callers and upstreams are those of the configuration, and so are models; all others
are `other`.
"""

import asyncio
import itertools
from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Info, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric

from app import __version__
from app.overview import Now
from app.settings import Settings
from app.summary import Summary
from app.telemetry.conventions import Conventions
from app.telemetry.course import NONE, Courses
from app.telemetry.gauges import gauges
from app.telemetry.loop_lag import LoopLag
from app.telemetry.series import counter

OTHER: Final = "other"


class Metrics:
    """What one relay counts; a process may have several. Counting a stream takes some 13 µs, a token nothing."""

    content_type: Final = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self, settings: Settings) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each of ours, to no use
        self._models = frozenset(_models(settings))
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        Info("relay", "What runs.", registry=registry).info({"version": __version__})
        self.loop_lag: Final = LoopLag(registry)
        self._ended = counter(
            registry, "relay_streams_ended", "Streams, by how they ended.", "cause", "code", "upstream"
        )
        self._tokens = counter(
            registry,
            "relay_tokens",
            "Tokens of prompts and completions; `estimated` where the upstream did not count them.",
            *("caller", "model", "kind", "source"),
        )
        self._courses = Courses(registry)
        self._conventions = Conventions(registry)

    def __call__(self, summary: Summary) -> None:
        upstream = summary.upstream or NONE
        model = summary.model if summary.model in self._models else OTHER
        self._ended[summary.cause, summary.code or NONE, upstream].inc()
        self._courses(summary)
        if summary.attempts:
            caller, usage = summary.grant.name, summary.usage
            self._tokens[caller, model, "prompt", usage.source].inc(usage.prompt_tokens)
            self._tokens[caller, model, "completion", usage.source].inc(usage.completion_tokens)
        self._conventions(summary, model, upstream)

    def over(self, summary: Summary, took_s: float) -> None:
        self._courses.over(summary, took_s)

    async def exposition(self, now: Now) -> bytes:
        """All of it as text, of `content_type`. A thousand series take some 12 ms; others have turns meanwhile."""
        pages = []
        for family in itertools.chain(self._registry.collect(), gauges(now)):
            pages.append(generate_latest(_Only(family)))
            await asyncio.sleep(0)
        return b"".join(pages)


class _Only:
    """A family by itself, in the form in which the library writes it out."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> list[Metric]:
        return [self._family]


def _models(settings: Settings) -> Iterator[str]:
    """Every name of a model that the configuration has."""
    if settings.default_model is not None:
        yield settings.default_model
    for upstream in settings.upstreams.values():
        yield from (*upstream.models, *upstream.aliases, *upstream.aliases.values())
    for profile in settings.profiles.values():
        if profile.model is not None:
            yield profile.model
    for allowance in (settings.anonymous, *settings.keys.values(), *settings.issuers.values()):
        yield from allowance.models
