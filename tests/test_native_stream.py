"""What a client of the native dialect sees, over sockets: contract §3."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from tests.relay import SSE, Connection, ask, chat, connect, event_of, fetch, running, text_of
from tests.upstream import (
    Answer,
    Upstream,
    answer,
    blackhole,
    chunk,
    delta,
    done,
    finish,
    hang,
    head,
    reset,
    silent,
    status,
    usage,
    wait,
)

SAME_ORIGIN = {"sec-fetch-site": "same-origin"}
STREAM_ID = r"s_[0-9a-f]{32}"
EVERYTHING: Answer = (
    head(),
    delta(role="assistant", content=""),
    delta(reasoning_content="Let me"),
    chunk("Hel"),
    chunk("lo"),
    delta(refusal="No"),
    delta(tool_calls=[{"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}]),
    delta(tool_calls=[{"index": 0, "function": {"arguments": '{"a"'}}]),
    finish("tool_calls"),
    usage(3, 9),
    done(),
)
REPORTED = {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12, "source": "reported"}


async def begun(connection: Connection, headers: Mapping[str, str] | None = None) -> tuple[str, AsyncIterator[str]]:
    """Posts a chat; the stream's id, and its blocks."""
    response = await connection.request("POST", "/chat/stream", chat(), headers)
    assert response.status == 200
    return response.headers["x-stream-id"], response.blocks()


async def until_done(blocks: AsyncIterator[str]) -> list[dict[str, Any]]:
    return [event_of(block) async for block in blocks]


async def test_the_head_is_the_contracts() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(answer("Hello"))
        response, _ = await ask(relay.port, chat(), headers={"x-request-id": "web-1.2:3_x"})
    stream_id, date, cookie = (response.headers.pop(name) for name in ("x-stream-id", "date", "set-cookie"))
    assert re.fullmatch(STREAM_ID, stream_id)
    assert date.endswith("GMT")
    assert re.fullmatch("relay_subject=[0-9a-f]{32}; Path=/; HttpOnly; SameSite=Strict", cookie)
    assert response.headers == {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-store, no-transform",
        "x-accel-buffering": "no",
        "x-content-type-options": "nosniff",
        "cross-origin-resource-policy": "same-origin",
        "x-request-id": "web-1.2:3_x",
        "vary": "Accept, Origin",
        "transfer-encoding": "chunked",
    }


@pytest.mark.parametrize("asked", ["", "a b", "x" * 129, "a\u00e9", "<script>", "a\tb"])
async def test_a_request_id_that_is_not_sane_is_replaced(asked: str) -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        response, _ = await fetch(relay.port, "GET", "/healthz", headers={"x-request-id": asked})
    assert re.fullmatch("r_[0-9a-f]{24}", response.headers["x-request-id"])


@pytest.mark.parametrize(
    ("sse_ids", "method", "accept", "ids"),
    [
        ("auto", "POST", "*/*", False),
        ("auto", "POST", "application/json, Text/Event-Stream;q=0.9", True),
        ("auto", "GET", "*/*", True),
        ("always", "POST", "*/*", True),
        ("never", "POST", "text/event-stream", False),
        ("never", "GET", "text/event-stream", False),
    ],
)
async def test_the_shape_follows_the_method_the_client_and_the_setting(
    sse_ids: str, method: str, accept: str, ids: bool
) -> None:
    path, body = ("/chat/stream", chat()) if method == "POST" else ("/chat/stream?message=hi&model=m", None)
    async with Upstream() as upstream, running(upstream.base_url, sse_ids=sse_ids) as relay:
        upstream.script(answer("Hel", "lo"))
        response, content = await fetch(relay.port, method, path, body, SAME_ORIGIN | {"accept": accept})
    *blocks, last, nothing = content.decode("ascii").split("\n\n")
    assert (last, nothing) == ("data: [DONE]", "")
    for seq, block in enumerate(blocks):
        id_line = f"id: {response.headers['x-stream-id']}.{seq}\n" if ids else ""
        retry = "retry: 2000\n" if ids and not seq else ""
        data, _, rest = block.partition("\n")
        assert data.startswith("data: {")
        assert rest == f"{id_line}{retry}".rstrip("\n")


