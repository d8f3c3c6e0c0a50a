"""The server itself: its sockets and signals, its patience with what is no HTTP, and its fairness under a flood.

What concerns signals runs as the process that an operator starts.
"""

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.relay import Connection, chat, connect, event_of, fetch, running, text_of, until
from tests.served import END_SECONDS, SERVE, served
from tests.upstream import Exchange, Step, Upstream, answer, chunk, finish, hang, head, repeat, send, wait


async def begun(connection: Connection, model: str = "m") -> tuple[str, AsyncIterator[str]]:
    """A stream of which the first text has come."""
    response = await connection.request("POST", "/chat/stream", chat(model=model))
    assert response.status == 200
    blocks = response.blocks()
    assert event_of(await anext(blocks))["type"] == "start"
    assert event_of(await anext(blocks))["type"] == "delta"
    return response.headers["x-stream-id"], blocks


async def refused(port: int) -> None:
    """Until nobody listens any more."""
    async with asyncio.timeout(END_SECONDS):
        with contextlib.suppress(ConnectionRefusedError):
            while True:
                with contextlib.suppress(ConnectionResetError):  # it came between the last accept and the close
                    async with connect(port):
                        pass


# Signals


async def test_sigterm_lets_a_stream_finish_and_ends_well(tmp_path: Path) -> None:
    more = asyncio.Event()
    heartbeat = {"RELAY_HEARTBEAT_SECONDS": "0.1"}
    async with Upstream() as upstream, served(tmp_path, upstream, *SERVE, **heartbeat) as relay:
        upstream.script((head(), chunk("Hel"), wait(more), chunk("lo"), finish()))
        async with connect(relay.port) as streaming, connect(relay.port) as probing:
            ready = await probing.request("GET", "/readyz")
            assert (ready.status, await ready.json()) == (200, {"status": "ready"})
            _, blocks = await begun(streaming)
            probing.writer.write(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\n")  # what has begun to come is waited for
            relay.process.send_signal(signal.SIGTERM)
            await refused(relay.port)
            for _ in range(4):  # uvicorn looks every 0.1 s whether it is to stop
                assert event_of(await anext(blocks))["type"] == "ping"
            probing.writer.write(b"\r\n")
            unready = await probing.head()
            assert (unready.status, await unready.json()) == (503, {"status": "draining"})
            assert unready.headers["connection"] == "close"
            more.set()
            events = [event_of(block)["type"] async for block in blocks]
            assert [kind for kind in events if kind != "ping"] == ["delta", "done", "[DONE]"]
        assert await relay.code() == 0
    assert upstream.aborted == 0


async def test_what_runs_after_the_grace_ends_as_draining(tmp_path: Path) -> None:
    grace = {"RELAY_DRAIN_GRACE_SECONDS": "0.2"}
    async with (
        Upstream() as upstream,
        served(tmp_path, upstream, *SERVE, **grace) as relay,
        connect(relay.port) as connection,
    ):
        upstream.script((head(), chunk("Hel"), hang()))
        _, blocks = await begun(connection)
        relay.process.send_signal(signal.SIGTERM)
        end, last = [event_of(block) async for block in blocks]
        assert (end["type"], last["type"]) == ("error", "[DONE]")
        error = end["error"]
        assert (error["code"], error["retryable"], error["partial"]) == ("draining", True, True)
        assert await relay.code() == 0
        await upstream.wait_for(lambda u: u.aborted == 1)


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_at_once(tmp_path: Path, kind: signal.Signals) -> None:
    async with (
        Upstream() as upstream,
        served(tmp_path, upstream, *SERVE, RELAY_DRAIN_GRACE_SECONDS="600") as relay,
        connect(relay.port) as connection,
    ):
        upstream.script((head(), chunk("Hel"), hang()))
        _, blocks = await begun(connection)
        relay.process.send_signal(kind)
        await refused(relay.port)
        relay.process.send_signal(kind)
        assert await relay.code() == 0
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionResetError):
            assert [event_of(block)["type"] async for block in blocks] in ([], ["error", "[DONE]"])
        await upstream.wait_for(lambda u: u.aborted == 1)


