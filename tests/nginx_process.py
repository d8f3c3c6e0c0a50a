"""nginx as a process of a test: its sockets, what it says and logs, and its reload."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

DEADLINE_SECONDS: Final = 10.0

LISTENS: Final = "event method"
"""In the first line that nginx logs after it has opened its sockets."""

RELOADED: Final = "gracefully shutting down"
"""Said by each old worker; the new ones were started before."""

COMPLAINT: Final = re.compile(r".*\[(?:error|crit|alert|emerg)\].*")


class Lines:
    """What a program writes on one of its streams, read by a task that ends with the program."""

    def __init__(self, stream: asyncio.StreamReader | None) -> None:
        assert stream is not None
        self.all: list[bytes] = []
        self._over = False
        self._news = asyncio.Event()
        self._reading = asyncio.create_task(self._read(stream), name="lines of nginx")

    @property
    def text(self) -> str:
        return b"".join(self.all).decode()

    async def until(self, holds: Callable[[], object]) -> None:
        """Looked at with every new line; AssertionError when it never holds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DEADLINE_SECONDS):
                while not holds() and not self._over:
                    self._news.clear()
                    await self._news.wait()
        assert holds(), f"nginx has not said it: {self.text}"

    async def end(self) -> None:
        await self._reading

    async def _read(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            self.all.append(line)
            self._news.set()
        self._over = True
        self._news.set()


class Nginx:
    """A process and its folder. `port` leads to the relays; `plain_port` is that of plain HTTP, in every variant."""

    def __init__(self, process: Process, folder: Path, ports: Sequence[int]) -> None:
        self.plain_port: Final = ports[0]
        self.port: Final = ports[-1]
        self._process: Final = process
        self._folder: Final = folder
        self._errors: Final = Lines(process.stderr)
        self._accesses: Final = Lines(process.stdout)

    @property
    def written(self) -> str:
        """All that it has said and logged by now."""
        return self._errors.text + self._accesses.text

    @property
    def complaints(self) -> list[str]:
        return COMPLAINT.findall(self._errors.text)

    async def log(self, count: int) -> list[dict[str, Any]]:
        """The access log, once it has so many lines: one is written after its answer has left."""
        await self._accesses.until(lambda: len(self._accesses.all) >= count)
        return [json.loads(line) for line in self._accesses.all]

    async def listens(self) -> None:
        await self._errors.until(lambda: LISTENS in self._errors.text)

    async def reload(self, changes: Mapping[str, str] | None = None) -> None:
        """`nginx -s reload`, until an old worker takes no more connections."""
        change(self._folder, changes or {})
        told = self._errors.text.count(RELOADED)
        await ran(*command(self._folder), "-s", "reload")
        await self._errors.until(lambda: self._errors.text.count(RELOADED) > told)

    async def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        async with asyncio.timeout(DEADLINE_SECONDS):
            await self._process.wait()
            await self._errors.end()
            await self._accesses.end()


@contextlib.contextmanager
def listener() -> Iterator[socket.socket]:
    """Handed to nginx, so that nobody else is given the port between the choice and the start."""
    with socket.create_server(("127.0.0.1", 0), backlog=511) as made:
        made.setblocking(False)  # nginx takes it as it is, and a worker that comes too late must not wait in accept()
        yield made


def port_of(listening: socket.socket) -> int:
    return int(listening.getsockname()[1])


@contextlib.asynccontextmanager
async def running(folder: Path, *listening: socket.socket) -> AsyncIterator[Nginx]:
    """With the folder's nginx.conf; the last socket leads to the relays."""
    inherited = [each.fileno() for each in listening]
    process = await asyncio.create_subprocess_exec(
        *(*command(folder), "-g", "daemon off;"),
        stdout=PIPE,
        stderr=PIPE,
        pass_fds=inherited,
        env=os.environ | {"NGINX": "".join(f"{number};" for number in inherited)},
    )
    nginx = Nginx(process, folder, [port_of(each) for each in listening])
    try:
        await nginx.listens()
        yield nginx
    finally:
        await nginx.end()


def change(folder: Path, changes: Mapping[str, str]) -> None:
    """Replaces in the folder's configuration what these regular expressions find; each must find something."""
    for pattern, wanted in changes.items():
        found = 0
        for path in folder.glob("*.conf"):
            text, count = re.subn(pattern, wanted, path.read_text())
            path.write_text(text)
            found += count
        assert found, f"not in nginx/: {pattern}"


def command(folder: Path) -> tuple[str, ...]:
    return program("nginx"), "-p", str(folder), "-c", "nginx.conf", "-e", "stderr"


async def ran(*words: str) -> str:
    """What a command says; AssertionError when it fails."""
    process = await asyncio.create_subprocess_exec(*words, stdout=PIPE, stderr=STDOUT)
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (tests/install)")
    return found
