"""Metrics: every stream is counted once, whatever its end; what is now is read when somebody asks; and no client makes
a series.
"""

import asyncio
import itertools
import timeit
from typing import Any, Final

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.admission.callers import Grant
from app.events import Usage
from app.overview import Now, WebhookNow
from app.settings import Settings
from app.telemetry.metrics import Metrics
from tests.relay import settings_for
from tests.scraped import Scraped
from tests.summaries import cancelled, ended, failed

TABLES: Final[dict[str, Any]] = {
    "default_model": "standard",
    "upstreams": {
        "first": {"base_url": "http://127.0.0.1:9/v1", "models": ["small"], "aliases": {"tiny": "small-2026"}},
        "second": {"base_url": "http://127.0.0.1:9/v1"},
    },
    "profiles": {"support": {"model": "of-a-profile"}, "open": {}},
    "keys": {"app": {"sha256": "0" * 64, "models": ["of-a-key"]}},
    "anonymous": {"models": ["of-strangers"]},
}
KNOWN: Final = {"standard", "small", "tiny", "small-2026", "of-a-profile", "of-a-key", "of-strangers"}


class Upstream(msgspec.Struct, frozen=True):
    name: str
    state: Any
    in_use: int
    max_streams: int | None
    failures: int
    opens_in_s: float = 0
    rests_s: float = 0


NOW: Final = Now(
    status="ready",
    shared_log=None,
    streams=3,
    max_streams=5000,
    queued=2,
    max_queued=100,
    log_bytes=4096,
    max_log_bytes=2**28,
    upstreams=(Upstream("first", "half_open", 3, 8, 5), Upstream("second", "closed", 0, None, 0)),
    webhook=None,
)


def settings() -> Settings:
    return settings_for("http://127.0.0.1:9/v1", **TABLES)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(settings())


async def scrape(metrics: Metrics, now: Now = NOW) -> Scraped:
    return Scraped((await metrics.exposition(now)).decode())


# Streams


async def test_every_stream_is_counted_once_by_its_end(metrics: Metrics) -> None:
    for summary in (
        *(ended(number) for number in range(3)),
        *(failed(number, "upstream_timeout") for number in range(2)),
        failed(upstream=None, code="overloaded", attempts=0),
        cancelled(),
        cancelled(cause="left", upstream="second"),
    ):
        metrics(summary)
    assert (await scrape(metrics)).all("relay_streams_ended_total") == {
        ("cause=finished", "code=none", "upstream=first"): 3,
        ("cause=failed", "code=upstream_timeout", "upstream=first"): 2,
        ("cause=failed", "code=overloaded", "upstream=none"): 1,
        ("cause=deleted", "code=none", "upstream=first"): 1,
        ("cause=left", "code=none", "upstream=second"): 1,
    }


async def test_usage_is_counted_for_every_end_with_its_source(metrics: Metrics) -> None:
    for summary in (ended(), ended(), failed(), cancelled(grant=Grant(), model="tiny")):
        metrics(summary)
    scraped = await scrape(metrics)
    assert scraped.all("relay_tokens_total") == {
        ("caller=key:app", "kind=prompt", "model=small", "source=reported"): 6,
        ("caller=key:app", "kind=completion", "model=small", "source=reported"): 18,
        ("caller=key:app", "kind=prompt", "model=small", "source=estimated"): 3,
        ("caller=key:app", "kind=completion", "model=small", "source=estimated"): 2,
        ("caller=anonymous", "kind=prompt", "model=tiny", "source=estimated"): 3,
        ("caller=anonymous", "kind=completion", "model=tiny", "source=estimated"): 4,
    }
    assert scraped.sum("gen_ai_client_token_usage_sum", gen_ai_token_type="input") == 12
    assert scraped.sum("gen_ai_client_token_usage_sum", gen_ai_token_type="output") == 24
    assert scraped.sum("gen_ai_client_token_usage_count", gen_ai_token_type="output") == 4


async def test_a_stream_that_no_upstream_was_asked_for_used_nothing(metrics: Metrics) -> None:
    metrics(failed(code="overloaded", attempts=0, upstream=None, first_token_s=None))
    scraped = await scrape(metrics)
    assert scraped.all("relay_tokens_total") == {}
    assert scraped.sum("gen_ai_client_token_usage_count") == 0
    assert scraped.sum("relay_attempts_total") == 0
    assert scraped.sum("relay_streams_ended_total") == 1


async def test_attempts_and_the_queue_are_counted(metrics: Metrics) -> None:
    for summary in (ended(attempts=1, queued_s=0), ended(attempts=3, queued_s=0.3)):
        metrics(summary)
    scraped = await scrape(metrics)
    assert scraped.sum("relay_attempts_total") == 4
    assert scraped.sum("relay_queue_seconds_count") == 2
    assert scraped.sum("relay_queue_seconds_sum") == pytest.approx(0.3)
    assert scraped.sum("relay_queue_seconds_bucket", le="0.25") == 1


async def test_times_are_those_of_the_conventions(metrics: Metrics) -> None:
    metrics(ended(first_token_s=0.4, total_s=2.0, usage=Usage(3, 9, 12, "reported")))
    asked = {
        "gen_ai_operation_name": "chat",
        "gen_ai_provider_name": "openai",
        "gen_ai_request_model": "small",
        "upstream": "first",
    }
    scraped = await scrape(metrics)
    assert scraped.value("gen_ai_server_request_duration_seconds_sum", error_type="", **asked) == 2.0
    assert scraped.value("gen_ai_server_time_to_first_token_seconds_sum", **asked) == 0.4
    assert scraped.value("gen_ai_server_time_per_output_token_seconds_sum", **asked) == pytest.approx(0.2)
    assert scraped.value("gen_ai_server_request_duration_seconds_bucket", error_type="", le="1.28", **asked) == 0
    assert scraped.value("gen_ai_server_request_duration_seconds_bucket", error_type="", le="2.56", **asked) == 1