async def test_an_idle_relay_ends_at_once(tmp_path: Path) -> None:
    async with (
        Upstream() as upstream,
        served(tmp_path, upstream, *SERVE, RELAY_DRAIN_GRACE_SECONDS="600") as relay,
        connect(relay.port) as idle,
    ):
        await (await idle.request("GET", "/healthz")).read()
        relay.process.send_signal(signal.SIGTERM)
        assert await relay.code() == 0


async def test_who_has_connected_before_the_drain_is_served_in_it() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        port = relay.port
        waiting = socket.create_connection(("127.0.0.1", port))  # by the kernel: the loop has had no turn
        relay._begin_drain()
        connection = Connection(*await asyncio.open_connection(sock=waiting))
        response = await connection.request("GET", "/readyz")
        assert (response.status, response.headers["connection"]) == (503, "close")
        connection.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_the_drain_cuts_no_replay_short() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as slow:
        upstream.script((head(), repeat(chunk("x" * 4000), 300), finish()))
        path, whole = await full_log(relay.port)
        replaying = await slow.request("GET", path)
        await until(lambda: relay.blocked)
        relay._begin_drain()
        assert relay._drain is not None
        await relay._drain
        assert await replaying.read() == whole


async def test_plain_uvicorn_serves_the_application_and_notices_departures(tmp_path: Path) -> None:
    command = ("uvicorn", "--factory", "app.main:create_app", "--port", "0")
    async with Upstream() as upstream, served(tmp_path, upstream, *command) as relay:
        upstream.script(answer("Hel", "lo"))
        response, body = await fetch(relay.port, "POST", "/chat/stream", chat())
        events = [event_of(block) for block in body.decode().split("\n\n")[:-1]]
        assert (response.status, text_of(events), events[-1]) == (200, "Hello", {"type": "[DONE]"})
        upstream.script((head(), chunk("a"), hang()))
        async with connect(relay.port) as connection:
            await connection.request("POST", "/chat/stream", chat(on_disconnect="cancel"))
        await upstream.wait_for(lambda u: u.aborted == 1)
        relay.process.send_signal(signal.SIGTERM)
        await relay.code()


# HTTP


async def test_two_streams_share_a_connection() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as connection:
        upstream.script(answer("one"), answer("two"))
        for wanted in ("one", "two"):
            response = await connection.request("POST", "/chat/stream", chat())
            assert text_of(await response.events()) == wanted


HEADS = [
    b"GET /%s HTTP/1.1\r\nhost: localhost\r\n\r\n" % (b"a" * 2048),
    b"GET / HTTP/1.1\r\nhost: localhost\r\nx-long: %s\r\n\r\n" % (b"a" * 2048),
    b"GET / HTTP/1.1\r\nhost: localhost\r\n%s\r\n" % (b"x-many: a\r\n" * 200),
    b"GET / HTTP/1.1\r\nhost: localhost\r\nx-endless: %s" % (b"a" * 70_000),
    b"GET / HTTP/1.1\r\nhost: localhost\r\n%s" % (b"x" * 70_000),
]


@pytest.mark.parametrize("data", HEADS, ids=["line", "header", "headers", "endless value", "endless name"])
async def test_a_head_beyond_its_bound_is_refused(data: bytes) -> None:
    async with Upstream() as upstream, running(upstream.base_url, max_header_bytes=1024) as relay:
        error = await refusal(relay.port, data)
    assert (error["code"], error["param"]) == ("invalid_request", "headers")
    assert "1024" in error["message"]


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x00\xa5\x01", b"hello\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n"])
async def test_what_is_no_http_is_refused(data: bytes) -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        error = await refusal(relay.port, data)
    assert (error["code"], error["retryable"], error["param"]) == ("invalid_request", False, None)


