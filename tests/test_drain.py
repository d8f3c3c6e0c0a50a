"""What SIGTERM means for each kind of connection: served, finished, told, or closed."""

import asyncio
import contextlib
import json
import select
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from app import listener, server
from app.listener import listen
from app.main import create_app
from app.parting import LAST_CHUNK
from tests.relay import Relay, chat, connect, event_of, fetch, running, settings_for, text_of, until
from tests.served import SERVE, forked
from tests.test_server import refused
from tests.upstream import Upstream, answer, chunk, finish, hang, head, wait

BODY = b'{"message": "hi", "model": "m"}'

COMPLETION = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
UI = {"id": "c", "messages": [{"id": "1", "role": "user", "parts": [{"type": "text", "text": "hi"}]}]}
RUN = {
    **{"threadId": "t", "runId": "r", "state": {}, "tools": [], "context": [], "forwardedProps": {}},
    "messages": [{"id": "1", "role": "user", "content": "hi"}],
}

STREAMS = 20

PATIENT = {"drain_grace_seconds": 60}
"""Tenfold of what anything here takes, and more."""


def told(relay: Relay) -> None:
    """As the signal does."""
    relay.handle_exit(signal.SIGTERM, None)


async def gone(relay: Relay) -> None:
    """Waits until the relay has closed every connection by itself."""
    await until(lambda: not relay.server_state.connections, 10)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test need wait as long as a balancer is waited for."""
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.5)


# What is under way, and what comes


async def test_a_request_on_an_open_connection_is_served_in_a_drain_and_is_its_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "IDLE_SECONDS", 5)
    more = asyncio.Event()
    async with Upstream() as upstream, running(upstream.base_url, **PATIENT) as relay:
        upstream.script((head(), chunk("a"), wait(more), finish()), answer("late"))
        async with connect(relay.port) as streaming, connect(relay.port) as kept:
            response = await streaming.request("POST", "/chat/stream", chat())
            await (await kept.request("GET", "/healthz")).read()
            told(relay)
            await until(lambda: relay.streams.draining)
            late = await kept.request("POST", "/chat/stream", chat())
            assert (late.status, late.headers["connection"]) == (200, "close")
            assert text_of(await late.events()) == "late"
            assert await kept.rest() == b""
            more.set()
            assert [event["type"] for event in (await response.events())[-2:]] == ["done", "[DONE]"]


async def test_a_request_that_is_still_being_sent_is_served_in_a_drain() -> None:
    async with Upstream() as upstream, running(upstream.base_url, **PATIENT) as relay, connect(relay.port) as slow:
        upstream.script(answer("late"))
        slow.write("POST", "/chat/stream", BODY[:20], {"content-length": str(len(BODY))})
        await until(lambda: relay.server_state.tasks)
        told(relay)
        answered = asyncio.create_task(slow.head())
        assert not (await asyncio.wait([answered], timeout=2 * server.IDLE_SECONDS))[0]
        slow.writer.write(BODY[20:])
        assert text_of(await (await answered).events()) == "late"


async def test_a_stream_under_way_is_the_last_answer_of_its_connection() -> None:
    """Else a balancer would send the next request on it when there is hardly any of the grace left."""
    more = asyncio.Event()
    async with Upstream() as upstream, running(upstream.base_url, **PATIENT) as relay, connect(relay.port) as streaming:
        upstream.script((head(), chunk("a"), wait(more), finish()))
        response = await streaming.request("POST", "/chat/stream", chat())
        told(relay)
        await until(lambda: relay.streams.draining)
        more.set()
        assert [event["type"] for event in (await response.events())[-2:]] == ["done", "[DONE]"]
        assert await streaming.rest() == b""


async def test_a_connection_without_a_request_is_closed_while_streams_go_on() -> None:
    more = asyncio.Event()
    async with Upstream() as upstream, running(upstream.base_url, **PATIENT) as relay:
        upstream.script((head(), chunk("a"), wait(more), finish()))
        async with connect(relay.port) as streaming, connect(relay.port) as kept, connect(relay.port) as unused:
            response = await streaming.request("POST", "/chat/stream", chat())
            await (await kept.request("GET", "/healthz")).read()
            told(relay)
            assert (await kept.rest(), await unused.rest()) == (b"", b"")
            more.set()
            assert [event["type"] for event in (await response.events())[-2:]] == ["done", "[DONE]"]


async def test_who_has_come_before_the_relay_had_started_is_served_though_it_was_told_to_stop() -> None:
    async with Upstream() as upstream:
        settings = settings_for(upstream.base_url, **PATIENT)
        listening = listen("127.0.0.1", 0)
        relay = Relay(create_app(settings), settings, listening)
        async with connect(relay.port) as early:
            told(relay)
            early.write("GET", "/readyz")
            serving = asyncio.create_task(relay.serve())
            response = await early.head()
            assert (response.status, response.headers["connection"]) == (503, "close")
            await asyncio.wait_for(serving, 10)


# What a balancer may do meanwhile


async def test_nobody_connects_between_the_last_accept_and_the_close() -> None:
    """Whose connection is made, and reset with its request on it, is not sent elsewhere."""
    listening = listen("127.0.0.1", 0)
    with listening, socket.create_connection(listening.getsockname()), socket.socket() as late:
        await until(lambda: _readable(listening))
        listener._let_nobody_in(listening)
        late.setblocking(False)
        late.connect_ex(listening.getsockname())
        listening.accept()[0].close()
        with pytest.raises(BlockingIOError):
            listening.accept()


async def test_the_end_of_an_answer_comes_with_that_of_its_connection(tmp_path: Path) -> None:
    """A balancer that saw the first alone would take the connection for one that is free."""
    more = asyncio.Event()
    async with (
        Upstream() as upstream,
        forked(tmp_path, upstream, *SERVE) as relay,
        contextlib.AsyncExitStack() as stack,
    ):
        upstream.script((head(), chunk("a"), wait(more), finish()))
        streaming = [await stack.enter_async_context(connect(relay.port)) for _ in range(STREAMS)]
        for connection in streaming:
            await connection.request("POST", "/chat/stream", chat())
        relay.process.send_signal(signal.SIGTERM)
        await refused(relay.port)
        sockets = [connection.writer.get_extra_info("socket").dup() for connection in streaming]
        for connection, own in zip(streaming, sockets, strict=True):
            connection.stop_reading()
            own.setblocking(False)
        ends = [asyncio.create_task(ends_together(own)) for own in sockets]
        more.set()
        assert [await end for end in ends] == [True] * STREAMS
        assert await relay.code() == 0


async def ends_together(own: socket.socket) -> bool:
    """Whether the connection is known to be over when the end of the answer is read."""
    loop, poll, read = asyncio.get_running_loop(), select.poll(), b""
    poll.register(own, select.POLLRDHUP)
    with own:
        while not read.endswith(LAST_CHUNK):
            piece = await loop.sock_recv(own, 65536)
            assert piece, read
            read += piece
        return bool(poll.poll(0))


def _readable(own: socket.socket) -> bool:
    return bool(select.select([own], [], [], 0)[0])


# Who waits in the queue


async def test_who_waits_for_a_place_keeps_it_in_a_drain() -> None:
    more = asyncio.Event()
    one_place = {"max_streams": 1, "max_queued": 1, "queue_timeout_seconds": 60}
    async with Upstream() as upstream, running(upstream.base_url, **PATIENT, **one_place) as relay:
        upstream.script((head(), chunk("a"), wait(more), finish()), answer("b"))
        async with connect(relay.port) as first, connect(relay.port) as second:
            response = await first.request("POST", "/chat/stream", chat())
            second.write("POST", "/chat/stream", chat())
            await until(lambda: relay.streams.means.capacity.queued == 1)
            told(relay)
            await until(lambda: relay.streams.draining)
            more.set()
            await response.read()
            queued = await second.head()
            assert (queued.status, queued.headers["connection"]) == (200, "close")
            assert text_of(await queued.events()) == "b"


async def test_who_still_waits_for_a_place_after_the_grace_is_told_to_come_back() -> None:
    one_place = {"max_streams": 1, "max_queued": 1, "queue_timeout_seconds": 60, "hold_status_seconds": 60}
    async with Upstream() as upstream, running(upstream.base_url, drain_grace_seconds=0.2, **one_place) as relay:
        upstream.script((head(), chunk("a"), hang()))
        async with connect(relay.port) as first, connect(relay.port) as second:
            await first.request("POST", "/chat/stream", chat())
            second.write("POST", "/chat/stream", chat())
            await until(lambda: relay.streams.means.capacity.queued == 1)
            told(relay)
            queued = await second.head()
            assert (queued.status, queued.headers["retry-after"]) == (503, "1")
            assert (await queued.json())["error"]["code"] == "draining"


# What does not end by itself


async def test_what_outlives_the_grace_is_told_so_in_its_dialects_own_form() -> None:
    asked = [
        ("/chat/stream", chat()),
        ("/v1/chat/completions", COMPLETION | {"stream": True}),
        ("/v1/chat/completions", COMPLETION),
        ("/api/chat", UI),
        ("/ag-ui", RUN),
    ]
    async with Upstream() as upstream, running(upstream.base_url, drain_grace_seconds=0.2, default_model="m") as relay:
        upstream.script((head(), chunk("a"), hang()))
        answers = [asyncio.create_task(fetch(relay.port, "POST", path, body)) for path, body in asked]
        await until(lambda: sum(running.log.carrying for running in relay.generations) == len(asked), 5)
        told(relay)
        native, openai, whole, ui, run = [await answer for answer in answers]
        await upstream.wait_for(lambda u: u.aborted == len(asked))
    assert [answer.status for answer, _ in (native, openai, whole, ui, run)] == [200, 200, 503, 200, 200]
    *_, error, done = native[1].decode().rstrip().split("\n\n")
    assert (is_draining(event_of(error)["error"]), done) == (True, "data: [DONE]")
    *_, error = openai[1].decode().rstrip().split("\n\n")
    assert is_draining(json.loads(error.removeprefix("data: "))["error"])
    assert is_draining(json.loads(whole[1])["error"] | {"partial": True})
    assert whole[0].headers["retry-after"] == "1"
    *_, error, done = ui[1].decode().rstrip().split("\n\n")
    assert error == 'data: {"type":"error","errorText":"draining: the relay is shutting down"}'
    assert done == "data: [DONE]"
    *_, error = run[1].decode().rstrip().split("\n\n")
    last = json.loads(error.removeprefix("data: "))
    assert (last["type"], is_draining(last["metadata"]["sse-relay"])) == ("RUN_ERROR", True)


def is_draining(error: dict[str, Any]) -> bool:
    """As what can be asked again, and has brought text."""
    return (error["code"], error["retryable"], error["partial"]) == ("draining", True, True)


async def test_a_client_that_takes_nothing_holds_up_no_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LAST_WORDS_SECONDS", 0.3)
    async with Upstream() as upstream, running(upstream.base_url, drain_grace_seconds=0.2) as relay:
        upstream.script((head(), *[chunk("x" * 8000)] * 500, hang()))
        async with connect(relay.port) as deaf:
            deaf.stop_reading()
            deaf.write("POST", "/chat/stream", chat())
            await until(lambda: relay.blocked, 5)
            told(relay)
            await gone(relay)
            await until(lambda: not relay.server_state.tasks)
            await upstream.wait_for(lambda u: u.aborted == 1)