async def test_what_did_not_happen_has_no_time(metrics: Metrics) -> None:
    metrics(failed(code="upstream_unavailable", first_token_s=None))
    metrics(failed(code="upstream_truncated", first_token_s=0.4))
    metrics(ended(usage=Usage(3, 1, 4, "reported")))
    scraped = await scrape(metrics)
    assert scraped.sum("gen_ai_server_time_to_first_token_seconds_count") == 2
    assert scraped.sum("gen_ai_server_time_per_output_token_seconds_count") == 0
    by_error = scraped.by("gen_ai_server_request_duration_seconds_count", "error_type")
    assert by_error == {"": 1, "upstream_unavailable": 1, "upstream_truncated": 1}


# Series


async def test_a_client_that_invents_a_thousand_models_adds_one_series(metrics: Metrics) -> None:
    metrics(ended(model="invented"))
    one = await scrape(metrics)
    for number in range(1000):
        metrics(ended(number, model=f"invented-{number}"))
    thousand = await scrape(metrics)
    assert thousand.series == one.series
    assert thousand.by("relay_tokens_total", "model") == {"other": 12 * 1001}


async def test_labels_are_of_the_configuration(metrics: Metrics) -> None:
    for number, model in enumerate((*sorted(KNOWN), "support", "first", "app", "")):
        metrics(ended(number, model=model))
    scraped = await scrape(metrics)
    assert scraped.values("model") == {*KNOWN, "other"}
    assert scraped.values("gen_ai_request_model") == {*KNOWN, "other"}
    assert scraped.values("caller") == {"key:app"}
    assert scraped.values("upstream") == {"first", "second"}


async def test_nothing_that_was_said_is_in_the_metrics(metrics: Metrics) -> None:
    for number, summary in enumerate((ended, failed, cancelled)):
        metrics(summary(number, text="an answer", profile="canary", finish_reason="canary"))
    page = (await scrape(metrics)).text
    assert not [word for word in ("an answer", "canary", "user-7", "s_1", "r_1") if word in page]


async def test_two_relays_in_a_process_count_for_themselves(metrics: Metrics) -> None:
    other = Metrics(settings())
    metrics(ended())
    assert (await scrape(other)).sum("relay_streams_ended_total") == 0
    assert (await scrape(metrics)).sum("relay_streams_ended_total") == 1


async def test_a_scrape_gives_others_their_turns(metrics: Metrics) -> None:
    metrics(ended())
    scraping = asyncio.create_task(metrics.exposition(NOW))
    turns = 0
    while not scraping.done():
        await asyncio.sleep(0)
        turns += 1
    families = list(text_string_to_metric_families((await scraping).decode()))
    assert turns > len(families) / 2


# Now


async def test_what_is_now_is_shown(metrics: Metrics) -> None:
    scraped = await scrape(metrics)
    shown = ("relay_draining", "relay_streams", "relay_queued", "relay_log_bytes", "relay_max_streams")
    assert [scraped.value(name) for name in shown] == [0, 3, 2, 4096, 5000]
    assert scraped.all("relay_upstream_state") == {
        (f"state={state}", f"upstream={name}"): float((name, state) in (("first", "half_open"), ("second", "closed")))
        for name, state in itertools.product(("first", "second"), ("closed", "half_open", "open"))
    }
    assert scraped.all("relay_upstream_streams") == {("upstream=first",): 3, ("upstream=second",): 0}
    assert scraped.all("relay_upstream_max_streams") == {("upstream=first",): 8}
    assert scraped.all("relay_upstream_failures") == {("upstream=first",): 5, ("upstream=second",): 0}
    assert not scraped.has("relay_shared_log_away")
    assert not scraped.has("relay_webhook_calls_total")


async def test_a_drain_a_log_that_is_away_and_the_webhook_are_shown(metrics: Metrics) -> None:
    webhook = WebhookNow(waiting=1, delivered=2, refused=3, given_up=4, dropped=5, lost=6)
    now = msgspec.structs.replace(NOW, status="draining", shared_log="away", webhook=webhook)
    scraped = await scrape(metrics, now)
    assert (scraped.value("relay_draining"), scraped.value("relay_shared_log_away")) == (1, 1)
    assert scraped.by("relay_webhook_calls_total", "outcome") == {
        **{"delivered": 2, "refused": 3, "given_up": 4, "dropped": 5},
        "lost": 6,
    }
    assert scraped.value("relay_webhook_waiting") == 1


async def test_names_are_prometheus_own(metrics: Metrics) -> None:
    """As its linter has them: counters end in `_total`, units are whole words, everything is explained."""
    metrics(ended())
    text = (await metrics.exposition(NOW)).decode()
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert family.documentation, family.name
        assert family.name.startswith(("relay_", "gen_ai_", "process_")), family.name
        assert not family.name.endswith(("_total", "_created", "_ms", "_s")), family.name
        assert family.type in ("counter", "gauge", "histogram"), family.name
    assert metrics.content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert "_created" not in text


def test_a_stream_costs_little(metrics: Metrics) -> None:
    """Some 12 µs, the best of fifty times a hundred; ten times that is a look-up for each record, or worse."""
    summary = ended()
    best_s = min(timeit.repeat(lambda: metrics(summary), repeat=50, number=100)) / 100
    assert best_s < 120e-6