async def refusal(port: int, data: bytes) -> dict[str, Any]:
    """The error in the answer to these bytes, which is the last on its connection."""
    async with connect(port) as connection:
        connection.writer.write(data)
        response = await connection.head()
        assert (response.status, response.headers["content-type"]) == (400, "application/json")
        assert response.headers["connection"] == "close"
        body = await response.json()
        with contextlib.suppress(ConnectionResetError):
            assert await connection.reader.read() == b""
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize("data", [b"\x00\x01garbage\r\n\r\n", b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"])
async def test_garbage_or_another_request_while_a_stream_runs_closes_the_connection(data: bytes) -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as connection:
        upstream.script((head(), chunk("Hel"), hang()))
        await begun(connection)
        connection.writer.write(data)
        async with asyncio.timeout(END_SECONDS):
            with contextlib.suppress(ConnectionResetError):
                assert b"HTTP/1.1" not in await connection.reader.read()
        await upstream.wait_for(lambda u: u.aborted == 1)


# Fairness

FLOODS = 60
PROBES = 30
P99_SECONDS = 2.5
CANCEL_SECONDS = 5.0
"""Tenfold of what is required of 500 streams on a machine that does nothing else."""

TOKENS = 64
PIECE = b"".join(
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":" token"},"finish_reason":null}]}\n\n'
    for _ in range(TOKENS)
)


def flood(enough: asyncio.Event) -> Step:
    async def step(exchange: Exchange) -> None:
        while not enough.is_set():
            await exchange.body(PIECE)

    return step


async def test_a_flood_starves_nobody(tmp_path: Path) -> None:
    enough = asyncio.Event()
    async with (
        Upstream() as upstream,
        served(tmp_path, upstream, *SERVE) as relay,
        asyncio.TaskGroup() as clients,
        connect(relay.port) as deaf,
        connect(relay.port) as stopped,
    ):
        # What is on its way when the flood ends has to be read: megabytes a stream, if the kernel may choose.
        upstream._server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 * 1024)
        upstream.script((head(), *[send(PIECE)] * 100, finish()), (head(), flood(enough), finish()))
        upstream.script((head(), chunk("Hel"), flood(enough)), model="stopped")
        replaying = clients.create_task(replay(relay.port, *await full_log(relay.port), enough))
        deaf.write("POST", "/chat/stream", chat())
        readers = [clients.create_task(last_events(relay.port)) for _ in range(FLOODS)]
        stream_id, _ = await begun(stopped, "stopped")
        await upstream.wait_for(lambda u: u.active == FLOODS + 2, END_SECONDS)
        waits = [await probe(relay.port) for _ in range(PROBES)]
        response, _ = await fetch(relay.port, "DELETE", f"/chat/stream/{stream_id}")
        await upstream.wait_for(lambda u: u.aborted == 1, CANCEL_SECONDS)
        enough.set()
        ends = [await reader for reader in readers]
        assert await replaying > 0
    assert max(waits) < P99_SECONDS
    assert response.status == 202
    assert ends == [["done", "[DONE]"]] * FLOODS


async def probe(port: int) -> float:
    loop = asyncio.get_running_loop()
    began = loop.time()
    response, _ = await fetch(port, "GET", "/healthz")
    assert response.status == 200
    return loop.time() - began


async def last_events(port: int) -> list[str]:
    """Reads a flooding stream; how it ended."""
    async with connect(port) as connection:
        response = await connection.request("POST", "/chat/stream", chat())
        tail = b""
        async for piece in connection.pieces(response.headers):
            tail = (tail + piece)[-2000:]
    return [str(event_of(block)["type"]) for block in tail.decode().split("\n\n")[-3:-1]]


async def full_log(port: int) -> tuple[str, bytes]:
    """The path and the bytes of a long stream that is over."""
    response, whole = await fetch(port, "POST", "/chat/stream", chat(), {"accept": "text/event-stream"})
    return f"/chat/stream/{response.headers['x-stream-id']}", whole


async def replay(port: int, path: str, whole: bytes, enough: asyncio.Event) -> int:
    """Reads a full log again and again; how often."""
    times = 0
    while not enough.is_set():
        _, again = await fetch(port, "GET", path)
        assert again == whole
        times += 1
    return times
