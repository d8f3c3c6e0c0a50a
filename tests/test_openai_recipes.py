"""The recipes of the OpenAI dialect: every answer whole, every failure told, and leaving stops the generation."""

import asyncio
from asyncio.subprocess import Process
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest

from tests.answers import ANSWERS
from tests.browser import Wire
from tests.recipes import (
    DEADLINE_SECONDS,
    block,
    check,
    ended,
    interrupt,
    relay_of_answers,
    started_node,
    started_python,
    url_of,
)
from tests.upstream import chunk, hang, head, status

Client = Callable[[str, str], AbstractAsyncContextManager[Process]]


def python(question: str, url: str) -> AbstractAsyncContextManager[Process]:
    return started_python(block("openai-python.md", "python"), question, url)


def node(question: str, url: str) -> AbstractAsyncContextManager[Process]:
    return started_node(block("openai-node.md", "js"), question, url)


def langchain(question: str, url: str) -> AbstractAsyncContextManager[Process]:
    return started_node(block("langchain.md", "js"), question, url)


pytestmark = pytest.mark.parametrize("client", [python, node, langchain])


async def test_a_recipe_shows_every_answer_as_it_is(client: Client) -> None:
    async with relay_of_answers() as (relay, _):
        for question, expected in ANSWERS.items():
            async with client(question, url_of(relay)) as process:
                check(await ended(process), expected)


async def test_a_recipe_tells_why_there_is_no_answer(client: Client) -> None:
    async with relay_of_answers() as (relay, upstream):
        upstream.script(status(400, b'{"error": {"message": "no such model"}}', {"content-type": "application/json"}))
        async with client("plain", url_of(relay)) as process:
            ran = await ended(process)
        assert (ran.stdout, ran.code) == ("", 1)
        assert "upstream_rejected" in ran.stderr
        assert "no such model" in ran.stderr
        assert len(upstream.requests) == 1


async def test_a_recipe_takes_no_cut_for_an_end(client: Client) -> None:
    async with relay_of_answers() as (relay, upstream):
        wire = Wire(relay.port)
        await wire.open()
        wire.cut_behind += [b'"content": "wor']
        async with client("plain", f"http://127.0.0.1:{wire.port}") as process:
            ran = await ended(process)
        await wire.close()
        assert ran.stdout == "Hello, "
        assert ran.code == 1
        assert ran.stderr != ""
        assert len(upstream.requests) == 1


async def test_a_recipe_that_is_left_stops_the_generation(client: Client) -> None:
    async with relay_of_answers() as (relay, upstream):
        upstream.script((head(), chunk("Half"), hang()))
        async with client("plain", url_of(relay)) as process:
            assert process.stdout is not None
            async with asyncio.timeout(DEADLINE_SECONDS):
                assert await process.stdout.readexactly(4) == b"Half"
            interrupt(process)
            await upstream.wait_for(lambda upstream: upstream.aborted == 1)
            assert (await ended(process)).code != 0
