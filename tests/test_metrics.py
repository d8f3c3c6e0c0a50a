"""Metrics: every stream is counted once, whatever its end; what is now is read when somebody asks; and no client makes
a series.
"""

import asyncio
import itertools
import time
import timeit
from typing import Any, Final

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.admission.callers import Caller, Grant
from app.clocks import Clocks
from app.events import Usage
from app.overview import Counts, Now, WebhookNow
from app.request.chat import Limits
from app.settings import Settings
from app.summary import Course, Summary, Try
from app.telemetry.loop_lag import WORST_OF_TICKS
from app.telemetry.metrics import Metrics
from tests.relay import Relay, ask, chat, connect, fetch, running, settings_for, until
from tests.scraped import Scraped
from tests.summaries import cancelled, ended, failed
from tests.upstream import Upstream, chunk, finish, hang, head, pause, repeat, status

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
ANYBODY: Final = Caller("", None)
KNOWN: Final = {"standard", "small", "tiny", "small-2026", "of-a-profile", "of-a-key", "of-strangers"}


class Standing(msgspec.Struct, frozen=True):
    name: str
    state: Any
    in_use: int
    max_streams: int | None
    failures: int
    opens_in_s: float = 0
    rests_s: float = 0


NOW: Final = Now(
    counts=Counts(),
    status="ready",
    shared_log=None,
    streams=3,
    max_streams=5000,
    queued=2,
    max_queued=100,
    log_bytes=4096,
    max_log_bytes=2**28,
    upstreams=(Standing("first", "half_open", 3, 8, 5), Standing("second", "closed", 0, None, 0)),
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


async def test_each_attempt_is_counted_by_its_upstream_and_what_became_of_it(metrics: Metrics) -> None:
    once, thrice = Try("first", "finished", 0.02), Try("second", "upstream_unavailable", None)
    for course in (Course((once,)), Course((thrice, thrice, once))):
        metrics(ended(course=course))
    scraped = await scrape(metrics)
    assert scraped.all("relay_attempts_total") == {
        ("outcome=finished", "upstream=first"): 2,
        ("outcome=upstream_unavailable", "upstream=second"): 2,
    }
    assert scraped.value("relay_upstream_connect_seconds_count", upstream="first") == 2
    assert scraped.sum("relay_upstream_connect_seconds_count") == 2
    assert scraped.sum("relay_upstream_connect_seconds_bucket", le="0.025") == 2


async def test_the_longest_gap_and_what_can_be_read_live_only_are_counted(metrics: Metrics) -> None:
    for course in (Course(longest_gap_s=0.3), Course(longest_gap_s=30.0, live_only=True), Course()):
        metrics(ended(course=course))
    scraped = await scrape(metrics)
    assert scraped.value("relay_longest_gap_seconds_count", upstream="first") == 2
    assert scraped.value("relay_longest_gap_seconds_bucket", upstream="first", le="0.5") == 1
    assert scraped.value("relay_streams_live_only_total") == 1


async def test_the_time_to_let_go_is_that_of_streams_that_were_stopped_or_left(metrics: Metrics) -> None:
    for summary in (cancelled(), cancelled(cause="left"), failed(), ended(), failed(cause="drained")):
        metrics.over(summary, 0.004)
    scraped = await scrape(metrics)
    assert scraped.by("relay_cancel_lag_seconds_count", "cause") == {"deleted": 1, "left": 1}
    assert scraped.value("relay_cancel_lag_seconds_bucket", cause="left", le="0.005") == 1
    assert scraped.value("relay_cancel_lag_seconds_bucket", cause="left", le="0.0025") == 0


async def test_a_fault_of_ours_is_counted_by_itself(metrics: Metrics) -> None:
    for code in ("internal", "upstream_error"):
        metrics(failed(code=code))
    assert (await scrape(metrics)).value("relay_faults_total") == 1


async def test_the_queue_is_counted(metrics: Metrics) -> None:
    for summary in (ended(queued_s=0), ended(queued_s=0.3)):
        metrics(summary)
    scraped = await scrape(metrics)
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


async def test_what_was_counted_beside_streams_is_shown(metrics: Metrics) -> None:
    counts = Counts(started=7, cut_off=2, sent_off=3)
    for after in (0, 5, -1):
        counts.attached(after)
    counts.refused[429, "rate_limited"] += 4
    counts.refused[415, "invalid_request"] += 1
    scraped = await scrape(metrics, msgspec.structs.replace(NOW, counts=counts))
    assert scraped.value("relay_streams_started_total") == 7
    assert scraped.by("relay_attached_total", "from") == {"cursor": 2, "beginning": 1}
    assert scraped.by("relay_readers_ended_early_total", "reason") == {"cut_off": 2, "sent_off": 3}
    assert scraped.value("relay_requests_refused_total", status="429", code="rate_limited") == 4
    assert scraped.value("relay_requests_refused_total", status="415", code="invalid_request") == 1
    assert scraped.value("relay_requests_refused_total", status="503", code="overloaded") == 0


async def test_a_loop_that_was_held_up_is_seen_and_not_forgotten_by_a_scrape(metrics: Metrics) -> None:
    with metrics.loop_lag.watching():
        await asyncio.sleep(0)
        time.sleep(0.25)  # noqa: ASYNC251 — what no task should do
        await until(lambda: metrics.loop_lag.longest_s > 0)
    for _ in range(2):
        scraped = await scrape(metrics)
        assert 0.1 < scraped.value("relay_loop_lag_max_seconds") < 10
    assert scraped.sum("relay_loop_lag_seconds_bucket", le="0.1") < scraped.value("relay_loop_lag_seconds_count")


async def test_the_longest_lag_is_kept_for_a_minute_at_least_and_two_at_most(metrics: Metrics) -> None:
    lag = metrics.loop_lag
    lag.was_late(3.0)
    for _ in range(2 * WORST_OF_TICKS - 2):
        lag.was_late(0.001)
    assert lag.longest_s == 3.0
    lag.was_late(0.001)
    assert lag.longest_s == 0.001


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


# In a relay


async def told(relay: Relay) -> Scraped:
    desk = relay._app.state.desk
    return Scraped((await desk.metrics.exposition(desk.overview.now())).decode())


async def test_refusals_are_counted_wherever_they_are_made() -> None:
    async with Upstream() as upstream, running(upstream.base_url, attempts=1, max_streams=1, max_queued=0) as relay:
        upstream.script(status(500), model="refused")
        upstream.script((head(), chunk("Hel"), hang()))
        await ask(relay.port, chat(model="refused"))
        await fetch(relay.port, "GET", "/nowhere")
        await fetch(relay.port, "PUT", "/chat/stream")
        await fetch(relay.port, "GET", "/", headers={"host": "evil.example"})
        async with connect(relay.port) as connection:
            await connection.request("POST", "/chat/stream", chat())
            await ask(relay.port, chat())
        scraped = await told(relay)
    counted = {labels: value for labels, value in scraped.all("relay_requests_refused_total").items() if value}
    assert counted == {
        ("code=upstream_unavailable", "status=502"): 1,
        ("code=not_found", "status=404"): 1,
        ("code=invalid_request", "status=405"): 1,
        ("code=invalid_request", "status=400"): 1,
        ("code=overloaded", "status=503"): 1,
    }


async def test_readers_that_take_nothing_and_those_that_are_sent_off_are_counted() -> None:
    limits = {"send_timeout_seconds": 0.2, "max_connection_seconds": 1}
    async with Upstream() as upstream, running(upstream.base_url, **limits) as relay:
        upstream.script((head(), chunk("Hel"), hang()))
        upstream.script((head(), chunk("Hel"), repeat(chunk("x" * 4000), 500), hang()), model="flood")
        async with connect(relay.port) as stalled, connect(relay.port) as old:
            old.write("POST", "/chat/stream", chat())
            await stalled.request("POST", "/chat/stream", chat(model="flood"))
            stalled.stop_reading()
            await until(lambda: not relay.generations, 5)
            scraped = await told(relay)
    assert scraped.by("relay_readers_ended_early_total", "reason") == {"cut_off": 1, "sent_off": 1}


async def test_the_longest_gap_is_the_one_that_upstream_made() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script((head(), pause(0.3), chunk("a"), chunk("b"), pause(0.1), chunk("c"), chunk("d"), finish()))
        await ask(relay.port, chat())
        scraped = await told(relay)
    assert 0.1 <= scraped.sum("relay_longest_gap_seconds_sum") + 0.002 < 0.3


async def test_no_gap_is_the_time_in_which_upstream_was_not_read() -> None:
    clocks = Clocks(Limits(connect=9, first_token=9, idle=9, total=9), lambda _: None)
    clocks.carried()
    clocks.pause()
    await asyncio.sleep(0.1)
    clocks.resume()
    clocks.carried()
    clocks.stop()
    assert clocks.longest_gap_s < 0.05


async def test_a_stream_that_is_resumed_says_how_often_and_by_how_many_it_was_read() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script((head(), chunk("Hel"), hang()))
        summaries: list[Summary] = []
        relay.streams.listeners.append(summaries.append)
        async with connect(relay.port) as first:
            response = await first.request("POST", "/chat/stream", chat(), {"accept": "text/event-stream"})
            path = f"/chat/stream/{response.headers['x-stream-id']}"
            async with connect(relay.port) as second, connect(relay.port) as third:
                for connection, after in ((second, "?after=0"), (third, "")):
                    await connection.request("GET", path + after)
                await fetch(relay.port, "DELETE", path)
        scraped = await told(relay)
    assert [(each.course.most_readers, each.course.resumes) for each in summaries] == [(3, 1)]
    assert scraped.by("relay_attached_total", "from") == {"cursor": 1, "beginning": 1}


async def test_a_stream_that_outgrew_its_log_is_counted_as_live_only() -> None:
    waits = {"accept": "text/event-stream"}
    async with Upstream() as upstream, running(upstream.base_url, log_stream_bytes=1024) as relay:
        upstream.script((head(), repeat(chunk("x" * 400), 8), finish()), model="large")
        upstream.script((head(), chunk("x"), finish()))
        summaries: list[Summary] = []
        relay.streams.listeners.append(summaries.append)
        await ask(relay.port, chat(model="large"), headers=waits)
        await ask(relay.port, chat(), headers=waits)
        scraped = await told(relay)
        assert summaries[1].course.log_bytes == relay.streams.find(summaries[1].stream, ANYBODY).log.kept_bytes > 0
    assert [each.course.live_only for each in summaries] == [True, False]
    assert scraped.value("relay_streams_live_only_total") == 1


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
