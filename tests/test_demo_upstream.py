"""The built-in upstream, seen by the real SDK and, where framing counts, as bytes on a socket."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import aiohttp
import openai
import pytest

from app.demo.models import MODELS
from app.demo.server import DemoServer

HELLO: Any = [{"role": "user", "content": "Hello there"}]
PARAMETERS = {"properties": {"city": {"type": "string"}, "days": {"enum": [3]}}}
TOOL: Any = {"type": "function", "function": {"name": "forecast", "parameters": PARAMETERS}}
CJK_AND_EMOJI = "你好世界 · こんにちは · 안녕하세요 🎉"


class Demo(NamedTuple):
    server: DemoServer
    url: str
    sdk: openai.AsyncOpenAI
    http: aiohttp.ClientSession


@pytest.fixture
async def demo() -> AsyncIterator[Demo]:
    server = DemoServer()
    url = await server.start()
    plain = openai.DefaultAsyncHttpxClient(verify=False)  # to load the certificates takes longer than most tests
    sdk = openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0, timeout=5, http_client=plain)
    async with sdk, aiohttp.ClientSession() as http:
        yield Demo(server, url, sdk, http)
    await server.stop()


async def streamed(demo: Demo, model: str, **fields: Any) -> list[Any]:
    stream = await demo.sdk.chat.completions.create(model=model, messages=HELLO, stream=True, **fields)
    return [chunk async for chunk in stream]


async def posted(demo: Demo, **body: Any) -> str:
    async with demo.http.post(f"{demo.url}/chat/completions", json={"messages": HELLO, **body}) as response:
        return await response.text()


def text(chunks: list[Any], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices)


async def answering(server: DemoServer, requests: int) -> None:
    async with asyncio.timeout(2):
        while server.active != requests:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0)


async def test_a_stream_has_openais_frames(demo: Demo) -> None:
    frames = (await posted(demo, model="demo-fast", stream=True)).split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    assert all(frame.startswith("data: {") for frame in frames[:-2])
    chunks = [json.loads(frame[6:]) for frame in frames[:-2]]
    assert {tuple(chunk) for chunk in chunks} == {("id", "object", "created", "model", "system_fingerprint", "choices")}
    assert {(chunk["id"], chunk["object"], chunk["model"]) for chunk in chunks} == {
        (chunks[0]["id"], "chat.completion.chunk", "demo-fast")
    }
    opening = {"role": "assistant", "content": "", "refusal": None}
    assert chunks[0]["choices"] == [{"index": 0, "delta": opening, "logprobs": None, "finish_reason": None}]
    assert chunks[-1]["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    assert all(list(chunk["choices"][0]["delta"]) == ["content"] for chunk in chunks[1:-1])


async def test_an_answer_is_the_same_streamed_and_whole(demo: Demo) -> None:
    chunks = await streamed(demo, "demo-fast", stream_options={"include_usage": True})
    whole = await demo.sdk.chat.completions.create(model="demo-fast", messages=HELLO)
    assert whole.choices[0].message.content == text(chunks)
    assert whole.choices[0].finish_reason == "stop"
    assert "“Hello there”" in text(chunks)
    assert CJK_AND_EMOJI in text(chunks)
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens == len(chunks) - 3
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


async def test_usage_is_sent_only_when_asked_for(demo: Demo) -> None:
    assert all(chunk.choices and chunk.usage is None for chunk in await streamed(demo, "demo-fast"))


async def test_every_choice_is_answered(demo: Demo) -> None:
    chunks = await streamed(demo, "demo-fast", n=4)
    assert len({text(chunks, index) for index in range(4)}) == 1
    assert [c.choices[0].finish_reason for c in chunks[-4:]] == ["stop"] * 4
    whole = await demo.sdk.chat.completions.create(model="demo-fast", messages=HELLO, n=2)
    assert [choice.index for choice in whole.choices] == [0, 1]


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_a_token_limit_cuts_the_answer(demo: Demo, field: str) -> None:
    chunks = await streamed(demo, "demo-fast", **{field: 3})
    assert (text(chunks), chunks[-1].choices[0].finish_reason) == ("You said:", "length")


@pytest.mark.parametrize("stop", ["id: “He", ["never said", "id: “He"]])
async def test_a_stop_sequence_ends_the_answer_before_it(demo: Demo, stop: Any) -> None:
    chunks = await streamed(demo, "demo-fast", stop=stop)
    assert (text(chunks), chunks[-1].choices[0].finish_reason) == ("You sa", "stop")


async def test_a_long_answer_is_about_2000_tokens(demo: Demo) -> None:
    assert 1_900 < len(await streamed(demo, "demo-long")) < 2_100


async def test_markdown_has_a_heading_a_list_a_table_and_code(demo: Demo) -> None:
    lines = text(await streamed(demo, "demo-markdown")).splitlines()
    assert all(any(line.startswith(mark) for line in lines) for mark in ("# ", "- ", "| ", "|---", "```python"))


async def test_reasoning_comes_before_the_answer(demo: Demo) -> None:
    deltas = [chunk.choices[0].delta.to_dict() for chunk in await streamed(demo, "demo-reasoning")][1:-1]
    kinds = [next(iter(delta)) for delta in deltas]
    assert kinds == sorted(kinds, reverse=True)
    assert set(kinds) == {"reasoning_content", "content"}


@pytest.mark.parametrize(("tools", "name"), [([TOOL], "forecast"), (openai.omit, "get_weather")])
async def test_a_tool_is_called_in_pieces(demo: Demo, tools: Any, name: str) -> None:
    chunks = await streamed(demo, "demo-tool", tools=tools)
    first, *others = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert (first.index, first.type, first.function.name, first.function.arguments) == (0, "function", name, "")
    assert first.id
    assert len(others) > 2
    assert all(call.id is None and call.function.name is None for call in others)
    arguments = json.loads("".join(call.function.arguments for call in others))
    assert arguments == ({"city": "demo", "days": 3} if name == "forecast" else {"city": "Paris"})
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


async def test_a_tools_result_is_answered_in_words(demo: Demo) -> None:
    asked: Any = await demo.sdk.chat.completions.create(model="demo-tool", messages=HELLO)
    called = asked.choices[0].message
    result: Any = {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": "rain"}
    answer = await demo.sdk.chat.completions.create(model="demo-tool", messages=[*HELLO, called.to_dict(), result])
    assert answer.choices[0].message.content == "The tool answered: rain"


async def test_a_refusal_is_no_content(demo: Demo) -> None:
    chunks = await streamed(demo, "demo-refusal")
    assert "".join(chunk.choices[0].delta.refusal or "" for chunk in chunks) == "I'm sorry, but I can't help with that."
    assert text(chunks) == ""


async def test_the_models_are_listed(demo: Demo) -> None:
    listed = [model.id async for model in demo.sdk.models.list()]
    assert listed == [model.name for model in MODELS]
    assert (await demo.sdk.models.retrieve("demo")).object == "model"
    async with demo.http.get(demo.url.replace("/v1", "/healthz")) as response:
        assert response.status == 200


@pytest.mark.parametrize(
    ("model", "error", "code"),
    [
        ("demo-error", openai.InternalServerError, None),
        ("demo-error-503", openai.InternalServerError, None),
        ("demo-error-400", openai.BadRequestError, "invalid_value"),
        ("demo-error-401", openai.AuthenticationError, "invalid_api_key"),
        ("demo-error-429", openai.RateLimitError, "rate_limit_exceeded"),
        ("gpt-4o", openai.NotFoundError, "model_not_found"),
    ],
)
async def test_errors_are_openais(demo: Demo, model: str, error: type[openai.APIStatusError], code: str | None) -> None:
    with pytest.raises(error) as raised:
        await streamed(demo, model)
    assert raised.value.code == code
    assert isinstance(raised.value.body, dict)
    assert set(raised.value.body) == {"message", "type", "param", "code"}
    assert raised.value.response.headers.get("retry-after") == ("1" if model == "demo-error-429" else None)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[" * 100_000, None),
        (b'{"model":"demo","messages":[{"role":"user","content":"\\ud83d\xff"}]}', None),
        (b"{}", "model"),
        (b'{"model":"demo","messages":[]}', "messages"),
        (b'{"model":"demo","messages":[{"role":1}]}', "messages[0].role"),
        (b'{"model":"demo","messages":[{"role":"user"}],"n":5}', "n"),
        (b'{"model":"demo","messages":[{"role":"user"}],"max_tokens":0}', "max_tokens"),
    ],
)
async def test_a_malformed_request_is_a_400_that_names_the_field(demo: Demo, body: bytes, param: str | None) -> None:
    async with demo.http.post(f"{demo.url}/chat/completions", data=body) as response:
        error = (await response.json())["error"]
        assert (response.status, error["type"], error["param"]) == (400, "invalid_request_error", param)


async def test_other_paths_and_methods_are_refused_in_the_same_shape(demo: Demo) -> None:
    async with (
        demo.http.post(f"{demo.url}/embeddings") as missing,
        demo.http.get(f"{demo.url}/chat/completions") as got,
    ):
        assert (missing.status, got.status) == (404, 405)
        assert set((await missing.json())["error"]) == set((await got.json())["error"])


async def test_flaky_fails_the_first_of_two_same_questions(demo: Demo) -> None:
    for _ in range(2):
        with pytest.raises(openai.InternalServerError):
            await streamed(demo, "demo-flaky")
        assert text(await streamed(demo, "demo-flaky")).startswith("You said")


async def test_an_error_amid_the_stream_ends_it(demo: Demo) -> None:
    frames = (await posted(demo, model="demo-error-mid", stream=True)).split("\n\n")
    assert len(frames) == 8
    assert json.loads(frames[-2][6:])["error"]["type"] == "server_error"
    with pytest.raises(openai.InternalServerError):
        await demo.sdk.chat.completions.create(model="demo-error-mid", messages=HELLO)


async def test_a_cut_stream_ends_without_finish_reason(demo: Demo) -> None:
    body = await posted(demo, model="demo-cut", stream=True)
    assert body.count('"content":') == 6
    assert '"finish_reason":null' in body
    assert '"finish_reason":"' not in body
    assert "[DONE]" not in body


async def test_a_silent_stream_sends_only_comments(demo: Demo) -> None:
    body = {"model": "demo-silent", "messages": HELLO, "stream": True}
    async with demo.http.post(f"{demo.url}/chat/completions", json=body) as response:
        assert b'"role":"assistant"' in await response.content.readuntil(b"\n\n")
        assert await response.content.readuntil(b"\n\n") == b": keep-alive\n\n"
        assert await response.content.readuntil(b"\n\n") == b": keep-alive\n\n"


@pytest.mark.parametrize("model", ["demo-slow", "demo-silent", "demo-stall", "demo-hang"])
@pytest.mark.parametrize("stream", [True, False])
async def test_generation_stops_when_the_client_leaves(demo: Demo, model: str, stream: bool) -> None:
    asking = asyncio.create_task(posted(demo, model=model, stream=stream))
    await answering(demo.server, 1)
    assert not asking.done()
    asking.cancel()
    await answering(demo.server, 0)


async def test_stopping_cuts_open_streams_and_leaves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    before = asyncio.all_tasks()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    server = DemoServer()
    url = await server.start()
    async with aiohttp.ClientSession() as http:
        body = {"model": "demo-silent", "messages": HELLO, "stream": True}
        async with http.post(f"{url}/chat/completions", json=body) as response:
            await response.content.readuntil(b"\n\n")
            assert {number: signal.getsignal(number) for number in handlers} == handlers
            async with asyncio.timeout(2):
                await server.stop()
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()
    assert asyncio.all_tasks() == before
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


async def test_a_server_stopped_before_it_served_is_stopped() -> None:
    server = DemoServer()
    await server.stop()
    await server.start()
    await server.stop()
