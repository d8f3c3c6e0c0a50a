"""What upstreams send that would break OpenAI's clients is mended, and nothing ends in silence."""

import asyncio
from typing import Any

import openai
import pytest

from tests.recipes import relay_of_answers
from tests.test_openai_node import asked
from tests.test_openai_python import SAME, added_up, asking, choice, sdk, stream_of, taken_from
from tests.upstream import Step, chunk, delta, done, event, finish, hang, head, send, wait


def line(text: bytes) -> Step:
    return send(b'data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"demo",' + text + b"}\n\n")


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ([line(b'"x":"\xff","choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":"stop"}]')], "hi"),
        ([line(b'"choices":[{"delta":{"content":"hi"},"finish_reason":"stop"}]')], "hi"),
        ([line(b'"error":{},"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":"stop"}]')], "hi"),
        (
            [
                event(SAME | {"choices": [choice(delta={"content": text}, message={"content": whole})]})
                for text, whole in (("hi", "hi"), (" ho", "hi ho"))
            ]
            + [finish()],
            "hi ho",
        ),
    ],
    ids=["bad-utf8", "no-index", "empty-error", "message-repeated"],
)
async def test_a_chunk_that_no_client_reads_is_mended(steps: list[Step], text: str) -> None:
    async with relay_of_answers() as (relay, upstream), sdk(relay) as client:
        upstream.script((head(), *steps, done()))
        assert added_up([each.to_dict() for each in await stream_of(client, "")])["text"] == text
        completion: Any = await client.chat.completions.create(**asking(""))
        assert taken_from(completion.to_dict())["text"] == text
        streamed, whole = await asked(relay, ("stream", asking("")), ("whole", asking("")))
        assert (added_up(streamed["answer"])["text"], taken_from(whole["answer"])["text"]) == (text, text)


async def test_a_tool_call_keeps_what_was_said_beside_it_when_it_is_numbered() -> None:
    signature = {"google": {"thought_signature": "S"}}
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}, "extra_content": signature}
    async with relay_of_answers() as (relay, upstream), sdk(relay) as client:
        upstream.script((head(), delta(tool_calls=[call]), finish("tool_calls"), done()))
        first, *_ = await stream_of(client, "")
        assert first.to_dict()["choices"][0]["delta"]["tool_calls"] == [call | {"index": 0}]


async def test_a_call_whose_name_comes_with_every_part_is_named_once_by_the_helper() -> None:
    named = {"index": 0, "id": "a", "type": "function"}
    parts = [named | {"function": {"name": "f", "arguments": piece}} for piece in ('{"x"', ":1}")]
    async with relay_of_answers() as (relay, upstream), sdk(relay) as client:
        upstream.script((head(), *(delta(tool_calls=[part]) for part in parts), finish("tool_calls"), done()))
        async with client.chat.completions.stream(**asking("")) as stream:
            final = await stream.get_final_completion()
        assert final.choices[0].message.tool_calls is not None
        [call] = final.choices[0].message.tool_calls
        assert (call.id, call.function.name, call.function.arguments) == ("a", "f", '{"x":1}')


async def test_audio_comes_as_it_is_spoken() -> None:
    released = asyncio.Event()
    async with relay_of_answers() as (relay, upstream), sdk(relay) as client:
        upstream.script((head(), delta(audio={"id": "a", "data": "QUJD"}), wait(released), finish(), done()))
        stream: Any = await client.chat.completions.create(**asking("", stream=True))
        async with asyncio.timeout(2):
            assert (await anext(stream)).choices[0].delta.audio.data == "QUJD"
        released.set()


async def test_a_connection_that_is_too_old_is_no_whole_answer() -> None:
    settings = {"max_connection_seconds": 0.3, "hold_status_seconds": 0.1}
    async with relay_of_answers(**settings) as (relay, upstream), sdk(relay) as client:
        upstream.script((head(), chunk("half"), hang()))
        with pytest.raises(openai.APIError):
            await stream_of(client, "")
