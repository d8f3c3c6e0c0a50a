"""The Python client against a relay by script, over real sockets."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from app.client import ClientEvent, Conversation, Message, RelayClient, RelayProblem
from app.client.events import Lines
from tests.relay_script import delta, done, end, failed, opened, refused, say, start, url_of, whole
from tests.upstream import Answer, Exchange, Step, Upstream, close, head, reset, send, status, wait


@pytest.fixture
async def relay() -> AsyncIterator[Upstream]:
    async with Upstream() as scripted:
        yield scripted


@pytest.fixture
async def client(relay: Upstream) -> AsyncIterator[RelayClient]:
    async with RelayClient(url_of(relay), reconnects=2, backoff_seconds=0.01) as connected:
        yield connected


async def read(client: RelayClient, into: list[ClientEvent] | None = None) -> str:
    """The answer's text; `into` keeps the events, those before a failure too."""
    events = [] if into is None else into
    async with client.stream("hi") as stream:
        async for event in stream:
            events.append(event)
    return "".join(event.content for event in events)


async def test_an_answer_is_the_content_of_its_events(relay: Upstream, client: RelayClient) -> None:
    relay.script(whole("Hel", "lo \u2028✓"))
    events: list[ClientEvent] = []
    assert await read(client, events) == "Hello \u2028✓"
    assert [event.type for event in events] == ["start", "delta", "delta", "done"]
    assert events[-1].usage is not None
    assert events[-1].usage.completion_tokens == 9
    assert events[1].json == '{"type":"delta","content":"Hel","seq":1}'


async def test_the_request_is_the_contracts(relay: Upstream, client: RelayClient) -> None:
    relay.script(whole("ok"))
    async with client.stream([Message("user", "hi")], model="m", temperature=None) as stream:
        assert [event.content async for event in stream]
        assert stream.id == "s_1"
    request = relay.requests[0]
    assert (request.method, request.path) == ("POST", "/chat/stream")
    assert request.headers["accept"] == "text/event-stream"
    assert request.body == {"messages": [{"role": "user", "content": "hi"}], "model": "m", "on_disconnect": "wait"}


@pytest.mark.parametrize("cut", [close(), reset()], ids=["closed", "reset"])
async def test_a_lost_connection_is_resumed_after_the_last_event_seen(
    relay: Upstream, client: RelayClient, cut: Step
) -> None:
    relay.script(
        (opened(), start(), delta(1, "Hel"), send(b'data: {"type":"delta","con'), cut),
        (opened(), delta(1, "Hel"), delta(2, "lo"), done(3), end()),
    )
    assert await read(client) == "Hello"
    assert relay.requests[1].method == "GET"
    assert relay.requests[1].path == "/chat/stream/s_1?after=1"


async def test_a_relay_that_restarts_is_waited_for(relay: Upstream, client: RelayClient) -> None:
    relay.script(
        (opened(), start(), delta(1, "Hel"), close()),
        refused(503, "draining", retryable=True),
        (opened(), delta(2, "lo"), done(3), end()),
    )
    assert await read(client) == "Hello"


async def test_resuming_is_tried_a_bounded_number_of_times_in_a_row(relay: Upstream, client: RelayClient) -> None:
    relay.script((opened(), start(), delta(1, "Hel"), close()), (opened(), close()))
    with pytest.raises(RelayProblem) as caught:
        await read(client)
    assert (caught.value.code, caught.value.partial) == ("connection_lost", True)
    assert len(relay.requests) == 1 + 2


@pytest.mark.parametrize("lost", [(start(resumable=False),), (start(), say("live_only", None))])
async def test_what_is_not_resumable_is_not_asked_for_again(relay: Upstream, client: RelayClient, lost: Answer) -> None:
    relay.script((opened(), *lost, close()))
    with pytest.raises(RelayProblem, match="connection_lost"):
        await read(client)
    assert len(relay.requests) == 1


async def test_a_stream_that_expired_meanwhile_is_not_asked_for_twice(relay: Upstream, client: RelayClient) -> None:
    relay.script((opened(), start(), close()), refused(410, "not_resumable"))
    with pytest.raises(RelayProblem, match="not_resumable"):
        await read(client)
    assert len(relay.requests) == 2


async def test_an_error_event_is_seen_and_then_raised(relay: Upstream, client: RelayClient) -> None:
    relay.script((opened(), start(), delta(1, "Hel"), failed(2, "upstream_timeout", partial=True), end()))
    events: list[ClientEvent] = []
    with pytest.raises(RelayProblem) as caught:
        await read(client, events)
    assert (caught.value.code, caught.value.partial, caught.value.status) == ("upstream_timeout", True, None)
    assert events[-1].type == "error"


