"""The recipes of the native dialect for a command line: every answer whole, every failure told, lost ones resumed."""

import asyncio
import contextlib
import json
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable
from typing import Final

import pytest

from tests.answers import ANSWERS
from tests.browser import Wire
from tests.recipes import (
    DEADLINE_SECONDS,
    Ran,
    block,
    blocks,
    check,
    ended,
    interrupt,
    relay_of_answers,
    run_shell,
    started_node,
    started_python,
    started_shell,
    url_of,
)
from tests.relay import SSE, Relay, ask, chat, event_of
from tests.upstream import answer, chunk, finish, hang, head, pause, status

Running = contextlib.AbstractAsyncContextManager[Process]
Client = Callable[[str, str], Running]

LOOK, TEXT, COME_BACK = blocks("curl.md", "sh")
READER, IN_NODE = blocks("fetch.md", "js")


def curl(question: str, url: str) -> Running:
    return started_shell(TEXT, question, url)


def fetch(question: str, url: str) -> Running:
    return started_node(IN_NODE, question, url, files={"ask.mjs": READER})


def parser(question: str, url: str) -> Running:
    return started_node(block("eventsource-parser.md", "js"), question, url)


def event_stream(question: str, url: str) -> Running:
    return started_node(block("fetch-event-stream.md", "js"), question, url)


def httpx_sse(question: str, url: str) -> Running:
    return started_python(block("httpx-sse.md", "python"), question, url)


CLIENTS: Final = (curl, fetch, parser, event_stream, httpx_sse)
TEXT_ALONE: Final = (curl, fetch)
RESUMING: Final = (parser, httpx_sse)
LEAVING: Final = (curl, fetch, event_stream)
"""Those that stop the generation by going."""


@contextlib.asynccontextmanager
async def wired(relay: Relay) -> AsyncIterator[Wire]:
    wire = Wire(relay.port)
    await wire.open()
    yield wire
    await wire.close()


async def read(client: Client, question: str, url: str) -> Ran:
    async with client(question, url) as process:
        return await ended(process)


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_recipe_shows_every_answer_as_it_is(client: Client) -> None:
    async with relay_of_answers() as (relay, _):
        for question, expected in ANSWERS.items():
            ran = await read(client, question, url_of(relay))
            check(ran, expected, calls=client not in TEXT_ALONE)


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_recipe_puts_together_what_comes_in_pieces(client: Client) -> None:
    async with relay_of_answers() as (relay, _), wired(relay) as wire:
        wire.piece_bytes = 7
        ran = await read(client, "code", url_of(wire))
        check(ran, ANSWERS["code"])


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_recipe_tells_why_there_is_no_answer(client: Client) -> None:
    async with relay_of_answers() as (relay, upstream):
        upstream.script(status(400, b'{"error": {"message": "no such model"}}', {"content-type": "application/json"}))
        ran = await read(client, "plain", url_of(relay))
        assert (ran.stdout, ran.code) == ("", 1), ran
        assert "upstream_rejected" in ran.stderr
        assert "no such model" in ran.stderr
        assert len(upstream.requests) == 1


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_recipe_comes_back_from_a_cut_or_says_that_it_was_cut(client: Client) -> None:
    async with relay_of_answers() as (relay, upstream), wired(relay) as wire:
        wire.cut_behind += [b'"content":"Hel', b'"content":"wor']
        ran = await read(client, "plain", url_of(wire))
        if client in RESUMING:
            check(ran, ANSWERS["plain"])
            assert wire.cut_behind == []
        else:
            assert ran.stdout == ""
            assert ran.code != 0
            assert ran.stderr != ""
        assert len(upstream.requests) == 1


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_recipe_takes_an_end_without_done_for_a_loss(client: Client) -> None:
    """A connection that is too old ends in good order, several times here before the answer is whole."""
    async with relay_of_answers(max_connection_seconds=0.3, hold_status_seconds=0.1) as (relay, upstream):
        upstream.script((head(), chunk("one "), pause(1), chunk("two"), finish()))
        ran = await read(client, "plain", url_of(relay))
        if client in RESUMING:
            assert ran == Ran("one two", "", 0)
        else:
            assert ran.stdout == "one "
            assert ran.code == 1
            assert "lost" in ran.stderr
        assert len(upstream.requests) == 1


@pytest.mark.parametrize("client", LEAVING)
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


async def test_curl_shows_the_stream_as_it_comes() -> None:
    async with relay_of_answers() as (relay, upstream):
        upstream.script(answer("Hel", "lo"))
        ran = await run_shell(LOOK, "hi", url_of(relay))
        *events, end = (event_of(block) for block in ran.stdout.strip().split("\n\n"))
        assert [event["type"] for event in events] == ["start", "delta", "delta", "done"]
        assert end == {"type": "[DONE]"}


async def test_curl_goes_on_looks_back_and_stops() -> None:
    async with relay_of_answers() as (relay, _):
        response, events = await ask(relay.port, chat("plain"), headers=SSE)
        ran = await run_shell(COME_BACK, response.headers["x-stream-id"], url_of(relay), "3")
        *streams, last = ran.stdout.split("data: [DONE]\n\n")
        result, _, stopped = last.partition("}{")
        rest = [event["seq"] for event in events if event.get("seq", 0) > 3]
        for stream in streams:
            assert [event_of(block)["seq"] for block in stream.strip().split("\n\n")] == rest
        assert len(streams) == 2
        assert json.loads(result + "}")["text"] == ANSWERS["plain"].text
        assert json.loads("{" + stopped) == {"id": response.headers["x-stream-id"]}
