"""A relay as the process that an operator starts."""

import asyncio
import contextlib
import re
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import app
from tests.terminal import environment
from tests.upstream import Upstream

START_SECONDS: Final = 60
END_SECONDS: Final = 10
ROOT: Final = Path(app.__file__).parents[1]
SERVE: Final = ("app", "serve", "--port", "0")


class Served:
    """A relay in a process of its own."""

    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self.port = port

    async def code(self) -> int:
        """What it exits with."""
        async with asyncio.timeout(END_SECONDS):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def served(folder: Path, upstream: Upstream, *command: str, **variables: str) -> AsyncIterator[Served]:
    """`python -m …`, killed when the block ends if it still runs."""
    own = {"PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "test-key", "OPENAI_BASE_URL": upstream.base_url}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *command),
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=PIPE,
        cwd=folder,
        env=environment(folder, own | variables),
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(START_SECONDS):
            text = (await process.stderr.readuntil(b"http://127.0.0.1:")).decode()
            text += (await process.stderr.readuntil(b"\n")).decode()
        yield Served(process, int(re.findall(r"http://127\.0\.0\.1:([0-9]+)", text)[0]))
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
