"""The Python client against a relay by script: what it asks, what it makes of the answers, and each failure by name."""

import asyncio

import pytest

from app.client import Answer, AsyncRelayClient, Message, RelayClient, Timings, ToolCall, Usage
from app.client.wire import Lines
from tests.relay_script import (
    STREAM_HEADERS,
    TIMINGS,
    USAGE,
    delta,
    done,
    end,
    failed,
    opened,
    problem,
    refused,
    say,
    start,
    url_of,
    whole,
)
from tests.test_client_twins import Twin, both, client_of, read, scripted, text_of
from tests.upstream import Answer as Steps
from tests.upstream import Upstream, hang, head, reset, send, status

CALLS = (
    say("tool_call", 3, tool_call={"index": 1, "id": "call_2", "name": "g", "arguments": ""}),
    say("tool_call", 4, tool_call={"index": 0, "id": "call_1", "name": "f", "arguments": '{"a"'}),
    say("tool_call", 5, tool_call={"index": 0, "arguments": ":1}"}),
)


@both
async def test_an_answer_is_the_content_of_its_events(twin: Twin) -> None:
    async with scripted(twin, whole("Hel", "lo \u2028✓")) as (_, client):
        stream = client.stream("hi")
        events, failure = await read(stream)
    assert (text_of(events), failure) == ("Hello \u2028✓", None)
    assert [event.type for event in events] == ["start", "delta", "delta", "done"]
    assert events[1].json == '{"type":"delta","content":"Hel","seq":1}'
    assert (stream.id, stream.seq) == ("s_1", 3)


@both
async def test_collected_an_answer_has_all_its_parts(twin: Twin) -> None:
    thoughts = say("reasoning", 1, reasoning="Let me "), say("reasoning", 2, reasoning="see.")
    rest = delta(6, "No"), say("refusal", 7, refusal="I will not."), say("later", None), done(8, "tool_calls"), end()
    async with scripted(twin, (opened(), start(), *thoughts, *CALLS, *rest)) as (_, client):
        collected = await client.stream("hi").collect()
    assert collected == Answer(
        id="s_1",
        status="done",
        model="m",
        text="No",
        reasoning="Let me see.",
        refusal="I will not.",
        tool_calls=(ToolCall(0, "call_1", "f", '{"a":1}'), ToolCall(1, "call_2", "g", "")),
        finish_reason="tool_calls",
        usage=Usage(**USAGE),  # type: ignore[arg-type]
        timings=Timings(**TIMINGS),
    )


@both
async def test_the_request_is_the_contracts(twin: Twin) -> None:
    picture = {"role": "user", "content": [{"type": "text", "text": "And this?"}]}
    async with scripted(twin, whole("ok"), headers={"authorization": "Bearer k"}) as (relay, client):
        await client.stream([Message("user", "hi"), picture], model="m", temperature=None).collect()
        request = relay.requests[0]
    assert (request.method, request.path) == ("POST", "/chat/stream")
    assert (request.headers["accept"], request.headers["authorization"]) == ("text/event-stream", "Bearer k")
    assert request.headers["accept-encoding"] == "identity"
    messages = [{"role": "user", "content": "hi"}, picture]
    assert request.body == {"messages": messages, "model": "m", "on_disconnect": "wait"}


@both
async def test_no_cookie_ties_a_stream_to_this_client(twin: Twin) -> None:
    cookie = head(headers=STREAM_HEADERS | {"set-cookie": "relay_subject=0123; Path=/"})
    async with scripted(twin, (cookie, start(), done(1), end())) as (relay, client):
        for _ in range(2):
            await client.stream("hi").collect()
        assert "cookie" not in relay.requests[1].headers