async def test_a_stream_that_cannot_be_resumed_has_ids_only_for_an_eventsource() -> None:
    path = "/chat/stream?message=hi&model=m&on_disconnect=cancel"
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(answer("Hello"))
        _, posted = await ask(relay.port, chat(on_disconnect="cancel"), headers=SSE)
        _, got = await fetch(relay.port, "GET", path, headers=SAME_ORIGIN)
    assert (posted[0]["resumable"], b'"resumable":false' in got) == (False, True)
    assert not any("_id" in event for event in posted)
    assert got.count(b"\nid: ") == 3


@pytest.mark.parametrize("headers", [{}, SSE])
async def test_every_kind_of_event_in_order_with_its_seq_and_one_end(headers: dict[str, str]) -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(EVERYTHING)
        response, events = await ask(relay.port, chat(), headers=headers)
    for event in events:
        event.pop("_id", None)
    timings = events[-2].pop("timings")
    stream_id = response.headers["x-stream-id"]
    first, more = {"index": 0, "id": "call_1", "name": "f", "arguments": ""}, {"index": 0, "arguments": '{"a"'}
    resumable = bool(headers)
    assert events == [
        {
            "type": "start",
            "content": "",
            "protocol": 1,
            "id": stream_id,
            "model": "m",
            "resumable": resumable,
            "seq": 0,
        },
        {"type": "reasoning", "content": "", "reasoning": "Let me", "seq": 1},
        {"type": "delta", "content": "Hel", "seq": 2},
        {"type": "delta", "content": "lo", "seq": 3},
        {"type": "refusal", "content": "", "refusal": "No", "seq": 4},
        {"type": "tool_call", "content": "", "tool_call": first, "seq": 5},
        {"type": "tool_call", "content": "", "tool_call": more, "seq": 6},
        {"type": "done", "content": "", "finish_reason": "tool_calls", "usage": REPORTED, "seq": 7},
        {"type": "[DONE]"},
    ]
    assert 0 <= timings["first_token_s"] <= timings["total_s"] < 5


