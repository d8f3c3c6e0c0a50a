"""Clients that are slow, many, or both: who sends nothing costs a connection till its deadline, and nobody a stream."""

import asyncio
import contextlib
import re
import resource
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.hostile import HOST, JSON, Operated, operated, pulse, told
from tests.nginx import balanced
from tests.relay import Connection, chat, connect, fetch, running, text_of, until
from tests.relay import event_of as parsed
from tests.upstream import Upstream, answer, chunk, finish, head, wait

IDLE: Final = 10_000
SLOW: Final = 1000
SPARE_DESCRIPTORS: Final = 1500
STARTS_S: Final = 2.0
"""Within it a new stream begins, whoever else is connected: some 20 ms when nobody is."""

DEADLINE_S: Final = 1.0
MANY: Final = 100
AT_ONCE: Final = struct.pack("ii", 1, 0)
"""How a connection is closed: ten thousand that wait for their last packet would hold their ports for a minute."""

BEGINNINGS: Final = {
    "nothing": b"",
    "half a line": b"POST /chat/str",
    "half a head": b"POST /chat/stream HTTP/1.1\r\n" + HOST,
    "half a body": b"POST /chat/stream HTTP/1.1\r\n" + HOST + JSON + b'content-length: 99\r\n\r\n{"mess',
    "half a chunk": b"POST /ag-ui HTTP/1.1\r\n" + HOST + JSON + b"transfer-encoding: chunked\r\n\r\nff\r\n{",
}


@contextlib.contextmanager
def crowd(port: int, count: int, beginnings: tuple[bytes, ...]) -> Iterator[list[socket.socket]]:
    """So many connections, each of which has sent one of these in its turn, and sends no more."""
    with contextlib.ExitStack() as stack:
        sockets: list[socket.socket] = []
        for number in range(count):
            sockets.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10)))
            sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
            sockets[-1].sendall(beginnings[number % len(beginnings)])
            sockets[-1].setblocking(False)
        yield sockets


