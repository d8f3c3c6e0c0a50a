"""The OpenAI dialect on the wire: upstream's chunks untouched, failures that cannot be taken for an end."""

import asyncio
import json
from typing import Any

import pytest

from tests.cases import CASES, Case
from tests.completions import PATH, asked, payloads, post, read
from tests.relay import connect, fetch, running, until
from tests.upstream import (
    Upstream,
    answer,
    chunk,
    delta,
    done,
    event,
    finish,
    hang,
    head,
    send,
    usage,
    wait,
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_an_upstream_answer_ends_as_the_contract_says(case: Case) -> None:
    expect = case.expect
    async with Upstream() as upstream, running(upstream.base_url, attempts=1) as relay:
        upstream.script((head(case.status, case.headers), send(case.body)))
        response, body = await post(relay.port, asked())
    assert response.status == (expect.http_status or 200)
    if response.status != 200:
        assert json.loads(body)["error"]["code"] == expect.code
        return
    *chunks, last = payloads(body)
    if expect.end == "error":
        assert json.loads(last)["error"]["code"] == expect.code
    else:
        assert last == "[DONE]"
    said = read(chunks)
    assert (said.text, said.reasoning, said.refusal) == (expect.text, expect.reasoning or "", expect.refusal or "")
    assert len(said.calls) == (expect.tool_calls or 0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_client_that_asks_for_no_stream_gets_the_same(case: Case) -> None:
    expect = case.expect
    async with Upstream() as upstream, running(upstream.base_url, attempts=1) as relay:
        upstream.script((head(case.status, case.headers), send(case.body)))
        response, body = await post(relay.port, asked(stream=False))
    document = json.loads(body)
    if expect.end == "error":
        assert response.status >= 400
        assert (document["error"]["code"], document["error"]["partial"]) == (expect.code, False)
        return
    [choice, *_] = document["choices"]
    assert response.status == 200
    assert (choice["message"]["content"] or "") == expect.text
    assert len(choice["message"].get("tool_calls") or ()) == (expect.tool_calls or 0)
    assert (expect.usage or {}).items() <= document["usage"].items()


async def test_upstreams_bytes_go_on_untouched() -> None:
    first = b'{"id":"c1", "choices":[{"index":0,"delta":{"content":"H\\u00e9"},"logprobs":{}}], "obfuscation":"x"}'
    other = b'{"id":"c1","choices":[{"index":1,"delta":{"content":"\xc3\xa9"}}],"unknown":{"a":[1.50]}}'
    ends = [b'{"choices":[{"index":%d,"delta":{},"finish_reason":"stop"}]}' % index for index in (1, 0)]
    lines = [b"data: " + line + b"\n\n" for line in (first, other, *ends)]
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script((head(), *map(send, lines), done()))
        response, body = await post(relay.port, asked(n=2))
    assert body == b"".join(lines) + b"data: [DONE]\n\n"
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["x-stream-id"].startswith("s_")


@pytest.mark.parametrize("wanted", [True, False])
async def test_usage_is_passed_on_to_who_asked_for_it(wanted: bool) -> None:
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if wanted else {}
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(answer("Hi", usage=(3, 9)))
        _, streamed = await post(relay.port, asked(**options))
        _, whole = await post(relay.port, asked(stream=False, **options))
    assert (read(payloads(streamed)[:-1]).usage is not None) is wanted
    assert json.loads(whole)["usage"]["total_tokens"] == 12


async def test_a_failed_attempt_leaves_no_trace() -> None:
    async with Upstream() as upstream, running(upstream.base_url, attempts=2) as relay:
        upstream.script((head(), delta(role="assistant", content=""), event({"error": {"code": 503}})), answer("Hi"))
        _, body = await post(relay.port, asked())
    roles = [chunk for chunk in payloads(body)[:-1] if "role" in json.loads(chunk)["choices"][0]["delta"]]
    assert len(roles) == 1
    assert len(upstream.requests) == 2


async def test_a_cancel_is_an_error_and_no_done() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as connection:
        upstream.script((head(), chunk("Half"), hang()))
        response = await connection.request("POST", PATH, asked())
        pieces = connection.pieces(response.headers)
        body = await anext(pieces)
        await fetch(relay.port, "DELETE", f"/chat/stream/{response.headers['x-stream-id']}")
        body += b"".join([piece async for piece in pieces])
        await upstream.wait_for(lambda upstream: upstream.aborted == 1)
    [said, failed] = payloads(body)
    assert read([said]).text == "Half"
    error = json.loads(failed)["error"]
    assert (error["code"], error["partial"], error["request_id"]) == (
        "cancelled",
        True,
        response.headers["x-request-id"],
    )


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_ends_the_generation(stream: bool) -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as connection:
        upstream.script((head(), chunk("Half"), hang()))
        connection.write("POST", PATH, asked(stream))
        await upstream.wait_for(lambda upstream: upstream.active == 1)
        await until(lambda: relay.generations and relay.generations[0].log.carrying)
        connection.close()
        await upstream.wait_for(lambda upstream: upstream.aborted == 1)
        await until(lambda: not relay.generations)


async def test_a_whole_answer_that_its_client_does_not_take_is_cut_off() -> None:
    async with Upstream() as upstream, running(upstream.base_url, send_timeout_seconds=0.2) as relay:
        upstream.script((head(), *[chunk("x" * 1_000_000)] * 16, finish(), done()))
        async with connect(relay.port) as connection:
            connection.stop_reading()
            connection.write("POST", PATH, asked(stream=False))
            await until(lambda: relay.blocked, 5)
            await until(lambda: not relay.server_state.connections, 5)


async def test_a_heartbeat_is_a_comment_without_a_blank_line() -> None:
    released = asyncio.Event()
    settings = {"heartbeat_seconds": 0.05, "hold_status_seconds": 0.01}
    async with (
        Upstream() as upstream,
        running(upstream.base_url, **settings) as relay,
        connect(relay.port) as connection,
    ):
        upstream.script((head(), wait(released), chunk("Hi"), finish(), done()))
        response = await connection.request("POST", PATH, asked())
        pieces = connection.pieces(response.headers)
        assert await anext(pieces) == b": ping\n"
        released.set()
        rest = b"".join([piece async for piece in pieces])
    assert read(payloads(rest)[:-1]).text == "Hi"


async def test_the_stream_can_be_read_natively_from_its_id() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script((head(), delta(role="assistant"), chunk("Hé"), chunk("llo"), finish(), usage(3, 9), done()))
        response, _ = await post(relay.port, asked(), {"x-on-disconnect": "wait"})
        stream_id = response.headers["x-stream-id"]
        _, body = await fetch(relay.port, "GET", f"/chat/stream/{stream_id}")
        _, result = await fetch(relay.port, "GET", f"/chat/stream/{stream_id}/result")
    events = [json.loads(block.split("\n")[0][6:]) for block in body.decode().split("\n\n")[:-2]]
    assert [event["type"] for event in events] == ["start", "chunk", "delta", "delta", "chunk", "done"]
    assert [event["seq"] for event in events] == list(range(6))
    assert "".join(event["content"] for event in events) == json.loads(result)["text"] == "Héllo"


async def test_a_collected_answer_that_broke_off_is_no_answer() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(answer("Half", finish=None))
        response, body = await post(relay.port, asked(stream=False))
    assert (response.status, json.loads(body)["error"]["code"]) == (502, "upstream_truncated")
    assert json.loads(body)["error"]["partial"] is False
