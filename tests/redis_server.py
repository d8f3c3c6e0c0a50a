"""A real redis-server on a port of its own, which can be stopped, paused, emptied and filled."""

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
from redis.asyncio import Redis

from benchmarks.processes import free_port

START_SECONDS: Final = 10.0


class RedisServer:
    """Keeps what it has in `folder` while it is down, unless it is emptied."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self.client: Redis = Redis.from_url(self.url, decode_responses=True)

    async def start(self) -> None:
        options = {"port": self.port, "bind": "127.0.0.1", "dir": self._folder, "appendonly": "yes", "save": ""}
        arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        self._process = await asyncio.create_subprocess_exec(self._program, *arguments, stdout=asyncio.subprocess.PIPE)
        assert self._process.stdout is not None
        async with asyncio.timeout(START_SECONDS):
            await self._process.stdout.readuntil(b"Ready to accept connections")

    async def stop(self) -> None:
        if self._process is not None:
            self.resume()
            self._process.terminate()
            await self._process.wait()
            self._process = None

    async def empty(self) -> None:
        """Nothing of what it had, and it is running."""
        await self.stop()
        shutil.rmtree(self._folder / "appendonlydir")
        await self.start()

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    async def names(self) -> list[str]:
        """Of all that it holds, but for the leases of who lives."""
        return sorted(name for name in map(str, await self.client.keys()) if ":process:" not in name)

    async def forgets(self, within_s: float) -> None:
        """Waits until nothing is left but leases."""
        async with asyncio.timeout(within_s):
            while await self.names():
                await self.client.blpop(["nobody fills it"], timeout=0.05)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)


@contextlib.asynccontextmanager
async def redis_server(folder: Path) -> AsyncIterator[RedisServer]:
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed (tests/install)")
    data = folder / "redis"
    data.mkdir()
    server = RedisServer(program, data)
    await server.start()
    try:
        yield server
    finally:
        await server.client.aclose()
        await server.stop()
