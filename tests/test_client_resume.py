"""The Python client on a connection that is lost: every event comes once, or the loss is called by its name."""

import asyncio
import json
import random
from typing import Final
from urllib.parse import parse_qs, urlsplit

import pytest

from app.client.problems import connection_lost
from app.client.steps import Persistence
from tests.relay_script import delta, done, end, opened, refused, say, start
from tests.test_client_twins import Twin, both, read, scripted, text_of
from tests.upstream import Answer, Exchange, Step, close, hang, reset, send, status
from tests.upstream_server import Ending

AT_ONCE: Final = 50  # the scripted relay's backlog is 100 connections
TEXT: Final = 'Hel|lo \u6f22\U0001f389 "quoted"\n\nend'


def block(kind: str, seq: int, content: str = "", **fields: object) -> bytes:
    payload = json.dumps({"type": kind, "content": content, **fields, "seq": seq})
    return f"data: {payload}\nid: s_1.{seq}\n\n".encode()


STREAM: Final = (
    block("start", 0, protocol=1, id="s_1", model="m", resumable=True),
    block("reasoning", 1, reasoning="Hm."),
    *(block("delta", seq, text) for seq, text in enumerate(TEXT.split("|"), 2)),
    block("done", 4, finish_reason="stop"),
)
END: Final = b"data: [DONE]\n\n"


def cut_at(ending: Ending) -> Step:
    """The stream's first bytes, as many as the message says."""

    async def step(exchange: Exchange) -> None:
        await exchange.body((b"".join(STREAM) + END)[: int(exchange.request.body["message"])])
        exchange.ending = ending

    return step


async def from_cursor(exchange: Exchange) -> None:
    await exchange.body(b"".join(STREAM[after(exchange.request.path) + 1 :]) + END)


def after(path: str) -> int:
    return int(parse_qs(urlsplit(path).query)["after"][0])


@both
@pytest.mark.parametrize("ending", ["close", "reset"])
async def test_cut_at_any_byte_every_event_comes_once(twin: Twin, ending: Ending) -> None:
    async with scripted(twin, (opened(), from_cursor), backoff_seconds=0.001) as (relay, client):
        relay.script((opened(), cut_at(ending)), model="cut")
        cuts = list(range(sum(map(len, STREAM)) + len(END) + 1))
        while some := cuts[:AT_ONCE]:
            outcomes = await asyncio.gather(*(read(client.stream(str(cut), model="cut")) for cut in some))
            for cut, (events, failure) in zip(some, outcomes, strict=True):
                assert failure is None, cut
                assert [event.seq for event in events] == [0, 1, 2, 3, 4], cut
                assert text_of(events) == TEXT.replace("|", ""), cut
            del cuts[:AT_ONCE]


@both
async def test_what_is_replayed_is_passed_over(twin: Twin) -> None:
    again = opened(), delta(1, "one "), delta(2, "two "), delta(3, "three"), done(4), end()
    async with scripted(twin, (opened(), start(), delta(1, "one "), delta(2, "two "), reset()), again) as (_, client):
        assert (await client.stream("hi").collect()).text == "one two three"


@both
async def test_characters_cut_in_two_are_whole(twin: Twin) -> None:
    raw = '{"type":"delta","content":"\u6f22\U0001f389","seq":1}'.encode()
    pieces = [send(b"data: "), *(send(raw[at : at + 1]) for at in range(len(raw))), send(b"\n\n")]
    async with scripted(twin, (opened(), start(), *pieces, done(2), end())) as (_, client):
        assert (await client.stream("hi").collect()).text == "\u6f22\U0001f389"


@both
async def test_a_gateway_whose_relay_restarts_is_asked_again(twin: Twin) -> None:
    restarting = status(502, b"<html>Bad Gateway"), refused(503, "draining", retryable=True), (reset(),)
    cut, rest = (opened(), start(), delta(1, "one "), reset()), (opened(), delta(2, "two"), done(3), end())
    async with scripted(twin, cut, *restarting, rest, reconnects=4) as (relay, client):
        assert (await client.stream("hi").collect()).text == "one two"
        assert [(request.method, request.path) for request in relay.requests[1:]] == [
            ("GET", "/chat/stream/s_1?after=1")
        ] * 4