async def test_what_upstream_did_not_count_is_estimated() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(answer("abcdefgh", "\u6f22" * 4, "i"), answer("a", "b", "c"))
        _, by_bytes = await ask(relay.port, chat("12345678"))
        _, by_pieces = await ask(relay.port, chat())
    estimated = {"prompt_tokens": 2, "completion_tokens": 6, "total_tokens": 8, "source": "estimated"}
    assert by_bytes[-2]["usage"] == estimated
    assert by_pieces[-2]["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("text", ["x" * 300_000, "\u6f22\U0001f389" * 30_000, '\\"\n\u2028\x00' * 20_000])
async def test_a_long_delta_is_split_into_short_ascii_lines(text: str) -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(answer(text))
        _, content = await fetch(relay.port, "POST", "/chat/stream", chat())
    assert content.isascii()
    assert b"\r" not in content
    assert max(map(len, content.split(b"\n"))) < 64 * 1024
    assert text_of([event_of(block) for block in content.decode().split("\n\n")[:-2]]) == text


async def test_a_long_tool_call_is_split_into_short_lines() -> None:
    arguments = json.dumps({"text": "\U0001f389" * 50_000}, ensure_ascii=False)
    call = {"index": 0, "id": "\u6f22" * 512, "function": {"name": "\U0001f389" * 512, "arguments": arguments}}
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script((head(), delta(tool_calls=[call]), finish("tool_calls")))
        _, content = await fetch(relay.port, "POST", "/chat/stream", chat())
    assert max(map(len, content.split(b"\n"))) < 64 * 1024
    events = [event_of(block) for block in content.decode().split("\n\n")[:-2]]
    pieces = [event["tool_call"] for event in events if event["type"] == "tool_call"]
    assert "".join(piece["arguments"] for piece in pieces) == arguments
    assert (pieces[0]["id"], pieces[0]["name"]) == (call["id"], "\U0001f389" * 512)


async def test_no_half_of_a_character_leaves() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(answer("a\ud83c", "\udf89b", "\ud83c", "c\udf89"))
        _, events = await ask(relay.port, chat())
    assert text_of(events) == "a\U0001f389b\ufffdc\ufffd"
    assert all(event.get("content", "").encode() is not None for event in events)


async def test_each_token_arrives_before_the_next_is_released() -> None:
    released = [asyncio.Event() for _ in range(20)]
    steps = [step for number, event in enumerate(released) for step in (wait(event), chunk(f"<{number}>"))]
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as connection:
        upstream.script((head(), *steps, finish()))
        released[0].set()
        _, blocks = await begun(connection)
        assert event_of(await anext(blocks))["type"] == "start"
        for number, event in enumerate(released):
            event.set()
            assert event_of(await anext(blocks))["content"] == f"<{number}>"
        assert [event["type"] for event in await until_done(blocks)] == ["done", "[DONE]"]


async def test_the_first_frame_alone_is_padded() -> None:
    async with Upstream() as upstream, running(upstream.base_url, first_frame_padding_bytes=4096) as relay:
        upstream.script(answer("Hello"))
        _, content = await fetch(relay.port, "POST", "/chat/stream", chat())
    start, *others = content.decode().split("\n\n")
    assert event_of(start)["padding"] == "0" * 4096
    assert "padding" not in "".join(others)


async def test_silence_is_filled_with_pings_that_are_not_kept() -> None:
    spoken = asyncio.Event()
    async with (
        Upstream() as upstream,
        running(upstream.base_url, heartbeat_seconds=0.05, hold_status_seconds=0) as relay,
        connect(relay.port) as connection,
    ):
        upstream.script((head(), wait(spoken), chunk("Hello"), hang()))
        stream_id, blocks = await begun(connection, SSE)
        assert event_of(await anext(blocks))["type"] == "start"
        await upstream.wait_for(lambda u: u.active == 1)
        pings = [event_of(await anext(blocks)) for _ in range(3)]
        spoken.set()
        while (hello := event_of(await anext(blocks)))["type"] == "ping":
            pass
        after = event_of(await anext(blocks))
    assert [set(ping) for ping in pings] == [{"type", "content", "phase", "elapsed_s"}] * 3
    assert [(ping["type"], ping["content"], ping["phase"]) for ping in pings[1:]] == [("ping", "", "waiting")] * 2
    assert 0 < pings[0]["elapsed_s"] <= pings[1]["elapsed_s"] <= pings[2]["elapsed_s"]
    assert (hello["content"], hello["seq"], hello["_id"]) == ("Hello", 1, f"{stream_id}.1")
    assert (after["type"], after["phase"]) == ("ping", "streaming")


async def test_a_ping_says_that_upstream_is_not_reached_yet() -> None:
    with blackhole() as url:
        async with (
            running(url, heartbeat_seconds=0.05, hold_status_seconds=0) as relay,
            connect(relay.port) as connection,
        ):
            _, blocks = await begun(connection)
            await anext(blocks)
            assert event_of(await anext(blocks))["phase"] == "connecting"


REFUSALS = [
    (400, {}, 400, "upstream_rejected", False),
    (401, {}, 502, "upstream_error", False),
    (404, {}, 400, "upstream_rejected", False),
    (429, {"retry-after": "7"}, 429, "rate_limited", True),
    (500, {}, 502, "upstream_unavailable", True),
    (503, {"retry-after": "3"}, 502, "upstream_unavailable", True),
    (504, {}, 504, "upstream_timeout", True),
]


@pytest.mark.parametrize(("code", "sent", "wanted_status", "wanted_code", "retryable"), REFUSALS)
async def test_a_failure_before_the_first_event_is_an_http_status(
    code: int, sent: dict[str, str], wanted_status: int, wanted_code: str, retryable: bool
) -> None:
    async with Upstream() as upstream, running(upstream.base_url, attempts=1) as relay:
        upstream.script(status(code, b'{"error":{"message":"Nope."}}', sent))
        response, [body] = await ask(relay.port, chat())
        as_events, events = await ask(relay.port, chat(), headers=SSE)
    for refused in (response, as_events):
        assert refused.status == wanted_status
        assert refused.headers.get("x-should-retry") == (None if retryable else "false")
        assert refused.headers.get("retry-after") == sent.get("retry-after")
    error = body["error"]
    assert (error["code"], error["retryable"], error["partial"]) == (wanted_code, retryable, False)
    assert (error["phase"], error["upstream_status"]) == ("first_token", code)
    assert error["request_id"] == response.headers["x-request-id"]
    assert (response.headers["content-type"], set(body)) == ("application/json", {"error"})
    told = error | {"request_id": as_events.headers["x-request-id"]}
    assert events == [{"type": "error", "content": "", "error": told}, {"type": "[DONE]"}]


async def test_a_failure_after_the_hold_travels_in_the_stream() -> None:
    refuse = asyncio.Event()
    async with (
        Upstream() as upstream,
        running(upstream.base_url, attempts=1, hold_status_seconds=0.05) as relay,
        connect(relay.port) as connection,
    ):
        upstream.script((wait(refuse), *status(503)))
        _, blocks = await begun(connection)
        assert event_of(await anext(blocks))["type"] == "start"
        refuse.set()
        error, last = await until_done(blocks)
    assert (error["type"], error["error"]["code"], error["seq"]) == ("error", "upstream_unavailable", 1)
    assert last == {"type": "[DONE]"}


async def test_a_failure_after_text_is_partial() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script((head(), chunk("Hel"), reset()))
        _, events = await ask(relay.port, chat())
    assert [event["type"] for event in events] == ["start", "delta", "error", "[DONE]"]
    error = events[2]["error"]
    assert (error["code"], error["phase"], error["partial"]) == ("upstream_unavailable", "stream", True)
    assert len(upstream.requests) == 1


async def test_past_its_bound_a_stream_is_live_only() -> None:
    texts = [f"{number:0100}" for number in range(20)]
    over = asyncio.Event()
    async with (
        Upstream() as upstream,
        running(upstream.base_url, log_stream_bytes=2048, log_lag_bytes=1024) as relay,
        connect(relay.port) as connection,
    ):
        upstream.script((head(), *map(chunk, texts), wait(over), finish()))
        stream_id, blocks = await begun(connection, SSE)
        events = [event_of(await anext(blocks)) for _ in range(22)]
        gone = [await fetch(relay.port, "GET", f"/chat/stream/{stream_id}{end}") for end in ("", "/result")]
        over.set()
        events += await until_done(blocks)
    kept = [event for event in events if "seq" in event]
    at = len(kept)
    assert 1 < at < 20
    assert [event["_id"] for event in kept] == [f"{stream_id}.{seq}" for seq in range(at)]
    assert events[at] == {"type": "live_only", "content": ""}
    assert not any({"seq", "_id"} & set(event) for event in events[at:])
    assert text_of(events) == "".join(texts)
    assert [event["type"] for event in events[-2:]] == ["done", "[DONE]"]
    assert [(r.status, json.loads(body)["error"]["code"]) for r, body in gone] == [(410, "not_resumable")] * 2


async def test_a_get_begins_at_once_and_passes_its_parameters_typed() -> None:
    path = "/chat/stream?message=h%C3%A9&model=m2&system=be+brief&temperature=0.5&max_tokens=7&on_disconnect=cancel"
    async with (
        Upstream() as upstream,
        running(upstream.base_url, attempts=1, hold_status_seconds=60) as relay,
        connect(relay.port) as connection,
    ):
        refuse = asyncio.Event()
        upstream.script((wait(refuse), *status(503)))
        response = await connection.request("GET", path, headers=SAME_ORIGIN)
        blocks = response.blocks()
        start = event_of(await anext(blocks))
        await upstream.wait_for(lambda u: u.active == 1)
        refuse.set()
        events = await until_done(blocks)
    assert (start["type"], start["model"], start["resumable"]) == ("start", "m2", False)
    assert [event["type"] for event in events] == ["error", "[DONE]"]
    asked = upstream.requests[0].body
    assert (asked["model"], asked["temperature"], asked["max_tokens"]) == ("m2", 0.5, 7)
    assert asked["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "h\u00e9"}]
    assert not {"message", "system", "on_disconnect"} & set(asked)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("message=hi&modle=m", "modle"),
        ("model=m", "message"),
        ("message=hi&model=m&temperature=warm", "temperature"),
        ("message=hi&model=m&temperature=nan", "temperature"),
        ("message=hi&model=m&max_tokens=1.5", "max_tokens"),
        ("message=hi&model=m&max_tokens=0", "max_tokens"),
        ("message=hi&model=m&on_disconnect=maybe", "on_disconnect"),
        ("message=hi&model=m&messages=%5B%5D", "messages"),
    ],
)
async def test_a_get_refuses_what_it_does_not_know(query: str, param: str) -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        response, body = await fetch(relay.port, "GET", f"/chat/stream?{query}", headers=SAME_ORIGIN)
    error = json.loads(body)["error"]
    assert (response.status, error["code"], error["param"]) == (422, "invalid_request", param)
    assert upstream.requests == []


