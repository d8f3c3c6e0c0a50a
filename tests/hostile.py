"""What an attacker brings: bytes by hand, a relay as an operator runs it, and a stopwatch on its loop."""

import asyncio
import contextlib
import re
import signal
import sys
import time
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from tests.relay import Connection, connect, fetch
from tests.served import END_SECONDS, ROOT, START_SECONDS
from tests.terminal import environment
from tests.upstream import Upstream

HOST: Final = b"host: localhost\r\n"
JSON: Final = b"content-type: application/json\r\n"
CHAT: Final = b'{"message":"hi","model":"m"}'
UNKNOWN: Final = "s_" + "0" * 32
SERVE: Final = "from app import cli; cli.main()"
BETWEEN_PROBES_SECONDS: Final = 0.005
PROBE_SECONDS: Final = 30.0
MUCH_BYTES: Final = 16 * 1024 * 1024


def chunked(body: bytes) -> bytes:
    """One chunk, without the last."""
    return b"%x\r\n%b\r\n" % (len(body), body)


async def told(connection: Connection, within_s: float = 5.0) -> bytes:
    """All that still comes; a reset is an end as well."""
    kept = b""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(within_s):
            while piece := await connection.reader.read(65_536):
                kept += piece
    return kept


async def exchanged(port: int, data: bytes) -> bytes:
    """Bytes on a connection of their own, which the client ends behind them, and all that comes back."""
    async with connect(port) as connection:
        connection.writer.write(data)
        return await told(connection)


async def poured(connection: Connection, piece: bytes) -> Literal["cut short", "taken"]:
    """Sends it over and over, until the other side ends the connection or has taken more than sockets hold."""
    try:
        for _ in range(MUCH_BYTES // len(piece)):
            connection.writer.write(piece)
            async with asyncio.timeout(PROBE_SECONDS):
                await connection.writer.drain()
    except ConnectionError:
        return "cut short"
    return "taken"


class Pulse(msgspec.Struct):
    """How long a probe on another connection had to wait, at worst: what held the loop held it as well. Seconds."""

    worst_s: float = 0.0
    probes: int = 0


@contextlib.asynccontextmanager
async def pulse(port: int) -> AsyncIterator[Pulse]:
    """Asks for /healthz all the while; the last answer is waited for."""
    felt, over = Pulse(), asyncio.Event()
    async with connect(port) as connection:
        beating = asyncio.create_task(_beat(connection, felt, over))
        try:
            yield felt
        finally:
            over.set()
            await beating


async def _beat(connection: Connection, felt: Pulse, over: asyncio.Event) -> None:
    while not over.is_set():
        asked = time.perf_counter()
        connection.write("GET", "/healthz")
        async with asyncio.timeout(PROBE_SECONDS):
            answered = await connection.reader.readuntil(b'{"status":"ok"}')
        assert answered.startswith(b"HTTP/1.1 200 ")
        felt.worst_s = max(felt.worst_s, time.perf_counter() - asked)
        felt.probes += 1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BETWEEN_PROBES_SECONDS):
                await over.wait()


class Operated:
    """A relay in a process of its own. `written`: all that it has said by now, on both of its streams."""

    def __init__(self, process: Process) -> None:
        self.process: Final = process
        self.written = bytearray()
        self.port = self.admin_port = 0

    @property
    def lines(self) -> list[bytes]:
        """Behind those for whoever started it."""
        return [line for line in bytes(self.written).split(b"\n") if line and b" http://127.0.0.1:" not in line]

    def memory_bytes(self) -> int:
        """What is resident, and has been at most since `forget_peak`."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+([0-9]+) kB", status)[0]) * 1024

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    async def end(self) -> None:
        """In good order; then `written` is whole."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(END_SECONDS):
            assert await self.process.wait() == 0


@contextlib.asynccontextmanager
async def operated(folder: Path, upstream: Upstream, code: str = SERVE, **variables: str) -> AsyncIterator[Operated]:
    """`sse-relay serve`, or other code that does so; with its admin listener where a variable says so."""
    own = {"PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "test-key", "OPENAI_BASE_URL": upstream.base_url}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, "serve", "--port", "0"),
        stdout=PIPE,
        stderr=STDOUT,
        cwd=folder,
        env=environment(folder, own | {"RELAY_BREAKER_FAILURES": "0"} | variables),
    )
    assert process.stdout is not None
    relay, ready = Operated(process), asyncio.Event()
    wanted = 2 if variables.get("RELAY_ADMIN_PORT", "-1") != "-1" else 1
    reading = asyncio.create_task(_read(process.stdout, relay, ready, wanted))
    try:
        async with asyncio.timeout(START_SECONDS):
            await ready.wait()
        assert relay.port, relay.written.decode()
        yield relay
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading


async def _read(stream: asyncio.StreamReader, relay: Operated, ready: asyncio.Event, wanted: int) -> None:
    """The port is in the first line that names one, that of the admin listener in the second."""
    ports: list[int] = []
    while line := await stream.read(65_536):
        relay.written += line
        if not ready.is_set():
            ports = [int(port) for port in re.findall(rb" http://127\.0\.0\.1:([0-9]+)\n", relay.written)]
            if len(ports) == wanted:
                relay.port, relay.admin_port = ports[0], ports[-1]
                ready.set()
    ready.set()


async def status_of(port: int, method: str, path: str, body: object = None, headers: Any = None) -> int:
    return (await fetch(port, method, path, body, headers))[0].status
