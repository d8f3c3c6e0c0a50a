"""LangChain's ChatOpenAI (JavaScript) on the OpenAI dialect."""

import asyncio
import json
from pathlib import Path
from typing import Any, Final

import pytest

from tests.answers import ANSWERS, Expected
from tests.recipes import ended, relay_of_answers, started_node, url_of
from tests.relay import Relay
from tests.test_openai_python import Object, whole_ones
from tests.upstream import answer, chunk, delta, done, finish, hang, head, silent, status, wait

ASKS: Final = (Path(__file__).parent / "clients" / "langchain-asks.mjs").read_text()
JSON: Final = {"content-type": "application/json"}


async def asked(relay: Relay, *asks: tuple[Any, ...]) -> list[Object]:
    """What came of each: (way, question, options of the model)."""
    async with started_node(ASKS, json.dumps(asks), url_of(relay)) as process:
        ran = await ended(process)
    assert (ran.stderr, ran.code) == ("", 0)
    outcomes: list[Object] = json.loads(ran.stdout)
    return outcomes


def heard(expected: Expected) -> Object:
    calls = [[call.id, call.name, call.arguments] for call in expected.calls]
    return {"text": expected.text, "reasoning": expected.reasoning, "calls": calls, "tokens": 12}


@pytest.mark.parametrize("way", ["stream", "invoke"])
async def test_every_answer_comes_as_it_was_said_and_counted(way: str) -> None:
    async with relay_of_answers() as (relay, _):
        outcomes = await asked(relay, *((way, question) for question, _ in whole_ones()))
        assert outcomes == [heard(expected) for _, expected in whole_ones()]


async def test_a_stream_that_is_not_to_be_counted_is_not() -> None:
    async with relay_of_answers() as (relay, _):
        [outcome] = await asked(relay, ("stream", "plain", {"streamUsage": False}))
        assert outcome.get("tokens") is None


async def test_an_answer_that_breaks_off_is_an_error_behind_its_text() -> None:
    async with relay_of_answers() as (relay, _):
        streamed, whole = await asked(relay, ("stream", "broken"), ("invoke", "broken"))
        assert streamed["text"] == ANSWERS["broken"].text
        assert streamed["error"] == {"class": "APIError", "status": None, "code": "upstream_truncated"}
        assert whole["error"] == {"class": "InternalServerError", "status": 502, "code": "upstream_truncated"}


@pytest.mark.parametrize(
    ("upstream_status", "told"),
    [
        (400, {"class": "BadRequestError", "status": 400, "code": "upstream_rejected"}),
        (401, {"class": "InternalServerError", "status": 502, "code": "upstream_error"}),
        (429, {"class": "RateLimitError", "status": 429, "code": "rate_limited"}),
    ],
)
async def test_a_refusal_raises_the_class_of_its_status(upstream_status: int, told: Object) -> None:
    async with relay_of_answers(attempts=1) as (relay, upstream):
        upstream.script(status(upstream_status, b'{"error": {"message": "no"}}', JSON))
        outcomes = await asked(relay, ("stream", "plain"), ("invoke", "plain"))
        assert [outcome["error"] for outcome in outcomes] == [told, told]
        assert len(upstream.requests) == 2


async def test_a_limit_from_a_header_is_a_gateway_timeout() -> None:
    async with relay_of_answers() as (relay, upstream):
        upstream.script(silent())
        headers = {"X-Timeout-First-Token": "0.2"}
        configuration = {"baseURL": f"{url_of(relay)}/v1", "defaultHeaders": headers}
        [outcome] = await asked(relay, ("stream", "plain", {"configuration": configuration}))
        assert outcome["error"] == {"class": "InternalServerError", "status": 504, "code": "upstream_timeout"}


@pytest.mark.parametrize("way", ["leave", "abort"])
async def test_leaving_stops_the_generation(way: str) -> None:
    """The same process is answered again once upstream is closed: it was not its end that closed it."""
    gone, said = asyncio.Event(), delta(role="assistant", content="whole")
    async with relay_of_answers() as (relay, upstream):
        upstream.script((head(), chunk("Half"), hang()), (head(), wait(gone), said, finish(), done()))
        asking = asyncio.create_task(asked(relay, (way, "plain"), ("stream", "plain")))
        await upstream.wait_for(lambda upstream: upstream.aborted == 1)
        gone.set()
        left, stayed = await asking
        assert left["text"] == ("Half" if way == "leave" else "This operation was aborted")
        assert stayed["text"] == "whole"


async def test_structured_output_is_asked_for_and_parsed() -> None:
    async with relay_of_answers() as (relay, upstream):
        upstream.script(answer('{"city":', '"Zürich"}'))
        assert await asked(relay, ("structured", "plain")) == [{"city": "Zürich"}]
        assert upstream.requests[0].body["response_format"]["type"] == "json_schema"