@both
async def test_attach_reads_from_behind_its_cursor(twin: Twin) -> None:
    async with scripted(twin, (opened(), delta(3, "rest"), done(4), end())) as (relay, client):
        stream = client.attach("s/1", after=2)
        events, _ = await read(stream)
        assert (relay.requests[0].method, relay.requests[0].path) == ("GET", "/chat/stream/s%2F1?after=2")
    assert ([event.seq for event in events], stream.seq) == ([3, 4], 4)


@both
async def test_behind_its_end_a_stream_has_nothing(twin: Twin) -> None:
    async with scripted(twin, status(204)) as (relay, client):
        over = client.attach("s_1", after=4)
        assert await read(over) == ([], None)
        await relay.wait_for(lambda relay: not relay.connections)


@both
async def test_a_result_is_what_there_is_by_now(twin: Twin) -> None:
    call = b'{"index":0,"id":"call_1","name":"f","arguments":"{}"}'
    body = b'{"id":"s_1","status":"running","text":"Half","usage":null,"tool_calls":[%b],"later":1}' % call
    async with scripted(twin, status(200, body), refused(410, "not_resumable"), status(200, b"[]")) as (relay, client):
        half = await client.result("s_1")
        for code in ("not_resumable", "not_a_relay"):
            with pytest.raises(Exception, match=code):
                await client.result("s_1")
        assert relay.requests[0].path == "/chat/stream/s_1/result"
    assert half == Answer(id="s_1", status="running", text="Half", tool_calls=(ToolCall(0, "call_1", "f", "{}"),))


@both
async def test_an_error_event_is_seen_and_then_raised(twin: Twin) -> None:
    ending = failed(2, "upstream_timeout", partial=True, retryable=True)
    async with scripted(twin, (opened(), start(), delta(1, "Hel"), ending, end())) as (_, client):
        stream = client.stream("hi")
        events, failure = await read(stream)
        assert failure
        assert (failure.code, failure.partial, failure.retryable, failure.status) == (
            "upstream_timeout",
            True,
            True,
            None,
        )
        with pytest.raises(Exception, match="upstream_timeout"):  # whoever reads on is told again
            await stream.collect()
    assert events[-1].type == "error"
    assert (stream.answer.status, stream.answer.text, stream.answer.error) == ("error", "Hel", failure.error)


@both
@pytest.mark.parametrize("shape", ["json", "event"])
async def test_a_refusal_is_raised_with_all_it_says(twin: Twin, shape: str) -> None:
    said = b'{"error":{"code":"rate_limited","message":"Slowly.","retryable":true,"param":"model","later":1}}'
    body = said if shape == "json" else b"data: " + said + b"\n\ndata: [DONE]\n\n"
    async with scripted(twin, status(429, body, {"retry-after": "7", "x-stream-id": "s_1"})) as (relay, client):
        events, seen = await read(client.stream("hi"))
        assert len(relay.requests) == 1  # a question is not asked twice by itself
    assert (events, seen and seen.error.param) == ([], "model")
    assert seen
    assert (seen.code, seen.message, seen.status, seen.retry_after_s) == ("rate_limited", "Slowly.", 429, 7.0)
    assert (seen.retryable, seen.partial) == (True, False)


@both
@pytest.mark.parametrize(
    "answer",
    [
        status(200, b"<html>", {"content-type": "text/html"}),
        status(302, b"", {"location": "/elsewhere"}),
        status(404, b'{"detail":"Not Found"}'),
        (opened(), send(b"data: {no json}\n\n")),
        (opened(), send(b'data: {"type":7}\n\n')),
        (opened(), send(b"data: \xff\n\n")),
        (opened(), send(b'data: {"x":' + b"[" * 2**16 + b"\n\n")),
        status(500, b'{"x":' + b"[" * 2**16),
        (opened(), send(b"data: " + b"x" * 2**20), send(b"y" * 2**16)),
        (head(404, {}), send(b"x" * 2**20), hang()),
    ],
    ids=[
        "html",
        "redirect",
        "other service",
        "no json",
        "no event",
        "no text",
        "nested",
        "nested refusal",
        "endless line",
        "endless refusal",
    ],
)
async def test_what_is_no_relay_is_told_apart(twin: Twin, answer: Steps) -> None:
    async with scripted(twin, answer) as (_, client):
        _, seen = await read(client.stream("hi"))
    assert seen
    assert (seen.code, seen.retryable) == ("not_a_relay", False)


