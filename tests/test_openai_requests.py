"""What the OpenAI dialect takes: what the relay acts on is checked, everything else goes upstream."""

import json

import pytest

from tests.completions import asked, post
from tests.relay import fetch, running, subject
from tests.upstream import Upstream, answer, silent, status


async def test_unknown_fields_and_options_go_upstream() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(answer("Hi"))
        await post(relay.port, asked(stream_options={"include_obfuscation": False}, x_new={"a": [1, None]}, store=None))
    [request] = upstream.requests
    assert request.body == asked(
        stream_options={"include_obfuscation": False, "include_usage": True}, x_new={"a": [1, None]}, store=None
    )


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_a_refusal_is_an_http_error_in_json(accept: str) -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(status(400, b'{"error":{"message":"too long"}}'))
        response, body = await post(relay.port, asked(), {"accept": accept})
    error = json.loads(body)["error"]
    assert (response.status, response.headers["content-type"]) == (400, "application/json")
    assert response.headers["x-should-retry"] == "false"
    assert {"message", "type", "param", "code"} <= error.keys()
    assert (error["message"], error["type"]) == ("too long", "invalid_request_error")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "m"}, "messages"),
        (asked() | {"messages": []}, "messages"),
        (asked() | {"messages": ["hi"]}, "messages.0"),
        (asked(n=0), "n"),
        (asked(stream="yes"), "stream"),
        (asked(stream_options={"include_usage": 1}), "stream_options.include_usage"),
        (asked() | {"model": ""}, "model"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "model"),
    ],
)
async def test_what_the_relay_acts_on_is_checked(body: object, param: str) -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        response, answered = await post(relay.port, body)
    assert (response.status, json.loads(answered)["error"]["param"]) == (422, param)
    assert upstream.requests == []


@pytest.mark.parametrize(
    ("headers", "code", "status"),
    [
        ({"x-timeout-first-token": "0.05"}, "upstream_timeout", 504),
        ({"x-timeout-total": "0.05"}, "upstream_timeout", 504),
        ({"x-timeout-idle": "soon"}, "invalid_request", 422),
        ({"x-timeout-idle": "0"}, "invalid_request", 422),
        ({"x-timeout-total": "999999"}, "invalid_request", 422),
        ({"x-on-disconnect": "never"}, "invalid_request", 422),
    ],
)
async def test_limits_come_as_headers(headers: dict[str, str], code: str, status: int) -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(silent())
        response, body = await post(relay.port, asked(), headers)
    assert (response.status, json.loads(body)["error"]["code"]) == (status, code)
    if status == 422:
        assert json.loads(body)["error"]["param"].lower() == next(iter(headers))


async def test_options_that_upstream_refuses_are_their_senders_fault_alone() -> None:
    refusal = status(400, b'{"error":{"message":"unknown stream_options"}}')
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(refusal, answer("Hi", usage=(3, 9)))
        response, _ = await post(relay.port, asked(stream_options={"bogus": 1}))
        _, body = await post(relay.port, asked(stream=False))
    assert response.status == 400
    assert [request.body["stream_options"]["include_usage"] for request in upstream.requests] == [True, True]
    assert json.loads(body)["usage"]["total_tokens"] == 12


async def test_a_key_attaches_in_its_own_dialect_alone() -> None:
    headers = subject("a") | {"idempotency-key": "k"}
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(answer("Hi"))
        _, first = await post(relay.port, asked(), headers)
        _, again = await post(relay.port, asked(), headers)
        elsewhere, _ = await fetch(relay.port, "POST", "/chat/stream", {"message": "hi", "model": "m"}, headers)
    assert first == again
    assert elsewhere.status == 409
    assert len(upstream.requests) == 1
