"""The recipes of docs/clients, cut out of their pages and run word for word, and what each of them must print."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from tests.answers import Expected, by_question
from tests.browser import Wire
from tests.relay import Relay, running
from tests.upstream import Upstream

ROOT: Final = Path(__file__).parents[1]
MODULES: Final = ROOT / "tests" / "clients" / "node_modules"
DEADLINE_SECONDS: Final = 20
CALL_LINE: Final = re.compile(r"(\w+)\((.*)\)")


class Ran(msgspec.Struct, frozen=True):
    """What a recipe printed, byte for byte as UTF-8, and its exit code."""

    stdout: str
    stderr: str
    code: int


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page of docs/clients, in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "docs" / "clients" / page).read_text(), re.M | re.S)


def block(page: str, language: str) -> str:
    """The only one."""
    [only] = blocks(page, language)
    return only


@contextlib.asynccontextmanager
async def relay_of_answers(**settings: Any) -> AsyncIterator[tuple[Relay, Upstream]]:
    """A relay whose upstream answers as tests/answers.py says: ask for an answer by its name."""
    async with Upstream() as upstream, running(upstream.base_url, **({"default_model": "demo"} | settings)) as relay:
        upstream.script(by_question())
        yield relay, upstream


def url_of(server: Relay | Wire) -> str:
    return f"http://127.0.0.1:{server.port}"


async def run_shell(code: str, question: str, url: str, *more: str, **env: str) -> Ran:
    """Runs a recipe as bash does with `-euo pipefail`; `more` are the arguments behind the question."""
    async with started_shell(code, question, url, *more, **env) as process:
        return await ended(process)


async def run_node(code: str, question: str, url: str, *, files: Mapping[str, str] | None = None, **env: str) -> Ran:
    """Runs an ES module with the packages of tests/clients, and with other `files` of the page beside it."""
    async with started_node(code, question, url, files=files, **env) as process:
        return await ended(process)


async def run_python(code: str, question: str, url: str, **env: str) -> Ran:
    """Runs a recipe with the interpreter, and the packages, of the tests themselves."""
    async with started_python(code, question, url, **env) as process:
        return await ended(process)


def started_shell(
    code: str, question: str, url: str, *more: str, **env: str
) -> contextlib.AbstractAsyncContextManager[Process]:
    return _started("bash", "-euo", "pipefail", "-c", code, "recipe", question, *more, url=url, env=env)


@contextlib.asynccontextmanager
async def started_node(
    code: str, question: str, url: str, *, files: Mapping[str, str] | None = None, **env: str
) -> AsyncIterator[Process]:
    with _node_folder({"recipe.mjs": code, **(files or {})}) as folder:
        async with _started("node", str(folder / "recipe.mjs"), question, url=url, env=env) as process:
            yield process


def started_python(code: str, question: str, url: str, **env: str) -> contextlib.AbstractAsyncContextManager[Process]:
    return _started(sys.executable, "-c", code, question, url=url, env=env)


@contextlib.contextmanager
def _node_folder(files: Mapping[str, str]) -> Iterator[Path]:
    if not MODULES.exists():
        pytest.skip("the clients of npm are not installed (tests/install)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "node_modules").symlink_to(MODULES)
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
        yield folder


@contextlib.asynccontextmanager
async def _started(*command: str, url: str, env: Mapping[str, str]) -> AsyncIterator[Process]:
    """A running recipe, without a terminal and in a process group of its own, which ends with the block."""
    program = shutil.which(command[0])
    if program is None:
        pytest.skip(f"{command[0]} is not installed")
    variables = {**os.environ, "RELAY_URL": url, "NO_PROXY": "127.0.0.1", **env}
    # A shell ignores SIGINT in what it runs in the background, tests among it, and children inherit that.
    process = await asyncio.create_subprocess_exec(
        *(program, *command[1:]),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        env=variables,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def interrupt(process: Process) -> None:
    """Ctrl-C: the terminal signals everything that the recipe started."""
    os.killpg(process.pid, signal.SIGINT)


async def ended(process: Process) -> Ran:
    async with asyncio.timeout(DEADLINE_SECONDS):
        stdout, stderr = await process.communicate()
    assert process.returncode is not None
    return Ran(stdout.decode(), stderr.decode(), process.returncode)


def check(
    ran: Ran, expected: Expected, *, reasoning: bool = True, calls: bool = True, failure: str | None = None
) -> None:
    """That a recipe kept the convention: text, then a line a tool call; on stderr reasoning, or what went wrong.

    `reasoning` and `calls` tell whether the client shows them; `failure` is what stderr must say of an answer that
    breaks off, where the dialect has other words than the code.
    """
    assert ran.stdout.startswith(expected.text), ran
    _check_calls(ran.stdout.removeprefix(expected.text), expected if calls else Expected())
    if expected.failure is None:
        assert (ran.stderr, ran.code) == (expected.reasoning if reasoning else "", 0), ran
    else:
        assert (failure or expected.failure) in ran.stderr, ran
        assert ran.code == 1, ran


def _check_calls(printed: str, expected: Expected) -> None:
    lines = [line for line in printed.split("\n") if line]
    matches = [CALL_LINE.fullmatch(line) for line in lines]
    shown = [(match[1], json.loads(match[2])) for match in matches if match]
    assert shown == [(call.name, call.arguments) for call in expected.calls], printed
    assert len(lines) == len(shown), printed
    assert printed == "" or lines, f"more than the text: {printed!r}"