async def test_a_stream_without_a_terminal_event_is_no_answer(relay: Upstream, client: RelayClient) -> None:
    relay.script((opened(), start(), delta(1, "Hel"), end()))
    with pytest.raises(RelayProblem, match="connection_lost"):
        await read(client)


async def test_a_refusal_is_raised_with_its_status_and_wait(relay: Upstream, client: RelayClient) -> None:
    body = b'{"error":{"code":"rate_limited","message":"Slowly.","type":"t","retryable":true,"later_field":1}}'
    for answer in (status(429, body, {"retry-after": "7"}), refused(422, "invalid_request", param="model")):
        relay.script(answer)
        with pytest.raises(RelayProblem) as caught:
            await read(client)
        seen = caught.value
        expected = ("rate_limited", 429, True, 7.0, None), ("invalid_request", 422, False, None, "model")
        assert (seen.code, seen.status, seen.retryable, seen.retry_after_s, seen.error.param) in expected


@pytest.mark.parametrize(
    "answer",
    [
        status(200, b"<html>", {"content-type": "text/html"}),
        status(302, b"", {"location": "/elsewhere"}),
        status(404, b'{"detail":"Not Found"}'),
        (opened(), send(b"data: {no json}\n\n")),
        (opened(), send(b'data: {"type":7}\n\n')),
        (opened(), send(b"data: " + b"x" * 2**20), send(b"y" * 2**16)),
    ],
    ids=["html", "redirect", "other_service", "no_json", "no_event", "endless_line"],
)
async def test_what_is_no_relay_is_told_apart(relay: Upstream, client: RelayClient, answer: Answer) -> None:
    relay.script(answer)
    with pytest.raises(RelayProblem, match="not_a_relay"):
        await read(client)


async def test_nothing_listening_is_unreachable(relay: Upstream) -> None:
    async with Upstream() as gone:
        url = url_of(gone)
    async with RelayClient(url) as client:
        with pytest.raises(RelayProblem, match="unreachable"):
            await client.check()
        with pytest.raises(RelayProblem, match="unreachable"):
            await read(client)


async def test_stop_deletes_the_stream_and_its_end_is_read(relay: Upstream, client: RelayClient) -> None:
    deleted = asyncio.Event()

    async def release(_: Exchange) -> None:
        deleted.set()

    relay.script(
        (opened(), start(), delta(1, "Hel"), wait(deleted), done(2, "cancelled"), end()),
        (head(202, {}, content_length=0), release),
    )
    async with client.stream("hi") as stream:
        async for event in stream:
            if event.content:
                await stream.stop()
        await stream.stop()
    assert event.finish_reason == "cancelled"
    assert [(request.method, request.path) for request in relay.requests[1:]] == [("DELETE", "/chat/stream/s_1")]


async def test_leaving_early_closes_the_connection(relay: Upstream, client: RelayClient) -> None:
    relay.script((opened(), start(), delta(1, "Hel"), wait(asyncio.Event())))
    async with client.stream("hi") as stream:
        await anext(stream)
    await relay.wait_for(lambda scripted: scripted.aborted == 1 and not scripted.connections)


async def test_silence_counts_as_a_lost_connection(relay: Upstream) -> None:
    relay.script((opened(), start(), wait(asyncio.Event())), (opened(), delta(1, "back"), done(2), end()))
    async with RelayClient(url_of(relay), backoff_seconds=0.01, silence_seconds=0.1) as client:
        async with asyncio.timeout(5):
            assert await read(client) == "back"


def test_lines_do_not_depend_on_where_bytes_are_cut() -> None:
    data = b'data: {"a":1}\nid: s.1\nretry: 2000\n\ndata: [DONE]\n\n'
    for cut in range(len(data)):
        lines = Lines()
        assert [*lines.receive_data(data[:cut]), *lines.receive_data(data[cut:])] == [b'{"a":1}', b"[DONE]"]


def test_a_conversation_keeps_what_was_answered() -> None:
    conversation = Conversation("Be brief.")
    assert conversation.asking("A?") == conversation.asking("A?")
    conversation.keep("A?", "a")
    assert [message.content for message in conversation.asking("B?")] == ["Be brief.", "A?", "a", "B?"]
    conversation.clear()
    assert [message.role for message in conversation.asking("C?")] == ["system", "user"]
