"""Two processes on one Redis, by the commands that the README shows."""

import asyncio
import contextlib
import os
import re
import shutil
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from app.demo.server import DemoServer
from benchmarks.processes import free_port
from tests.relay import event_of
from tests.served import END_SECONDS, START_SECONDS
from tests.terminal import COMMAND, environment
from tests.test_readme import README, block_with


async def test_what_began_at_one_process_goes_on_at_another(tmp_path: Path) -> None:
    demo = DemoServer()
    places = {port: str(free_port()) for port in ("6379", "8001", "8002", "9001", "9002")}
    upstream = {"OPENAI_API_KEY": "none", "OPENAI_BASE_URL": await demo.start(), "RELAY_DEFAULT_MODEL": "demo-fast"}
    redis, first, second = block_with("redis-server", "console").strip().splitlines()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(demo.stop)
        for command in (redis, first, second):
            await stack.enter_async_context(started(tmp_path, here(command, places), upstream))
        begin, go_on = re.findall(
            r"^\$ (.*?)(?:\s+#.*)?$", block_with("localhost:8002/chat", "console").replace("\\\n", " "), re.MULTILINE
        )
        whole = await said(here(begin, places))
        stream_id = event_of(whole.split("\n\n")[0])["id"]
        rest = await said(here(go_on, places).replace("s_76f0…", stream_id).replace(".41'", ".3'"))
    assert rest == whole.partition(f"id: {stream_id}.3\n\n")[2]
    assert rest.endswith("data: [DONE]\n\n")


def here(command: str, places: Mapping[str, str]) -> str:
    for port, free in places.items():
        command = command.replace(port, free)
    return command.removeprefix("$ ").replace(".venv/bin/sse-relay", str(COMMAND))


@contextlib.asynccontextmanager
async def started(folder: Path, command: str, variables: Mapping[str, str]) -> AsyncIterator[None]:
    """Until it says that it listens; ended with the block."""
    if "redis-server" in command and shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (tests/install)")
    listens = b"Ready to accept connections" if "redis-server" in command else b"http://127.0.0.1:"
    process = await asyncio.create_subprocess_shell(
        f"exec env {command}", stdout=PIPE, stderr=STDOUT, cwd=folder, env=environment(folder, variables)
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_SECONDS):
            await process.stdout.readuntil(listens)
        yield
    finally:
        process.terminate()
        await process.communicate()


async def said(command: str) -> str:
    process = await asyncio.create_subprocess_shell(f"{command} -s", stdout=PIPE, env=dict(os.environ))
    async with asyncio.timeout(END_SECONDS):
        output, _ = await process.communicate()
    return output.decode()


def test_the_page_about_processes_shows_the_same_commands() -> None:
    page = Path(__file__).parent.parent / "docs" / "processes.md"
    for line in block_with("redis-server", "console").strip().splitlines():
        assert line in page.read_text(encoding="utf-8")
    assert "docs/processes.md" in README