@pytest.fixture
def descriptors() -> Iterator[None]:
    """As many for this process, and for nginx which inherits them, as ten thousand connections need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = IDLE + SPARE_DESCRIPTORS
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"a process may have {hard} descriptors here, and {needed} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def starts_within(port: int, most_s: float) -> None:
    """A new stream, from the connect to its end."""
    begun = time.perf_counter()
    async with connect(port) as connection:
        response = await connection.request("POST", "/chat/stream", chat())
        assert (response.status, text_of(await response.events())) == (200, "Hello")
    assert time.perf_counter() - begun < most_s


def alive(sockets: list[socket.socket]) -> int:
    """How many of them the other side has not ended."""
    return sum(not _is_over(each) for each in sockets)


async def all_ended(sockets: list[socket.socket], within_s: float) -> None:
    async with asyncio.timeout(within_s):
        while alive(sockets):  # noqa: ASYNC110 — they are the kernel's, and set no event
            await asyncio.sleep(0.02)


def _is_over(client: socket.socket) -> bool:
    try:
        while client.recv(65_536):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return True


async def test_behind_ten_thousand_idle_connections_through_nginx_a_new_stream_starts(descriptors: None) -> None:
    beginnings = tuple(BEGINNINGS[name] for name in ("nothing", "half a line", "half a head", "half a body"))
    async with (
        Upstream() as upstream,
        running(upstream.base_url, log_level="error") as relay,
        balanced([relay.port], connections=IDLE + SPARE_DESCRIPTORS) as port,
    ):
        upstream.script(answer("Hel", "lo"))
        idle = await asyncio.to_thread(_entered, crowd(port, IDLE, beginnings))
        with contextlib.closing(idle):
            await starts_within(port, STARTS_S)
            _, page = await fetch(port, "GET", "/connections")
            [active] = re.findall(rb"Active connections: ([0-9]+)", page)
            assert int(active) > IDLE
            assert alive(idle.sockets) == IDLE
            assert len(relay.server_state.connections) < MANY  # nginx keeps them to itself
            await starts_within(port, STARTS_S)


class Crowd:
    """A crowd that was gathered in another thread, so that the relay could go on meanwhile."""

    def __init__(self, entered: contextlib.ExitStack, sockets: list[socket.socket]) -> None:
        self.sockets: Final = sockets
        self.close: Final = entered.close


def _entered(gathering: contextlib.AbstractContextManager[list[socket.socket]]) -> Crowd:
    stack = contextlib.ExitStack()
    return Crowd(stack, stack.enter_context(gathering))


@pytest.fixture(scope="module")
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
async def relay(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Operated]:
    """With deadlines of a second, and room for some more than a thousand."""
    limits = {
        "RELAY_HEAD_TIMEOUT_SECONDS": str(DEADLINE_S),
        "RELAY_BODY_TIMEOUT_SECONDS": str(DEADLINE_S),
        "RELAY_MAX_CONNECTIONS": str(SLOW + MANY),
        "RELAY_LOG_LEVEL": "error",
    }
    async with operated(tmp_path_factory.mktemp("slow"), upstream, **limits) as relay:
        yield relay


async def test_a_thousand_slow_heads_and_bodies_are_cut_at_the_deadline_and_hold_nobody_up(
    upstream: Upstream, relay: Operated
) -> None:
    upstream.script(answer("Hel", "lo"))
    async with pulse(relay.port) as felt:
        idle = await asyncio.to_thread(_entered, crowd(relay.port, SLOW, tuple(BEGINNINGS.values())))
        with contextlib.closing(idle):
            gathered = time.perf_counter()
            assert alive(idle.sockets) > SLOW // 2
            await starts_within(relay.port, STARTS_S)
            await all_ended(idle.sockets, 10 * DEADLINE_S)
            assert time.perf_counter() - gathered < 4 * DEADLINE_S
    assert felt.worst_s < STARTS_S
    await starts_within(relay.port, STARTS_S)


async def test_a_byte_now_and_then_buys_no_time(relay: Operated) -> None:
    beginnings = [BEGINNINGS[name] for name in ("half a line", "half a head", "half a body", "half a chunk")]
    for took_s in await asyncio.gather(*(cut_after(relay.port, beginning) for beginning in beginnings)):
        assert 0.8 * DEADLINE_S < took_s < 4 * DEADLINE_S


async def cut_after(port: int, beginning: bytes) -> float:
    """How many seconds one was listened to who sent a byte now and then."""
    begun = time.perf_counter()
    async with connect(port) as connection:
        connection.writer.write(beginning)
        dripping = asyncio.create_task(drip(connection))
        await told(connection, 10 * DEADLINE_S)
        took_s = time.perf_counter() - begun
        dripping.cancel()
        await asyncio.wait([dripping])
    return took_s


async def drip(connection: Connection) -> None:
    with contextlib.suppress(ConnectionError):
        while True:
            connection.writer.write(b"a")
            await connection.writer.drain()
            await asyncio.sleep(0.05)


async def test_when_all_connections_are_taken_streams_go_on_and_room_comes_back(
    upstream: Upstream, tmp_path: Path
) -> None:
    more = asyncio.Event()
    upstream.script((head(), chunk("Hel"), wait(more), chunk("lo"), finish()), answer("Hel", "lo"))
    limits = {"RELAY_MAX_CONNECTIONS": str(MANY), "RELAY_LOG_LEVEL": "error"}
    async with operated(tmp_path, upstream, **limits) as relay, connect(relay.port) as streaming:
        response = await streaming.request("POST", "/chat/stream", chat())
        blocks = response.blocks()
        while parsed(await anext(blocks)).get("content") != "Hel":
            pass
        with crowd(relay.port, MANY - 1, (b"GET / HT",)) as idle, crowd(relay.port, MANY, (b"",)) as too_many:
            await all_ended(too_many, 5)
            assert alive(idle) == MANY - 1
            more.set()
            rest = [parsed(block) async for block in blocks]
            assert (text_of(rest), rest[-1]["type"]) == ("lo", "[DONE]")
        await until_it_answers(relay.port)
        await starts_within(relay.port, STARTS_S)


async def until_it_answers(port: int) -> None:
    async with asyncio.timeout(5):
        while True:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await fetch(port, "GET", "/healthz")
                return


async def test_who_does_not_read_what_he_asked_for_a_thousand_times_is_cut_off() -> None:
    """Answers are small beside what a socket holds: it takes many requests for one to wait, and none waits for long."""
    async with (
        Upstream() as upstream,
        running(upstream.base_url, send_timeout_seconds=0.2, log_level="error") as relay,
        contextlib.AsyncExitStack() as stack,
    ):
        upstream.script((head(), *[chunk("x" * 60_000)] * 40, finish()))
        for _ in range(20):
            greedy = await stack.enter_async_context(connect(relay.port))
            greedy.stop_reading()
            greedy.write("POST", "/chat/stream", chat())
        await upstream.wait_for(lambda seen: seen.opened == 20)
        await until(lambda: not relay.generations, 10)
        assert upstream.active == 0
        await until(lambda: not relay.server_state.connections, 10)