@both
async def test_text_before_what_is_no_event_is_not_lost(twin: Twin) -> None:
    payload = f'data: {{"type":"delta","content":"Half","seq":1}}\n\ndata: {problem("x")}\n\n'.encode()
    async with scripted(twin, (opened(), start(), send(payload))) as (_, client):
        events, seen = await read(client.stream("hi"))
    assert text_of(events) == "Half"
    assert seen
    assert (seen.code, seen.partial) == ("not_a_relay", True)


@both
async def test_nothing_listening_is_unreachable(twin: Twin) -> None:
    async with Upstream() as gone:
        url = url_of(gone)
    async with client_of(twin, url) as client:
        for asked in (client.check(), client.result("s_1"), client.stream("hi").collect()):
            with pytest.raises(Exception, match="unreachable: No relay at"):
                await asked


@pytest.mark.parametrize("kind", [RelayClient, AsyncRelayClient])
@pytest.mark.parametrize("url", ["", "localhost:8000", "http://", "http://[::1", "ftp://localhost"])
def test_what_is_no_url_is_said_at_once(kind: type[RelayClient | AsyncRelayClient], url: str) -> None:
    with pytest.raises(ValueError, match="is no URL"):
        kind(url)


@pytest.mark.parametrize("kind", [RelayClient, AsyncRelayClient])
def test_a_key_that_cannot_be_sent_is_not_in_the_refusal(kind: type[RelayClient | AsyncRelayClient]) -> None:
    with pytest.raises(ValueError, match="Authorization") as refusal:
        kind("http://127.0.0.1:8000", headers={"Authorization": "Bearer sk-secret\n"})
    assert "sk-secret" not in str(refusal.value)


@both
async def test_a_question_is_not_asked_twice(twin: Twin) -> None:
    async with scripted(twin, (reset(),)) as (relay, client):
        _, seen = await read(client.stream("hi"))
        assert len(relay.requests) == 1
    assert seen
    assert (seen.code, seen.retryable) == ("unreachable", True)


async def test_a_question_that_was_broken_off_is_not_asked_again() -> None:
    async with scripted("async", (hang(),), whole("again")) as (relay, client):
        stream = client.stream("hi")
        asking = asyncio.create_task(anext(stream))
        await relay.wait_for(lambda relay: relay.active == 1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        _, seen = await read(stream)
        assert len(relay.requests) == 1
    assert seen
    assert (seen.code, seen.retryable) == ("connection_lost", True)


@both
async def test_no_question_depends_on_a_connection_that_was_kept(twin: Twin) -> None:
    async with scripted(twin, status(204), whole("ok")) as (relay, client):
        await client.check()
        await client.stream("hi").collect()
        assert [request.connection for request in relay.requests] == [1, 2]


@both
async def test_no_stream_waits_for_others_to_end(twin: Twin) -> None:
    async with scripted(twin, (opened(), start(), hang())) as (relay, client):
        streams = [client.stream("hi") for _ in range(120)]
        for stream in streams:
            assert (await anext(stream)).type == "start"
        assert relay.active == len(streams)
        for stream in streams:
            await stream.close()


def test_lines_do_not_depend_on_where_bytes_are_cut() -> None:
    data = b'data: {"a":1}\nid: s.1\nretry: 2000\n\ndata: [DONE]\n\n'
    for cut in range(len(data)):
        lines = Lines()
        assert [*lines.receive_data(data[:cut]), *lines.receive_data(data[cut:])] == [b'{"a":1}', b"[DONE]"]
