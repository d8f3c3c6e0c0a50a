"""The recipes of docs/clients/python.md, run word for word by Python."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import msgspec
import pytest

from tests.answers import ANSWERS, by_question
from tests.relay import Relay, running
from tests.test_client_twins import Twin, both
from tests.upstream import Upstream, answer

ROOT: Final = Path(__file__).parents[1]
DEADLINE_SECONDS: Final = 20


class Printed(msgspec.Struct, frozen=True):
    code: int
    out: str
    err: str


def recipes() -> Iterator[tuple[str, str]]:
    """By the name in their first line."""
    page = (ROOT / "docs" / "clients" / "python.md").read_text(encoding="utf-8")
    for block in re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S):
        yield block.split("\n")[0].removeprefix("# "), block


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as scripted:
        yield scripted


@pytest.fixture
async def relay(upstream: Upstream) -> AsyncIterator[Relay]:
    async with running(upstream.base_url, default_model="m") as relay:
        yield relay


async def run(folder: Path, relay: Relay, name: str, question: str) -> Printed:
    """As a program of its own; what it prints is taken as bytes, so that no line ending is made another."""
    (folder / name).write_text(dict(recipes())[name], encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        name,
        question,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "error",
            "PYTHONUTF8": "1",
            "RELAY_URL": f"http://127.0.0.1:{relay.port}",
        },
    )
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return Printed(process.returncode, out.decode(), err.decode())


@both
@pytest.mark.parametrize("question", ANSWERS)
async def test_a_recipe_prints_every_answer(
    relay: Relay, upstream: Upstream, tmp_path: Path, twin: Twin, question: str
) -> None:
    expected = ANSWERS[question]
    upstream.script(by_question())
    printed = await run(tmp_path, relay, {"sync": "ask.py", "async": "ask_async.py"}[twin], question)
    calls = [f"\n{call.name}({''.join(call.pieces)})" for call in expected.calls]
    assert printed.out == expected.text + "".join(calls)
    if expected.failure:
        assert (printed.code, printed.err.split(":")[0]) == (1, f"\n{expected.failure}")
    else:
        assert (printed.code, printed.err) == (0, expected.reasoning)


async def test_the_chat_remembers(relay: Relay, upstream: Upstream, tmp_path: Path) -> None:
    upstream.script(answer("It ", "scatters."), answer("Air bends blue."))
    printed = await run(tmp_path, relay, "chat.py", "Why is the sky blue?")
    assert printed == Printed(0, "It scatters.\nAir bends blue.\n", "")
    said = [message["content"] for message in upstream.requests[1].body["messages"]]
    assert said == ["Answer in one sentence.", "Why is the sky blue?", "It scatters.", "And in other words?"]
