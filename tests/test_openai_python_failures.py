"""openai-python when there is no whole answer: its own classes, its own retries, and never a silent end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.answers import ANSWERS
from tests.recipes import relay_of_answers, url_of
from tests.relay import Relay, connect, fetch
from tests.test_openai_python import DEADLINE_SECONDS, Object, asking, sdk, stream_of
from tests.upstream import Answer, Step, Upstream, answer, chunk, close, delta, hang, head, reset, silent, status

JSON: Final = {"content-type": "application/json"}
BROKEN: Final = ANSWERS["broken"]


@contextlib.asynccontextmanager
async def scripted(*answers: Answer, **settings: Any) -> AsyncIterator[tuple[Relay, Upstream, AsyncOpenAI]]:
    async with relay_of_answers(**({"attempts": 1} | settings)) as (relay, upstream), sdk(relay) as client:
        if answers:
            upstream.script(*answers)
        yield relay, upstream, client


async def refused(client: AsyncOpenAI, **fields: Any) -> openai.APIStatusError:
    """How a completion fails that never began."""
    with pytest.raises(openai.APIStatusError) as caught:
        await client.chat.completions.create(**asking("plain", **fields))
    assert caught.value.request_id == caught.value.response.headers["x-request-id"]
    return caught.value


def told(error: openai.APIStatusError) -> Object:
    return {"class": type(error), "status": error.status_code, "code": error.code}


async def test_a_stream_that_breaks_raises_its_code_behind_the_text() -> None:
    async with scripted() as (relay, _, client):
        stream: Any = await client.chat.completions.create(**asking("broken", stream=True))
        told_first = [await anext(stream) for _ in ("role", *BROKEN.texts)]
        with pytest.raises(openai.APIError) as caught:
            await anext(stream)
        assert "".join(each.choices[0].delta.content for each in told_first) == BROKEN.text
        assert (type(caught.value), caught.value.code) == (openai.APIError, "upstream_truncated")
        assert isinstance(caught.value.body, dict)
        assert caught.value.body["partial"] is True
        with pytest.raises(openai.APIError, match="whole"):
            await asyncio.to_thread(_read_in_a_thread, relay)


def _read_in_a_thread(relay: Relay) -> None:
    with OpenAI(base_url=f"{url_of(relay)}/v1", api_key="any", timeout=DEADLINE_SECONDS) as client:
        stream: Any = client.chat.completions.create(**asking("broken", stream=True))
        list(stream)


@pytest.mark.parametrize("retries", [0, 1])
async def test_a_break_behind_a_whole_answer_is_an_error_that_may_be_retried(retries: int) -> None:
    async with scripted() as (_, upstream, client):
        with pytest.raises(openai.InternalServerError) as caught:
            await client.with_options(max_retries=retries).chat.completions.create(**asking("broken"))
        assert told(caught.value) == {
            "class": openai.InternalServerError,
            "status": 502,
            "code": "upstream_truncated",
        }
        assert len(upstream.requests) == 1 + retries


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("upstream_status", "kind", "code"),
    [
        (400, openai.BadRequestError, "upstream_rejected"),
        (404, openai.BadRequestError, "upstream_rejected"),  # an unknown model
        (401, openai.InternalServerError, "upstream_error"),
        (429, openai.RateLimitError, "rate_limited"),
        (503, openai.InternalServerError, "upstream_unavailable"),
    ],
)
async def test_a_refusal_upstream_raises_the_class_of_its_status(
    upstream_status: int, kind: type[openai.APIStatusError], code: str, stream: bool
) -> None:
    body = b'{"error": {"message": "The model `x` does not exist", "code": "model_not_found"}}'
    async with scripted(status(upstream_status, body, JSON | {"retry-after": "7"})) as (_, _, client):
        error = await refused(client, stream=stream)
        assert (type(error), error.code) == (kind, code)
        assert isinstance(error.body, dict)
        assert error.body["request_id"] == error.request_id
        if kind is openai.BadRequestError:
            assert "does not exist" in error.message
        if kind is openai.RateLimitError:
            assert error.response.headers["retry-after"] == "7"


async def test_what_no_retry_mends_is_not_retried() -> None:
    async with scripted(status(401, b"{}", JSON)) as (_, upstream, client):
        error = await refused(client.with_options(max_retries=2))
        assert error.response.headers["x-should-retry"] == "false"
        assert len(upstream.requests) == 1


async def test_a_retry_waits_as_long_as_upstream_asked() -> None:
    """Asked for nothing, the client would wait half a second at most."""
    async with scripted(status(429, b"{}", JSON | {"retry-after": "1"}), answer("hi")) as (_, upstream, client):
        stream = await stream_of(client.with_options(max_retries=1), "plain")
        assert "".join(each.choices[0].delta.content or "" for each in stream) == "hi"
        first, second = upstream.requests
        assert second.at - first.at > 0.9


async def test_what_the_relay_tries_again_no_client_sees() -> None:
    marked = delta(role="assistant", content="", tried=1)
    async with scripted((head(), marked, reset()), answer("hi"), attempts=2) as (_, upstream, client):
        chunks = await stream_of(client, "plain")
        assert [each.choices[0].delta.content for each in chunks] == ["", "hi", None]
        assert "tried" not in str(chunks)
        assert len(upstream.requests) == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_limit_from_a_header_is_a_gateway_timeout(stream: bool) -> None:
    async with scripted(silent()) as (_, upstream, client):
        error = await refused(client, stream=stream, extra_headers={"X-Timeout-First-Token": "0.2"})
        assert told(error) == {"class": openai.InternalServerError, "status": 504, "code": "upstream_timeout"}
        await upstream.wait_for(lambda upstream: upstream.aborted == 1)
        impatient = client.with_options(default_headers={"X-Timeout-First-Token": "0"})
        assert (await refused(impatient)).param == "X-Timeout-First-Token"


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"messages": []}, "messages"), ({"extra_body": {"n": "two"}}, "n"), ({"extra_body": {"model": 7}}, "model")],
)
async def test_a_request_that_is_wrong_names_its_field(fields: Object, param: str) -> None:
    async with scripted() as (_, upstream, client):
        error = await refused(client, **fields)
        assert told(error) == {"class": openai.UnprocessableEntityError, "status": 422, "code": "invalid_request"}
        assert error.param == param
        assert upstream.requests == []


async def test_a_request_that_is_too_large_is_refused_before_upstream_hears_of_it() -> None:
    async with scripted(max_body_bytes=1024) as (_, upstream, client):
        error = await refused(client.with_options(max_retries=2), user="x" * 2000)
        assert told(error) == {"class": openai.APIStatusError, "status": 413, "code": "invalid_request"}
        assert upstream.requests == []


async def test_what_the_relay_does_not_serve_is_not_found() -> None:
    async with scripted() as (_, _, client):
        for ask in (client.embeddings.create, client.responses.create):
            with pytest.raises(openai.NotFoundError, match="no such path"):
                await ask(model="demo", input="hi")


@pytest.mark.parametrize("kind", ["with_raw_response", "with_streaming_response"])
async def test_a_stream_that_is_stopped_elsewhere_raises_cancelled(kind: str) -> None:
    async with scripted((head(), chunk("Half"), hang())) as (relay, upstream, client):
        request = getattr(client.chat.completions, kind).create(**asking("plain", stream=True))
        async with request if kind == "with_streaming_response" else contextlib.nullcontext(await request) as response:
            stream = await response.parse() if kind == "with_streaming_response" else response.parse()
            first = await anext(stream)
            assert first.choices[0].delta.content == "Half"
            stopped, _ = await fetch(relay.port, "DELETE", f"/chat/stream/{response.headers['x-stream-id']}")
            assert stopped.status == 202
            with pytest.raises(openai.APIError) as caught:
                await anext(stream)
            assert caught.value.code == "cancelled"
        await upstream.wait_for(lambda upstream: upstream.aborted == 1)


async def test_an_answer_that_is_stopped_elsewhere_is_a_conflict_that_is_not_retried() -> None:
    async with scripted((head(), chunk("Half"), hang())) as (relay, upstream, client):
        asked = asyncio.create_task(refused(client.with_options(max_retries=2)))
        await upstream.wait_for(lambda upstream: upstream.opened == 1)
        [generation] = relay.generations
        await fetch(relay.port, "DELETE", f"/chat/stream/{generation.id}")
        assert told(await asked) == {"class": openai.ConflictError, "status": 409, "code": "cancelled"}
        assert len(upstream.requests) == 1


@pytest.mark.parametrize(("end", "code"), [(hang(), "upstream_timeout"), (close(), "upstream_truncated")])
async def test_no_failure_is_followed_by_done(end: Step, code: str) -> None:
    async with scripted((head(), chunk("Half"), end)) as (relay, _, _), connect(relay.port) as client:
        headers = {"X-Timeout-Idle": "0.3"}
        response = await client.request("POST", "/v1/chat/completions", asking("hi", stream=True), headers)
        *_, last = [block async for block in response.blocks()]
        assert last.startswith(f'data: {{"error":{{"code":"{code}"')