CANCELS = [("DELETE", ""), ("POST", "/cancel")]


@pytest.mark.parametrize(("method", "end"), CANCELS)
async def test_cancel_ends_the_stream_properly_for_everyone(method: str, end: str) -> None:
    async with (
        Upstream() as upstream,
        running(upstream.base_url) as relay,
        connect(relay.port) as first,
        connect(relay.port) as second,
    ):
        upstream.script((head(), chunk("Hel"), chunk("lo"), hang()))
        stream_id, blocks = await begun(first, SSE)
        other = (await second.request("GET", f"/chat/stream/{stream_id}")).blocks()
        begun_with = [[event_of(await anext(reader)) for _ in range(3)] for reader in (blocks, other)]
        answers = [await fetch(relay.port, method, f"/chat/stream/{stream_id}{end}") for _ in range(2)]
        await upstream.wait_for(lambda u: u.aborted == 1)
        ends = [await until_done(reader) for reader in (blocks, other)]
        answers.append(await fetch(relay.port, method, f"/chat/stream/{stream_id}{end}"))
    assert begun_with[0] == begun_with[1]
    assert ends[0] == ends[1]
    assert [event["type"] for event in ends[0]] == ["done", "[DONE]"]
    assert ends[0][0]["finish_reason"] == "cancelled"
    assert ends[0][0]["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "source": "estimated"}
    assert [response.status for response, _ in answers] == [202, 202, 202]
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(("method", "end"), CANCELS)
async def test_cancel_works_while_the_status_is_held(method: str, end: str) -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as connection:
        upstream.script(silent())
        connection.write("POST", "/chat/stream", chat())
        await upstream.wait_for(lambda u: u.active == 1)
        [generation] = relay.generations
        response, _ = await fetch(relay.port, method, f"/chat/stream/{generation.id}{end}")
        assert response.status == 202
        held = await connection.head()
        assert [event["type"] for event in await held.events()] == ["start", "done", "[DONE]"]
        await upstream.wait_for(lambda u: u.aborted == 1)


async def test_each_request_gets_the_model_it_asked_for() -> None:
    async with Upstream() as upstream, running(upstream.base_url, default_model="m1") as relay:
        for model in ("m1", "m2", "m3"):
            upstream.script(answer(f"I am {model}"), model=model)
        asked = ({"message": "hi"}, {"message": "hi", "model": "m2"}, {"message": "hi", "model": "m3"})
        streams = await asyncio.gather(*(ask(relay.port, body) for body in asked))
    assert [events[0]["model"] for _, events in streams] == ["m1", "m2", "m3"]
    assert [text_of(events) for _, events in streams] == ["I am m1", "I am m2", "I am m3"]
    assert sorted(request.body["model"] for request in upstream.requests) == ["m1", "m2", "m3"]