@both
async def test_tries_are_bounded_and_counted_from_the_last_progress(twin: Twin) -> None:
    cut = opened(), start(), delta(1, "one "), reset()
    async with scripted(twin, cut, (reset(),), (opened(), delta(2, "two "), reset()), (opened(), close())) as scene:
        relay, client = scene
        events, lost = await read(client.stream("hi"))
        assert [after(request.path) for request in relay.requests[1:]] == [1, 1, 2, 2]
    assert lost
    assert (text_of(events), lost.code, lost.retryable, lost.partial) == ("one two ", "connection_lost", True, True)


@both
@pytest.mark.parametrize(
    "lost",
    [(start(resumable=False), delta(1, "Half")), (start(), say("live_only", None), say("delta", None, content="Half"))],
    ids=["never was", "no longer is"],
)
async def test_a_stream_that_cannot_be_resumed_is_not_asked_for_again(twin: Twin, lost: Answer) -> None:
    async with scripted(twin, (opened(), *lost, close())) as (relay, client):
        events, seen = await read(client.stream("hi"))
        assert len(relay.requests) == 1
    assert (text_of(events), seen and seen.code) == ("Half", "connection_lost")


@both
async def test_a_stream_that_is_gone_says_so_and_that_text_had_come(twin: Twin) -> None:
    cut = opened(), start(), delta(1, "Half"), reset()
    async with scripted(twin, cut, refused(410, "not_resumable")) as (relay, client):
        _, seen = await read(client.stream("hi"))
        assert len(relay.requests) == 2
    assert seen
    assert (seen.code, seen.status, seen.partial, seen.retryable) == ("not_resumable", 410, True, False)


@both
async def test_a_stream_that_is_over_without_its_end_is_no_answer(twin: Twin) -> None:
    cut = opened(), start(), delta(1, "Half"), reset()
    async with scripted(twin, cut, status(204)) as (_, client):
        _, seen = await read(client.stream("hi"))
    assert seen
    assert (seen.status, seen.partial) == (204, True)


@both
async def test_a_stream_without_a_terminal_event_is_no_answer(twin: Twin) -> None:
    async with scripted(twin, (opened(), start(), delta(1, "Half"), end())) as (_, client):
        _, seen = await read(client.stream("hi"))
    assert seen
    assert (seen.code, seen.message) == ("connection_lost", "The stream ended without saying how.")


@both
async def test_silence_is_taken_for_a_lost_connection(twin: Twin) -> None:
    back = opened(), delta(1, "back"), done(2), end()
    async with scripted(twin, (opened(), start(), hang()), back, silence_seconds=0.2) as (_, client):
        assert (await client.stream("hi").collect()).text == "back"


@both
async def test_attaching_is_tried_again_and_ends_with_what_was_said_last(twin: Twin) -> None:
    async with scripted(twin, (reset(),), (opened(), from_cursor)) as (relay, client):
        assert (await client.attach("s_1").collect()).text == TEXT.replace("|", "")
        relay.script((reset(),), refused(503, "overloaded", retryable=True))
        _, seen = await read(client.attach("s_1"))
        relay.script(refused(404, "not_found"))
        _, gone = await read(client.attach("s_1"))
    assert (seen and (seen.code, seen.status)) == ("overloaded", 503)
    assert gone
    assert gone.code == "not_found"


@both
async def test_a_stream_that_was_left_is_not_opened_again(twin: Twin) -> None:
    async with scripted(twin, (opened(), start(), delta(1, "Half"), hang())) as (relay, client):
        async with client.stream("hi") as stream:
            await anext(stream)
        await relay.wait_for(lambda relay: relay.aborted == 1 and not relay.connections)
        _, seen = await read(stream)
        assert len(relay.requests) == 1
    assert seen
    assert seen.code == "connection_lost"


def test_waits_double_up_to_a_limit_and_heed_retry_after(monkeypatch: pytest.MonkeyPatch) -> None:
    persistence = Persistence(reconnects=9, backoff_seconds=0.25)
    for jitter, factor in (("lowest", 0.5), ("highest", 1.0)):
        monkeypatch.setattr(random, "uniform", lambda low, high, name=jitter: low if name == "lowest" else high)
        waits = [persistence.pause(failures, 0).seconds for failures in (0, 1, 2, 5, 6, 5000)]
        assert waits == [seconds * factor for seconds in (0.25, 0.5, 1, 8, 8, 8)]
    assert persistence.pause(0, 7).seconds == 7
    assert persistence.pause(0, 3600).seconds == 30


def test_a_problem_keeps_what_it_said_when_text_had_come() -> None:
    problem = connection_lost("Gone.")
    assert (problem.partial, problem.with_text().partial, problem.with_text().message) == (False, True, "Gone.")
