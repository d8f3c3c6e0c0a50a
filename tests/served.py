"""A relay as the process that an operator starts."""

import asyncio
import contextlib
import re
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final

import app
from tests.nursery import Born, born
from tests.terminal import environment
from tests.upstream import Upstream

START_SECONDS: Final = 60
END_SECONDS: Final = 10
ROOT: Final = Path(app.__file__).parents[1]
SERVE: Final = ("app", "serve", "--port", "0")


class Served:
    """A relay in a process of its own."""

    def __init__(self, process: Process | Born, port: int) -> None:
        self.process = process
        self.port = port

    async def code(self) -> int:
        """What it exits with."""
        async with asyncio.timeout(END_SECONDS):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def served(folder: Path, upstream: Upstream, *command: str, **variables: str) -> AsyncIterator[Served]:
    """`python -m …`, killed when the block ends if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *command),
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=PIPE,
        cwd=folder,
        env=_environment(folder, upstream, variables),
    )
    try:
        yield await _listening(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@contextlib.asynccontextmanager
async def forked(folder: Path, upstream: Upstream, *command: str, **variables: str) -> AsyncIterator[Served]:
    """The same of `sse-relay …`, sooner (nursery.py): for where it is not the start that is tested."""
    async with born(command[1:], folder, _environment(folder, upstream, variables)) as process:
        yield await _listening(process)


def _environment(folder: Path, upstream: Upstream, variables: Mapping[str, str]) -> dict[str, str]:
    own = {"PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "test-key", "OPENAI_BASE_URL": upstream.base_url}
    return environment(folder, {**own, **variables})


async def _listening(process: Process | Born) -> Served:
    assert process.stderr is not None
    async with asyncio.timeout(START_SECONDS):
        text = (await process.stderr.readuntil(b"http://127.0.0.1:")).decode()
        text += (await process.stderr.readuntil(b"\n")).decode()
    return Served(process, int(re.findall(r"http://127\.0\.0\.1:([0-9]+)", text)[0]))
