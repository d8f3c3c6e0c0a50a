"""The AI SDK's own client in Node, led by hand: what `useChat` has, without React and without a page."""

import asyncio
import contextlib
import json
import shutil
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

SCRIPT: Final = Path(__file__).parent / "clients" / "ai-sdk.mjs"
DEADLINE_SECONDS: Final = 20
LINE_BYTES: Final = 64 * 1024 * 1024


class State(msgspec.Struct, frozen=True):
    """What a chat has: `ends` is what `onFinish` was told, `requests` are methods, paths and statuses."""

    status: str
    error: str | None
    messages: list[dict[str, Any]]
    ends: list[dict[str, Any]]
    requests: list[str]

    @property
    def answer(self) -> dict[str, Any]:
        assert self.messages[-1]["role"] == "assistant", self.messages
        return self.messages[-1]

    @property
    def text(self) -> str:
        return self._joined("text")

    @property
    def reasoning(self) -> str:
        return self._joined("reasoning")

    @property
    def calls(self) -> list[dict[str, Any]]:
        return [part for part in self.answer["parts"] if part["type"] == "dynamic-tool"]

    def _joined(self, kind: str) -> str:
        return "".join(part["text"] for part in self.answer["parts"] if part["type"] == kind)


class Page:
    """The page's commands are those of tests/clients/ai-sdk.mjs."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def do(self, command: str, **options: Any) -> Any:
        """Raises AssertionError with what the client threw."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"command": command, **options}).encode() + b"\n")
        async with asyncio.timeout(DEADLINE_SECONDS):
            line = await self._process.stdout.readline()
        assert line, "the client is gone"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["value"]

    async def over(self) -> State:
        """Waits until what was begun has ended."""
        return msgspec.convert(await self.do("over"), State)

    async def stop(self) -> State:
        return msgspec.convert(await self.do("stop"), State)


@contextlib.asynccontextmanager
async def page(port: int = 0) -> AsyncIterator[Page]:
    """A page of the relay on that port."""
    node = shutil.which("node")
    if node is None or not (SCRIPT.parent / "node_modules").exists():
        pytest.skip("node or the clients of npm are not installed (tests/install)")
    url = f"http://127.0.0.1:{port}"
    process = await asyncio.create_subprocess_exec(node, str(SCRIPT), url, stdin=PIPE, stdout=PIPE, limit=LINE_BYTES)
    try:
        yield Page(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
