"""openai-node on the OpenAI dialect: every answer as it was said, its own errors, helpers and retries."""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from tests.answers import ANSWERS
from tests.recipes import ended, relay_of_answers, started_node, url_of
from tests.relay import Relay
from tests.test_openai_python import SAME, Object, added_up, asking, choice, said, taken_from, whole_ones
from tests.upstream import answer, done, event, head, silent, status

ASKS: Final = (Path(__file__).parent / "clients" / "openai-asks.mjs").read_text()
JSON: Final = {"content-type": "application/json"}
COUNTED: Final = {"stream_options": {"include_usage": True}}


async def asked(relay: Relay, *asks: tuple[Any, ...]) -> list[Object]:
    """What came of each: (way, body, options)."""
    async with started_node(ASKS, json.dumps(asks), url_of(relay)) as process:
        ran = await ended(process)
    assert (ran.stderr, ran.code) == ("", 0)
    outcomes: list[Object] = json.loads(ran.stdout)
    return outcomes


async def refused(relay: Relay, body: Object, **options: Any) -> Object:
    """How a completion fails that never began, streamed or not."""
    streamed, whole = await asked(relay, ("stream", body, options), ("whole", body, options))
    assert streamed["chunks"] == []
    told = [{name: each["error"][name] for name in ("class", "status", "code", "param")} for each in (streamed, whole)]
    assert told[0] == told[1]
    assert streamed["error"]["requestID"].startswith("r_")
    return streamed["error"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(("way", "read"), [("stream", added_up), ("whole", taken_from), ("helper", taken_from)])
async def test_every_answer_comes_as_it_was_said(way: str, read: Any) -> None:
    async with relay_of_answers() as (relay, _):
        more = COUNTED if way == "helper" else {}
        outcomes = await asked(relay, *((way, asking(question, **more)) for question, _ in whole_ones()))
        for (question, expected), outcome in zip(whole_ones(), outcomes, strict=True):
            # The helper adds up what OpenAI's models send; of fields that it does not know the last piece is left.
            other = {"reasoning": expected.thoughts[-1]} if way == "helper" and expected.thoughts else {}
            assert read(outcome["answer"]) == said(expected, usage=way != "stream") | other, question


async def test_a_stream_is_counted_when_asked() -> None:
    async with relay_of_answers() as (relay, _):
        [outcome] = await asked(relay, ("stream", asking("tools", **COUNTED)))
        assert added_up(outcome["answer"]) == said(ANSWERS["tools"], usage=True)


async def test_an_answer_that_breaks_off_is_an_error_with_its_code() -> None:
    async with relay_of_answers() as (relay, upstream):
        ways = ("stream", "helper", "whole")
        streamed, helped, whole = await asked(relay, *((way, asking("broken")) for way in ways))
        assert added_up(streamed["chunks"])["text"] == ANSWERS["broken"].text
        for each in (streamed, helped):
            assert (each["error"]["class"], each["error"]["code"]) == ("APIError", "upstream_truncated")
        told = whole["error"]
        assert (told["class"], told["status"], told["code"]) == ("InternalServerError", 502, "upstream_truncated")
        assert len(upstream.requests) == 3


@pytest.mark.parametrize(
    ("upstream_status", "told"),
    [
        (400, ("BadRequestError", 400, "upstream_rejected")),
        (404, ("BadRequestError", 400, "upstream_rejected")),
        (401, ("InternalServerError", 502, "upstream_error")),
        (429, ("RateLimitError", 429, "rate_limited")),
        (503, ("InternalServerError", 502, "upstream_unavailable")),
    ],
)
async def test_a_refusal_upstream_raises_the_class_of_its_status(upstream_status: int, told: Any) -> None:
    async with relay_of_answers(attempts=1) as (relay, upstream):
        upstream.script(status(upstream_status, b'{"error": {"message": "It cannot be"}}', JSON))
        error = await refused(relay, asking("plain"))
        assert (error["class"], error["status"], error["code"]) == told


async def test_what_is_wrong_with_a_request_is_said_by_class_and_field() -> None:
    async with relay_of_answers(max_body_bytes=1024) as (relay, upstream):
        assert (await refused(relay, {"model": "demo", "messages": []}))["param"] == "messages"
        wrong = await refused(relay, asking("plain", n="two"))
        large = await refused(relay, asking("x" * 2000), maxRetries=2)
        [path] = await asked(relay, ("embeddings", {"model": "demo", "input": "hi"}))
        assert (wrong["class"], wrong["status"], wrong["param"]) == ("UnprocessableEntityError", 422, "n")
        assert (large["class"], large["status"]) == ("APIError", 413)
        assert path["error"]["class"] == "NotFoundError"
        assert path["error"]["message"].startswith("404 no such path")
        assert upstream.requests == []


async def test_a_limit_from_a_header_is_a_gateway_timeout() -> None:
    async with relay_of_answers() as (relay, upstream):
        upstream.script(silent())
        error = await refused(relay, asking("plain"), headers={"X-Timeout-First-Token": "0.2"})
        assert (error["class"], error["status"], error["code"]) == ("InternalServerError", 504, "upstream_timeout")
        await upstream.wait_for(lambda upstream: upstream.aborted == 2)


async def test_retries_are_made_where_they_help_and_wait_as_asked() -> None:
    body = asking("plain")
    async with relay_of_answers(attempts=1) as (relay, upstream):
        upstream.script(status(401, b"{}", JSON))
        [never] = await asked(relay, ("whole", body, {"maxRetries": 2}))
        assert (never["error"]["status"], len(upstream.requests)) == (502, 1)
        upstream.script(status(429, b"{}", JSON | {"retry-after": "1"}), answer("hi"))
        [again] = await asked(relay, ("whole", body, {"maxRetries": 1}))
        assert taken_from(again["answer"])["text"] == "hi"
        _, first, second = upstream.requests
        assert second.at - first.at > 0.9  # asked for nothing, it would wait half a second at most


async def test_tools_are_run_and_their_answers_sent_back() -> None:
    async with relay_of_answers() as (relay, upstream):
        upstream.script(tuple(ANSWERS["tools"].steps()), tuple(ANSWERS["plain"].steps()))
        [run] = await asked(relay, ("runTools", asking("tools")))
        assert run["answer"]["text"] == ANSWERS["plain"].text
        assert run["answer"]["asked"] == [call.arguments for call in ANSWERS["tools"].calls]
        sent = [message for message in upstream.requests[1].body["messages"] if message["role"] == "tool"]
        assert [message["tool_call_id"] for message in sent] == [call.id for call in ANSWERS["tools"].calls]


async def test_a_parsed_answer_is_an_object() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}
    async with relay_of_answers() as (relay, upstream):
        upstream.script(answer('{"city":', '"Zürich"}'))
        [parsed] = await asked(relay, ("parse", asking("plain", response_format=schema)))
        assert json.loads(parsed["answer"]["choices"][0]["message"]["content"]) == {"city": "Zürich"}
        assert upstream.requests[0].body["response_format"] == schema


async def test_unknown_fields_and_several_choices_pass_both_ways() -> None:
    chunks = [
        SAME | {"choices": [choice(0, delta={"content": "a"})], "obfuscation": "xYz"},
        SAME | {"choices": [choice(1, delta={"content": "b", "mood": "good"}, logprobs={"content": []})]},
        SAME | {"choices": [choice(0, "stop"), choice(1, "stop")], "citations": ["u"]},
    ]
    async with relay_of_answers() as (relay, upstream):
        upstream.script((head(), *map(event, chunks), done()))
        body = asking("plain", n=2, top_k=40)
        streamed, whole = await asked(relay, ("stream", body), ("whole", body))
        assert streamed["answer"] == chunks
        assert [each["message"]["content"] for each in whole["answer"]["choices"]] == ["a", "b"]
        assert whole["answer"]["choices"][1]["message"]["mood"] == "good"
        assert (upstream.requests[0].body["top_k"], upstream.requests[0].body["n"]) == (40, 2)
