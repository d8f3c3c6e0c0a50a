"""openai-python on the OpenAI dialect, its synchronous and its asynchronous client: every answer, as it was said."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, Final

import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from tests.answers import ANSWERS, Expected
from tests.recipes import relay_of_answers, url_of
from tests.relay import Relay
from tests.upstream import answer, done, event, head

DEADLINE_SECONDS: Final = 10
SAME: Final = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "demo"}
Object = dict[str, Any]
Ask = Callable[[Relay, str], Awaitable[Object]]


def sdk(relay: Relay, **options: Any) -> AsyncOpenAI:
    """A client that repeats nothing, unless it is told to."""
    given = {"max_retries": 0, "timeout": DEADLINE_SECONDS} | options
    return AsyncOpenAI(base_url=f"{url_of(relay)}/v1", api_key="any", **given)


def asking(question: str, **fields: Any) -> Object:
    return {"model": "demo", "messages": [{"role": "user", "content": question}], **fields}


def added_up(chunks: Sequence[Object]) -> Object:
    """What a client has when it has put the chunks of the first choice together by hand."""
    heard: Object = {"text": "", "reasoning": "", "calls": {}, "usage": None, "finish_reason": None}
    for chunk in chunks:
        heard["usage"] = chunk.get("usage") or heard["usage"]
        for choice in chunk["choices"]:
            said = choice["delta"]
            heard["text"] += said.get("content") or ""
            heard["reasoning"] += said.get("reasoning_content") or ""
            heard["finish_reason"] = choice["finish_reason"] or heard["finish_reason"]
            for part in said.get("tool_calls") or ():
                call = heard["calls"].setdefault(part["index"], [part.get("id"), part["function"].get("name"), ""])
                call[2] += part["function"].get("arguments") or ""
    return heard | {"calls": list(heard["calls"].values())}


def taken_from(completion: Object) -> Object:
    """The same, where it came in one piece."""
    [choice] = completion["choices"]
    message = choice["message"]
    calls = message.get("tool_calls") or ()
    return {
        "text": message["content"] or "",
        "reasoning": message.get("reasoning_content") or "",
        "calls": [[call["id"], call["function"]["name"], call["function"]["arguments"]] for call in calls],
        "usage": completion["usage"],
        "finish_reason": choice["finish_reason"],
    }


def said(expected: Expected, *, usage: bool) -> Object:
    return {
        "text": expected.text,
        "reasoning": expected.reasoning,
        "calls": [[call.id, call.name, "".join(call.pieces)] for call in expected.calls],
        "usage": {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12} if usage else None,
        "finish_reason": "tool_calls" if expected.calls else "stop",
    }


def whole_ones() -> Iterator[tuple[str, Expected]]:
    return ((question, expected) for question, expected in ANSWERS.items() if not expected.failure)


async def stream_of(client: AsyncOpenAI, question: str, **fields: Any) -> list[Any]:
    stream: Any = await client.chat.completions.create(**asking(question, stream=True, **fields))
    return [chunk async for chunk in stream]


async def streamed(relay: Relay, question: str, **fields: Any) -> Object:
    async with sdk(relay) as client:
        return added_up([chunk.to_dict() for chunk in await stream_of(client, question, **fields)])


async def streamed_in_a_thread(relay: Relay, question: str, **fields: Any) -> Object:
    def ask() -> Object:
        with OpenAI(base_url=f"{url_of(relay)}/v1", api_key="any", timeout=DEADLINE_SECONDS) as client:
            stream: Any = client.chat.completions.create(**asking(question, stream=True, **fields))
            return added_up([chunk.to_dict() for chunk in stream])

    return await asyncio.to_thread(ask)


async def at_once(relay: Relay, question: str, **fields: Any) -> Object:
    async with sdk(relay) as client:
        completion = await client.chat.completions.create(**asking(question, **fields))
        return taken_from(completion.to_dict())


async def at_once_in_a_thread(relay: Relay, question: str, **fields: Any) -> Object:
    def ask() -> Object:
        with OpenAI(base_url=f"{url_of(relay)}/v1", api_key="any", timeout=DEADLINE_SECONDS) as client:
            completion: Any = client.chat.completions.create(**asking(question, **fields))
            return taken_from(completion.to_dict())

    return await asyncio.to_thread(ask)


@pytest.mark.parametrize(
    ("ask", "usage"), [(streamed, None), (streamed, False), (streamed, True), (streamed_in_a_thread, True)]
)
async def test_a_stream_says_every_answer_and_counts_when_asked(ask: Any, usage: bool | None) -> None:
    options = {} if usage is None else {"stream_options": {"include_usage": usage}}
    async with relay_of_answers() as (relay, upstream):
        for question, expected in whole_ones():
            assert await ask(relay, question, **options) == said(expected, usage=bool(usage)), question
        assert all(request.body["stream_options"] == {"include_usage": True} for request in upstream.requests)


@pytest.mark.parametrize("ask", [at_once, at_once_in_a_thread])
async def test_without_a_stream_every_answer_comes_whole_and_counted(ask: Ask) -> None:
    async with relay_of_answers() as (relay, upstream):
        for question, expected in whole_ones():
            assert await ask(relay, question) == said(expected, usage=True), question
        assert all(request.body["stream"] is True for request in upstream.requests)


async def test_the_stream_helper_puts_every_answer_together() -> None:
    async with relay_of_answers() as (relay, _), sdk(relay) as client:
        for question, expected in whole_ones():
            request = asking(question, stream_options={"include_usage": True})
            async with client.chat.completions.stream(**request) as stream:
                told = [each.type async for each in stream]
                heard = taken_from((await stream.get_final_completion()).to_dict())
            assert heard == said(expected, usage=True), question
            assert told.count("content.done") == 1
            assert told.count("tool_calls.function.arguments.done") == len(expected.calls)


class Weather(BaseModel):
    city: str
    days: int


async def test_a_parsed_answer_is_an_object_of_the_model_asked_for() -> None:
    weather = Weather(city="Zürich", days=2)
    async with relay_of_answers() as (relay, upstream), sdk(relay) as client:
        upstream.script(answer('{"city":"Zür', 'ich","days":2}', usage=(1, 2)))
        completion = await client.chat.completions.parse(**asking("", response_format=Weather))
        assert completion.choices[0].message.parsed == weather
        assert upstream.requests[0].body["response_format"]["json_schema"]["name"] == "Weather"
        async with client.chat.completions.stream(**asking("", response_format=Weather)) as stream:
            final = await stream.get_final_completion()
        assert final.choices[0].message.parsed == weather


@contextlib.asynccontextmanager
async def answered(*chunks: Object) -> AsyncIterator[tuple[AsyncOpenAI, Any]]:
    """A client of a relay whose upstream says these chunks, as they stand."""
    async with relay_of_answers() as (relay, upstream), sdk(relay) as client:
        upstream.script((head(), *(event(SAME | chunk) for chunk in chunks), done()))
        yield client, upstream


def choice(index: int = 0, finish_reason: str | None = None, **fields: Any) -> Object:
    return {"index": index, "delta": fields.pop("delta", {}), "finish_reason": finish_reason, **fields}


async def test_unknown_fields_go_up_and_come_down() -> None:
    chunk = {"choices": [choice(delta={"content": "hi", "mood": "good"})], "obfuscation": "xYz", "citations": ["u"]}
    async with answered(chunk, {"choices": [choice(finish_reason="stop")]}) as (client, upstream):
        extra = {"top_k": 40, "provider": {"order": ["a", "b"]}, "stream_options": {"include_obfuscation": True}}
        first, _ = await stream_of(client, "hi", extra_body=extra)
        assert first.to_dict() == SAME | chunk
        assert first.model_extra["citations"] == ["u"]
        assert first.choices[0].delta.model_extra == {"mood": "good"}
        sent = upstream.requests[0].body
        assert (sent["top_k"], sent["provider"]) == (40, {"order": ["a", "b"]})
        assert sent["stream_options"] == {"include_obfuscation": True, "include_usage": True}
        completion = await client.chat.completions.create(**asking("hi"))
        assert completion.model_extra == {"citations": ["u"]}
        assert completion.choices[0].message.model_extra == {"mood": "good"}


async def test_several_choices_are_several_answers() -> None:
    texts = (("a1", 0), ("b1", 1), ("a2", 0), ("b2", 1))
    chunks = [{"choices": [choice(index, delta={"content": text})]} for text, index in texts]
    ends = [{"choices": [choice(index, finish_reason="stop")]} for index in (0, 1)]
    async with answered(*chunks, *ends) as (client, upstream):
        heard = ["", ""]
        for chunk in await stream_of(client, "hi", n=2):
            heard[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        completion = await client.chat.completions.create(**asking("hi", n=2))
        assert heard == [each.message.content for each in completion.choices] == ["a1a2", "b1b2"]
        assert [request.body["n"] for request in upstream.requests] == [2, 2]


async def test_logprobs_and_audio_are_kept_and_joined() -> None:
    token: Object = {"token": "hi", "logprob": -0.1, "bytes": [104, 105], "top_logprobs": []}
    talk = ({"id": "au_1", "data": "QUJD"}, {"data": "REVG", "transcript": "hello"}, {"expires_at": 9})
    chunks = [
        *({"choices": [choice(delta={"content": "hi"}, logprobs={"content": [token], "refusal": None})]},) * 2,
        *({"choices": [choice(delta={"audio": part})]} for part in talk),
        {"choices": [choice(finish_reason="stop")]},
    ]
    async with answered(*chunks) as (client, _):
        completion = await client.chat.completions.create(**asking("hi"))
        [only] = completion.choices
        assert only.logprobs is not None
        assert [each.to_dict() for each in only.logprobs.content or ()] == [token, token]
        assert only.message.audio is not None
        assert only.message.audio.to_dict() == {
            "id": "au_1", "data": "QUJDREVG", "transcript": "hello", "expires_at": 9
        }  # fmt: skip
        assert [chunk.to_dict() for chunk in await stream_of(client, "hi")] == [SAME | chunk for chunk in chunks]
