"""The AI SDK dialect over HTTP: what is asked, streamed, resumed and stopped under a chat's id, and by whom."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from tests.cases import CASES, Case
from tests.relay import Connection, Relay, Response, connect, fetch, running, subject, until
from tests.upstream import (
    Upstream,
    answer,
    chunk,
    comments,
    delta,
    done,
    finish,
    hang,
    head,
    send,
    silent,
    status,
    usage,
    wait,
)

PATH = "/api/chat"
STREAM = "/api/chat/chat-1/stream"
OWNER, STRANGER = subject("a"), subject("b")
Part = dict[str, Any]


def message(text: str, **more: object) -> Part:
    return {"id": "u1", "role": "user", "parts": [{"type": "text", "text": text}], **more}


def asked(**fields: object) -> Part:
    return {"id": "chat-1", "messages": [message("hi")], "trigger": "submit-message", "model": "m", **fields}


async def post(port: int, body: object = None, headers: Mapping[str, str] = OWNER) -> tuple[Response, list[Part]]:
    """A whole stream; an error as the one part."""
    async with connect(port) as connection:
        response = await connection.request("POST", PATH, body or asked(), headers)
        if response.status != 200:
            return response, [(await response.json())["error"]]
        return response, [part_of(block) async for block in response.blocks()]


def part_of(block: str) -> Part:
    data = block.removeprefix("data: ")
    part: Part = {"type": data} if data == "[DONE]" else json.loads(data)
    return part


async def begun(
    connection: Connection, headers: Mapping[str, str] = OWNER, **fields: object
) -> tuple[Response, AsyncIterator[str]]:
    response = await connection.request("POST", PATH, asked(**fields), headers)
    assert response.status == 200
    return response, response.blocks()


async def shown(blocks: AsyncIterator[str], text: str) -> list[Part]:
    """Reads until that text has come."""
    parts: list[Part] = []
    while text_of(parts) != text:
        parts.append(part_of(await anext(blocks)))
    return parts


def text_of(parts: list[Part], kind: str = "text") -> str:
    return "".join(part["delta"] for part in parts if part["type"] == f"{kind}-delta")


def types(parts: list[Part]) -> list[str]:
    return [part["type"] for part in parts]


async def nothing_remains(relay: Relay) -> None:
    """No generation, and no chat beyond the streams that can be read again for their time."""
    await until(lambda: not relay.generations)
    streams = relay.streams
    assert streams.chats._chat_of.keys() <= streams._streams.keys()
    assert {awaited.generation.id for awaited in streams.chats._awaited.values()} <= streams._streams.keys()
    assert streams._streams.keys() == streams._ended.keys()


async def test_an_answer_is_a_message_of_parts() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        thought = delta(reasoning_content="Hm.")
        upstream.script((head(), thought, chunk("Hel"), chunk("lo"), finish(), usage(3, 9), done()))
        response, parts = await post(relay.port)
        await nothing_remains(relay)
    assert types(parts) == [
        *("start", "start-step", "reasoning-start", "reasoning-delta", "reasoning-end"),
        *("text-start", "text-delta", "text-delta", "text-end", "finish-step", "finish", "[DONE]"),
    ]
    assert (text_of(parts), text_of(parts, "reasoning")) == ("Hello", "Hm.")
    assert parts[0]["messageId"] == response.headers["x-stream-id"]
    metadata = parts[-2]["messageMetadata"]
    assert (parts[-2]["finishReason"], metadata["model"], metadata["usage"]["total_tokens"]) == ("stop", "m", 12)
    assert metadata["timings"]["total_s"] >= metadata["timings"]["first_token_s"] >= 0
    assert response.headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_an_upstream_answer_ends_as_the_contract_says(case: Case) -> None:
    expect = case.expect
    async with Upstream() as upstream, running(upstream.base_url, attempts=1) as relay:
        upstream.script((head(case.status, case.headers), send(case.body)))
        response, parts = await post(relay.port)
    assert response.status == (expect.http_status or 200)
    if response.status != 200:
        assert parts[0]["code"] == expect.code
        return
    *_, last, end = parts
    assert end["type"] == "[DONE]"
    assert (last["type"], last.get("errorText", "").partition(":")[0]) == (
        ("error", expect.code) if expect.end == "error" else ("finish", "")
    )
    assert text_of(parts) in (f"{expect.text}{expect.refusal or ''}", f"{expect.refusal or ''}{expect.text}")
    assert text_of(parts, "reasoning") == (expect.reasoning or "")
    assert types(parts).count("tool-input-start") == (expect.tool_calls or 0)


async def test_a_conversation_reaches_upstream_as_openai_has_it() -> None:
    call = {"type": "dynamic-tool", "toolName": "f", "toolCallId": "c1", "state": "output-available"}
    said = {"id": "a1", "role": "assistant", "parts": [call | {"input": {"a": 1}, "output": "sunny"}]}
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(answer("x"))
        await post(relay.port, asked(messages=[message("hi"), said], temperature=0.5, system="Be brief."))
        sent = upstream.requests[0].body
    assert sent["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    assert (sent["temperature"], sent["model"], sent["stream"]) == (0.5, "m", True)
    assert sent.keys().isdisjoint({"id", "trigger", "system"})


async def test_after_a_tools_result_the_answer_belongs_to_the_same_message() -> None:
    said = {"id": "a1", "role": "assistant", "parts": [{"type": "text", "text": "I will look."}]}
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as client:
        upstream.script((head(), chunk("Sunny"), hang()))
        _, blocks = await begun(client, messages=[message("hi"), said])
        first = await shown(blocks, "Sunny")
        async with connect(relay.port) as other:
            again = await shown((await other.request("GET", STREAM, headers=OWNER)).blocks(), "Sunny")
    assert first[0]["messageId"] == "a1"
    assert first == again


async def test_a_failure_before_the_first_part_is_an_http_status() -> None:
    async with Upstream() as upstream, running(upstream.base_url, attempts=1) as relay:
        upstream.script(status(500))
        response, [error] = await post(relay.port, headers=OWNER | {"accept": "text/event-stream"})
        await nothing_remains(relay)
    assert (response.status, error["code"]) == (502, "upstream_unavailable")
    assert response.headers["content-type"] == "application/json"


async def test_a_failure_after_it_closes_what_is_open() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(answer("Half", finish=None))
        _, parts = await post(relay.port)
        await nothing_remains(relay)
    assert types(parts)[-4:] == ["text-delta", "text-end", "error", "[DONE]"]
    assert parts[-2]["errorText"].startswith("upstream_truncated: ")


async def test_after_the_hold_a_failure_is_a_part() -> None:
    async with Upstream() as upstream, running(upstream.base_url, hold_status_seconds=0.05) as relay:
        upstream.script(silent())
        _, parts = await post(relay.port, headers=OWNER | {"x-timeout-first-token": "0.3"})
    assert types(parts) == ["start", "start-step", "error", "[DONE]"]
    assert parts[-2]["errorText"].startswith("upstream_timeout: ")


async def test_limits_come_as_headers() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script((head(), chunk("Half"), hang()))
        _, parts = await post(relay.port, headers=OWNER | {"x-timeout-idle": "0.1"})
        assert parts[-2]["errorText"].startswith("upstream_timeout: ")
        response, [error] = await post(relay.port, headers=OWNER | {"x-timeout-total": "1e9"})
        assert (response.status, error["param"]) == (422, "X-Timeout-Total")


async def test_silence_is_filled_with_comments() -> None:
    async with (
        Upstream() as upstream,
        running(upstream.base_url, heartbeat_seconds=0.05, hold_status_seconds=0.01) as relay,
        connect(relay.port) as client,
    ):
        upstream.script(comments(0.01))
        _, blocks = await begun(client)
        assert [await anext(blocks) for _ in range(4)][2:] == [": ping", ": ping"]


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        (b"{", {}, (400, "body")),
        (b"[]", {}, (422, "body")),
        (asked(id="a/b"), {}, (422, "id")),
        (asked(messages=[]), {}, (422, "messages")),
        (asked(message="hi"), {}, (422, "message")),
        (asked(temperature="hot"), {}, (422, "temperature")),
        (asked(model=None), {}, (422, "model")),
        (asked(), {"content-type": "text/plain"}, (415, "Content-Type")),
        (asked(), {"x-on-disconnect": "never"}, (422, "X-On-Disconnect")),
        (asked(on_disconnect="continue"), {}, (403, "on_disconnect")),
    ],
)
async def test_a_bad_request_is_refused_by_name(
    body: object, headers: dict[str, str], expected: tuple[int, str]
) -> None:
    async with running("http://127.0.0.1:1/v1") as relay:
        response, [error] = await post(relay.port, body, OWNER | headers)
    assert (response.status, error["param"]) == expected


async def test_a_chat_that_comes_back_gets_its_answer_from_the_beginning() -> None:
    more = asyncio.Event()
    async with (
        Upstream() as upstream,
        running(upstream.base_url) as relay,
        connect(relay.port) as first,
        connect(relay.port) as second,
    ):
        upstream.script((head(), chunk("Hel"), wait(more), chunk("lo"), finish()))
        _, blocks = await begun(first)
        seen = await shown(blocks, "Hel")
        first.close()
        [generation] = relay.generations
        await until(lambda: not generation.log.readers)
        response = await second.request("GET", STREAM, headers=OWNER)
        more.set()
        parts = [part_of(block) async for block in response.blocks()]
    assert (response.status, response.headers["x-vercel-ai-ui-message-stream"]) == (200, "v1")
    assert parts[: len(seen)] == seen
    assert (text_of(parts), parts[-1]["type"], len(upstream.requests)) == ("Hello", "[DONE]", 1)


async def test_a_first_visitor_comes_back_with_the_cookie_of_the_answer() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as client:
        upstream.script((head(), chunk("Hel"), hang()))
        response, _ = await begun(client, headers={})
        cookie = {"cookie": response.headers["set-cookie"].partition(";")[0]}
        async with connect(relay.port) as again:
            back = await again.request("GET", STREAM, headers=cookie)
            assert text_of(await shown(back.blocks(), "Hel")) == "Hel"
        stream = f"/chat/stream/{response.headers['x-stream-id']}/result"
        assert [(await fetch(relay.port, "GET", stream, headers=h))[0].status for h in (cookie, {})] == [200, 404]


@pytest.mark.parametrize("headers", [STRANGER, {}], ids=["a stranger", "nobody"])
async def test_a_strangers_chat_of_the_same_id_is_not_there(headers: dict[str, str]) -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as client:
        upstream.script((head(), chunk("Hel"), hang()))
        await begun(client)
        response, body = await fetch(relay.port, "GET", STREAM, headers=headers)
        assert (response.status, body) == (204, b"")
        response, body = await fetch(relay.port, "DELETE", STREAM, headers=headers)
        assert (response.status, json.loads(body)) == (202, {"id": "chat-1"})
        assert [generation.log.closed for generation in relay.generations] == [None]


@pytest.mark.parametrize("path", [STREAM, "/api/chat/%2e%2e%2e/stream", "/api/chat/a%20b/stream"])
async def test_without_an_active_answer_there_is_nothing_to_come_back_to(path: str) -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(answer("x"))
        await post(relay.port)
        response, body = await fetch(relay.port, "GET", path, headers=OWNER)
        assert (response.status, body) == (204, b"")
        assert (await fetch(relay.port, "DELETE", path, headers=OWNER))[0].status == 202


async def test_an_answer_that_ended_while_its_reader_was_away_is_given_until_it_was_read() -> None:
    goes_on = asyncio.Event()
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as client:
        upstream.script((head(), chunk("Hel"), wait(goes_on), chunk("lo"), finish()))
        await begun(client)
        client.close()
        await until(lambda: not relay.generations[0].log.readers)
        goes_on.set()
        await nothing_remains(relay)
        answers = [await fetch(relay.port, "GET", STREAM, headers=OWNER) for _ in range(2)]
    assert [response.status for response, _ in answers] == [200, 204]
    assert text_of([part_of(block) for block in answers[0][1].decode().split("\n\n")[:-1]]) == "Hello"


async def test_an_answer_that_ends_with_its_reader_cannot_be_come_back_to() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as client:
        upstream.script((head(), chunk("Hel"), hang()))
        await begun(client, on_disconnect="cancel")
        assert (await fetch(relay.port, "GET", STREAM, headers=OWNER))[0].status == 204
        client.close()
        await upstream.wait_for(lambda upstream: upstream.aborted == 1)
        await nothing_remains(relay)


async def test_who_stays_away_ends_the_generation() -> None:
    async with Upstream() as upstream, running(upstream.base_url, wait_seconds=0.05) as relay:
        upstream.script((head(), chunk("Hel"), hang()))
        async with connect(relay.port) as client:
            await begun(client)
        await upstream.wait_for(lambda upstream: upstream.aborted == 1)
        await nothing_remains(relay)


async def test_an_answer_that_was_refused_is_not_told_again() -> None:
    async with Upstream() as upstream, running(upstream.base_url, attempts=1) as relay:
        upstream.script(status(500))
        assert (await post(relay.port))[0].status == 502
        await nothing_remains(relay)
        response, body = await fetch(relay.port, "GET", STREAM, headers=OWNER)
    assert (response.status, body) == (204, b"")


async def test_an_answer_is_waited_for_also_while_the_status_is_held() -> None:
    goes_on = asyncio.Event()
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as client:
        upstream.script((wait(goes_on), *answer("Hello")))
        client.write("POST", PATH, asked(), OWNER)
        await upstream.wait_for(lambda upstream: upstream.active == 1)
        client.close()
        await until(lambda: not relay.generations[0].log.readers)
        goes_on.set()
        response, body = await fetch(relay.port, "GET", STREAM, headers=OWNER)
        await nothing_remains(relay)
    assert (response.status, len(upstream.requests)) == (200, 1)
    assert text_of([part_of(block) for block in body.decode().split("\n\n")[:-1]]) == "Hello"


async def test_who_leaves_without_a_cookie_while_the_status_is_held_ends_the_generation() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as client:
        upstream.script(silent())
        client.write("POST", PATH, asked())
        await upstream.wait_for(lambda upstream: upstream.active == 1)
        client.close()
        await upstream.wait_for(lambda upstream: upstream.aborted == 1)
        await nothing_remains(relay)


async def test_stop_is_an_abort_for_all_who_read_and_may_be_repeated() -> None:
    async with (
        Upstream() as upstream,
        running(upstream.base_url) as relay,
        connect(relay.port) as first,
        connect(relay.port) as second,
    ):
        upstream.script((head(), chunk("Half"), hang()))
        _, blocks = await begun(first)
        await shown(blocks, "Half")
        also = (await second.request("GET", STREAM, headers=OWNER)).blocks()
        await shown(also, "Half")
        stops = [await fetch(relay.port, "DELETE", STREAM, headers=OWNER) for _ in range(2)]
        await upstream.wait_for(lambda upstream: upstream.aborted == 1)
        rests = [[part_of(block)["type"] async for block in each] for each in (blocks, also)]
        await nothing_remains(relay)
    assert [(response.status, json.loads(body)) for response, body in stops] == [(202, {"id": "chat-1"})] * 2
    assert rests == [["text-end", "abort", "[DONE]"]] * 2


async def test_stop_before_the_first_part_is_an_answer_all_the_same() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(silent())
        asking = asyncio.create_task(post(relay.port))
        await upstream.wait_for(lambda upstream: upstream.active == 1)
        await fetch(relay.port, "DELETE", STREAM, headers=OWNER)
        response, parts = await asking
    assert (response.status, types(parts)) == (200, ["start", "start-step", "abort", "[DONE]"])


async def test_a_page_elsewhere_stops_nothing() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as client:
        upstream.script((head(), chunk("Half"), hang()))
        await begun(client)
        response, _ = await fetch(relay.port, "DELETE", STREAM, headers=OWNER | {"sec-fetch-site": "cross-site"})
        assert response.status == 403
        assert [generation.log.closed for generation in relay.generations] == [None]


async def test_a_new_answer_takes_the_chats_place_and_the_old_one_lives_on() -> None:
    old_goes_on, new_goes_on = asyncio.Event(), asyncio.Event()
    async with (
        Upstream() as upstream,
        running(upstream.base_url) as relay,
        connect(relay.port) as first,
        connect(relay.port) as second,
        connect(relay.port) as third,
    ):
        upstream.script(
            (head(), chunk("old"), wait(old_goes_on), chunk("er"), finish()),
            (head(), chunk("new"), wait(new_goes_on), chunk("er"), finish()),
        )
        _, old = await begun(first)
        await shown(old, "old")
        _, new = await begun(second)
        await shown(new, "new")
        again = (await third.request("GET", STREAM, headers=OWNER)).blocks()
        await shown(again, "new")
        new_goes_on.set()
        assert text_of([part_of(block) async for block in again]) == "er"
        assert (await fetch(relay.port, "GET", STREAM, headers=OWNER))[0].status == 204
        old_goes_on.set()
        assert text_of([part_of(block) async for block in old]) == "er"
        await nothing_remains(relay)


async def test_the_end_of_an_older_answer_leaves_the_chat_at_the_newer() -> None:
    old_goes_on = asyncio.Event()
    async with (
        Upstream() as upstream,
        running(upstream.base_url) as relay,
        connect(relay.port) as first,
        connect(relay.port) as second,
    ):
        upstream.script((head(), chunk("old"), wait(old_goes_on), finish()), (head(), chunk("new"), hang()))
        _, old = await begun(first)
        await begun(second)
        old_goes_on.set()
        assert [part_of(block)["type"] async for block in old][-1] == "[DONE]"
        async with connect(relay.port) as third:
            again = await third.request("GET", STREAM, headers=OWNER)
            assert await shown(again.blocks(), "new")


async def test_chats_of_one_caller_are_told_apart() -> None:
    async with (
        Upstream() as upstream,
        running(upstream.base_url) as relay,
        connect(relay.port) as first,
        connect(relay.port) as second,
        connect(relay.port) as third,
    ):
        upstream.script((head(), chunk("one"), hang()), (head(), chunk("two"), hang()))
        await begun(first, id="chat-1")
        await begun(second, id="a:b@?#%")
        again = await third.request("GET", "/api/chat/a%3Ab%40%3F%23%25/stream", headers=OWNER)
        assert await shown(again.blocks(), "two")


async def test_an_idempotency_key_attaches_to_the_same_message() -> None:
    keyed = {"idempotency-key": "k"}
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(answer("Hel", "lo"))
        first, second = [await post(relay.port, headers=OWNER | keyed) for _ in range(2)]
        response, [error] = await post(relay.port, headers=keyed)
        await nothing_remains(relay)
    assert first[1] == second[1]
    assert len(upstream.requests) == 1
    assert (response.status, error["param"]) == (400, "Idempotency-Key")


async def test_an_older_answer_that_is_asked_for_again_leaves_the_chat_at_the_newer() -> None:
    keyed = OWNER | {"idempotency-key": "k"}
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as client:
        upstream.script(answer("old"), (head(), chunk("new"), hang()))
        first = await post(relay.port, headers=keyed)
        await begun(client)
        assert (await post(relay.port, headers=keyed))[1] == first[1]
        assert (await fetch(relay.port, "DELETE", STREAM, headers=OWNER))[0].status == 202
        await upstream.wait_for(lambda upstream: upstream.aborted == 1)
        await nothing_remains(relay)


async def test_what_outgrew_its_log_can_only_be_read_live() -> None:
    async with (
        Upstream() as upstream,
        running(upstream.base_url, log_stream_bytes=2000) as relay,
        connect(relay.port) as client,
    ):
        upstream.script((head(), *[chunk("x" * 500)] * 8, hang()))
        _, blocks = await begun(client)
        await shown(blocks, "x" * 4000)
        response, body = await fetch(relay.port, "GET", STREAM, headers=OWNER)
    assert (response.status, json.loads(body)["error"]["code"]) == (410, "not_resumable")
