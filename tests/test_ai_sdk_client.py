"""The AI SDK's own client on the relay: every answer whole, every failure an error state, stop, resume, tools."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from tests.ai_sdk import State, page
from tests.answers import ANSWERS, Expected
from tests.browser import Wire
from tests.recipes import relay_of_answers
from tests.relay import Relay, running, until
from tests.upstream import Answer, Upstream, answer, chunk, delta, finish, hang, head, status, wait

DYNAMIC: Final = "dynamic-tool"


def told(text: str, **body: Any) -> dict[str, Any]:
    messages = [{"id": "u1", "role": "user", "parts": [{"type": "text", "text": text}]}]
    return {"id": "chat-1", "messages": messages, "trigger": "submit-message"} | body


def called(name: str, *pieces: str, call_id: str = "c1", index: int = 0) -> Answer:
    start = {"index": index, "id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
    rest = [delta(tool_calls=[{"index": index, "function": {"arguments": piece}}]) for piece in pieces]
    return head(), delta(tool_calls=[start]), *rest, finish("tool_calls")


def check(state: State, expected: Expected) -> None:
    assert (state.text, state.reasoning) == (expected.text, expected.reasoning)
    calls = [(part["toolCallId"], part["toolName"], part["input"], part["state"]) for part in state.calls]
    assert calls == [(call.id, call.name, call.arguments, "input-available") for call in expected.calls]
    parts = [part for part in state.answer["parts"] if part["type"] in ("text", "reasoning")]
    assert {part["state"] for part in parts} == {"done"}


@pytest.fixture
async def relay() -> AsyncIterator[tuple[Relay, Upstream]]:
    async with Upstream() as upstream, running(upstream.base_url, default_model="m") as relay:
        yield relay, upstream


async def test_every_part_of_every_answer_is_one_that_the_sdk_knows() -> None:
    async with relay_of_answers() as (relay, _), page(relay.port) as client:
        for question in ANSWERS:
            parts = await client.do("parts", body=told(question))
            assert [part for part in parts if not part["success"]] == []
            assert parts[0]["value"]["type"] == "start"


async def test_a_chat_shows_every_answer_as_it_is() -> None:
    async with relay_of_answers() as (relay, _), page(relay.port) as client:
        for question, expected in ANSWERS.items():
            await client.do("open", id=question)
            await client.do("ask", text=question)
            state = await client.over()
            check(state, expected)
            if expected.failure is None:
                reason = "tool-calls" if expected.calls else "stop"
                assert (state.status, state.error, state.ends[-1]["finishReason"]) == ("ready", None, reason)
                assert state.answer["metadata"]["usage"]["total_tokens"] == 12
            else:
                assert (state.status, state.ends[-1]["isError"]) == ("error", True)
                assert (state.error or "").startswith(f"{expected.failure}: ")


async def test_a_refusal_of_the_relay_is_an_error_with_its_code(relay: tuple[Relay, Upstream]) -> None:
    async with page(relay[0].port) as client:
        relay[1].script(status(400, b'{"error": {"message": "no such model"}}', {"content-type": "application/json"}))
        await client.do("open")
        await client.do("ask", text="hi")
        state = await client.over()
    assert state.status == "error"
    assert '"code":"upstream_rejected"' in (state.error or "")
    assert "no such model" in (state.error or "")


async def test_parameters_and_limits_travel_with_the_question(relay: tuple[Relay, Upstream]) -> None:
    async with page(relay[0].port) as client:
        relay[1].script(answer("x"), (head(), chunk("Half"), hang()))
        await client.do("open", body={"temperature": 0.5}, headers={"x-timeout-idle": "0.2"})
        await client.do("ask", text="hi", body={"model": "big", "system": "Be brief."})
        await client.over()
        await client.do("ask", text="hi")
        state = await client.over()
    sent = relay[1].requests[0].body
    assert (sent["temperature"], sent["model"], sent["messages"][0]["content"]) == (0.5, "big", "Be brief.")
    assert (state.error or "").startswith("upstream_timeout: ")


async def test_after_a_reload_the_answer_goes_on_for_a_visitor_of_a_moment(relay: tuple[Relay, Upstream]) -> None:
    more = asyncio.Event()
    async with page(relay[0].port) as client:
        relay[1].script((head(), chunk("one "), wait(more), chunk("two"), finish()))
        await client.do("open")
        await client.do("ask", text="hi")
        await client.do("shows", text="one ")
        await client.do("reload")
        [generation] = relay[0].generations
        await until(lambda: not generation.log.readers)
        await client.do("resume")
        await until(lambda: len(generation.log.readers) == 1, 5)
        more.set()
        state = await client.over()
    assert (state.status, state.text, len(state.messages)) == ("ready", "one two", 2)
    assert state.requests == ["GET /api/chat/chat-1/stream 200"]
    assert len(relay[1].requests) == 1


async def test_after_a_reload_before_the_first_word_the_answer_comes(relay: tuple[Relay, Upstream]) -> None:
    more = asyncio.Event()
    async with page(relay[0].port) as client:
        relay[1].script(answer("first"), (wait(more), *answer("one two")))
        await client.do("open")
        await client.do("ask", text="hi")
        await client.over()
        await client.do("ask", text="again")
        await relay[1].wait_for(lambda upstream: len(upstream.requests) == 2, 5)
        await client.do("reload")
        [generation] = relay[0].generations
        await until(lambda: not generation.log.readers)
        await client.do("resume")
        await until(lambda: len(generation.log.readers) == 1, 5)
        more.set()
        state = await client.over()
    assert (state.status, state.text, len(state.messages)) == ("ready", "one two", 4)


async def test_a_cut_connection_is_an_error_and_the_answer_can_be_resumed(relay: tuple[Relay, Upstream]) -> None:
    wire = Wire(relay[0].port)
    await wire.open()
    wire.cut_behind.append(b'"delta":"one ')
    more = asyncio.Event()
    async with page(wire.port) as client:
        relay[1].script((head(), chunk("one "), wait(more), chunk("two"), finish()))
        await client.do("open")
        await client.do("ask", text="hi")
        state = await client.over()
        assert (state.status, state.ends[-1]["isError"]) == ("error", True)
        [generation] = relay[0].generations
        await until(lambda: not generation.log.readers)
        await client.do("resume")
        await until(lambda: len(generation.log.readers) == 1, 5)
        more.set()
        state = await client.over()
    await wire.close()
    assert (state.status, state.text, len(state.messages)) == ("ready", "one two", 2)
    assert len(relay[1].requests) == 1


async def test_without_an_active_answer_a_chat_is_ready(relay: tuple[Relay, Upstream]) -> None:
    async with page(relay[0].port) as client:
        relay[1].script(answer("Hello"))
        for _ in range(2):
            await client.do("open")
            await client.do("resume")
            state = await client.over()
            assert (state.status, state.error, state.requests) == ("ready", None, ["GET /api/chat/chat-1/stream 204"])
            await client.do("ask", text="hi")
            assert (await client.over()).text == "Hello"


async def test_another_browser_does_not_get_the_answer(relay: tuple[Relay, Upstream]) -> None:
    async with page(relay[0].port) as client:
        relay[1].script((head(), chunk("one "), hang()))
        await client.do("open")
        await client.do("ask", text="hi")
        await client.do("shows", text="one ")
        await client.do("forget")
        await client.do("open")
        await client.do("resume")
        state = await client.over()
    assert (state.status, state.messages) == ("ready", [])


async def test_stop_and_delete_end_the_generation_at_once(relay: tuple[Relay, Upstream]) -> None:
    async with page(relay[0].port) as client:
        relay[1].script((head(), chunk("Half"), hang()))
        await client.do("open")
        await client.do("ask", text="hi")
        await client.do("shows", text="Half")
        state = await client.stop()
        assert await client.do("delete") == 202
        await relay[1].wait_for(lambda upstream: upstream.aborted == 1, 2)
        await client.do("resume")
        again = await client.over()
    assert (state.status, state.text, state.ends[-1]["isAbort"]) == ("ready", "Half", True)
    assert (again.status, again.requests[-1]) == ("ready", "GET /api/chat/chat-1/stream 204")


async def test_a_stop_from_elsewhere_is_no_failure(relay: tuple[Relay, Upstream]) -> None:
    async with page(relay[0].port) as client:
        relay[1].script((head(), chunk("Half"), hang()))
        await client.do("open")
        await client.do("ask", text="hi")
        await client.do("shows", text="Half")
        assert await client.do("delete") == 202
        state = await client.over()
    assert (state.status, state.error, state.text) == ("ready", None, "Half")
    assert [part["state"] for part in state.answer["parts"] if part["type"] == "text"] == ["done"]


async def test_a_tools_result_is_answered_in_the_same_message(relay: tuple[Relay, Upstream]) -> None:
    async with page(relay[0].port) as client:
        relay[1].script(called("look", '{"at":', '"Z"}'), answer("Sunny."))
        await client.do("open")
        await client.do("ask", text="hi")
        [call] = (await client.over()).calls
        await client.do("result", tool=call["toolName"], toolCallId=call["toolCallId"], output={"is": "sunny"})
        state = await client.over()
    assert [each["role"] for each in state.messages] == ["user", "assistant"]
    assert [part["type"] for part in state.answer["parts"]] == ["step-start", DYNAMIC, "step-start", "text"]
    assert (state.calls[0]["state"], state.text) == ("output-available", "Sunny.")
    assert [each["role"] for each in relay[1].requests[1].body["messages"]] == ["user", "assistant", "tool"]


async def test_an_answer_is_made_anew_under_a_new_id(relay: tuple[Relay, Upstream]) -> None:
    async with page(relay[0].port) as client:
        relay[1].script(answer("one"), answer("two"), answer("three"))
        await client.do("open")
        for question in ("a", "b"):
            await client.do("ask", text=question)
            before = await client.over()
        await client.do("again")
        after = await client.over()
    assert [each["role"] for each in after.messages] == ["user", "assistant"] * 2
    assert (before.text, after.text) == ("two", "three")
    assert before.answer["id"] != after.answer["id"]
    assert len(relay[1].requests[2].body["messages"]) == 3


async def test_an_answer_made_anew_leaves_the_one_before_it(relay: tuple[Relay, Upstream]) -> None:
    def said(name: str, role: str) -> dict[str, Any]:
        return {"id": name, "role": role, "parts": [{"type": "text", "text": name}]}

    messages = [said("u1", "user"), said("a1", "assistant"), said("a2", "assistant")]
    async with page(relay[0].port) as client:
        relay[1].script(answer("new"))
        await client.do("open", messages=messages)
        await client.do("again", messageId="a2")
        state = await client.over()
    assert (state.messages[:2], len(state.messages), state.text) == (messages[:2], 3, "new")


@pytest.mark.parametrize("arguments", ["not JSON", "[1]", '{"__proto__": {}}', '{"a":{"constructor":{"prototype":1}}}'])
async def test_arguments_that_no_tool_can_take_do_not_end_the_chat(
    relay: tuple[Relay, Upstream], arguments: str
) -> None:
    async with page(relay[0].port) as client:
        relay[1].script(called("look", arguments), answer("Sorry."))
        await client.do("open")
        await client.do("ask", text="hi")
        state = await client.over()
        [call] = state.calls
        assert (state.status, call["state"], call["input"]) == ("ready", "output-error", arguments)
        await client.do("ask", text="again")
        state = await client.over()
    assert (state.status, state.text) == ("ready", "Sorry.")
    assert relay[1].requests[1].body["messages"][1]["tool_calls"][0]["function"]["arguments"] == "{}"


async def test_a_call_that_broke_off_is_forgotten_by_the_next_question(relay: tuple[Relay, Upstream]) -> None:
    async with page(relay[0].port) as client:
        relay[1].script((*called("look", '{"at":')[:-1],), answer("Hello"))
        await client.do("open")
        await client.do("ask", text="hi")
        state = await client.over()
        assert (state.status, [call["state"] for call in state.calls]) == ("error", ["input-streaming"])
        await client.do("ask", text="again")
        assert (await client.over()).text == "Hello"
    assert [each["role"] for each in relay[1].requests[1].body["messages"]] == ["user", "user"]


async def test_a_call_without_an_id_or_of_one_that_is_taken_can_be_answered(relay: tuple[Relay, Upstream]) -> None:
    calls = [{"index": at, "id": "same", "function": {"name": f"f{at}", "arguments": "{}"}} for at in range(2)]
    nameless = {"index": 2, "function": {"name": "f2", "arguments": "{}"}}
    async with page(relay[0].port) as client:
        relay[1].script((head(), delta(tool_calls=[*calls, nameless]), finish("tool_calls")), answer("x"))
        await client.do("open")
        await client.do("ask", text="hi")
        state = await client.over()
        for call in state.calls:
            await client.do("output", tool=call["toolName"], toolCallId=call["toolCallId"], output="ok")
        await client.do("send")
        assert (await client.over()).status == "ready"
    asked, *results = relay[1].requests[1].body["messages"][1:]
    ids = [call["id"] for call in asked["tool_calls"]]
    assert len({*ids}) == 3
    assert [result["tool_call_id"] for result in results] == ids


async def test_files_reach_upstream(relay: tuple[Relay, Upstream]) -> None:
    pixel = "data:image/png;base64,iVBORw0KGgo="
    async with page(relay[0].port) as client:
        relay[1].script(answer("A dot."))
        await client.do("open")
        await client.do(
            "send", message={"text": "what?", "files": [{"type": "file", "mediaType": "image/png", "url": pixel}]}
        )
        assert (await client.over()).text == "A dot."
    [sent] = relay[1].requests[0].body["messages"]
    assert sent["content"] == [{"type": "image_url", "image_url": {"url": pixel}}, {"type": "text", "text": "what?"}]


async def test_comments_between_the_parts_disturb_nobody() -> None:
    more = asyncio.Event()
    settings: dict[str, Any] = {"heartbeat_seconds": 0.05, "hold_status_seconds": 0.01, "default_model": "m"}
    async with Upstream() as upstream, running(upstream.base_url, **settings) as relay, page(relay.port) as client:
        upstream.script((head(), wait(more), chunk("Hello"), finish()))
        await client.do("open")
        await client.do("ask", text="hi")
        await upstream.wait_for(lambda upstream: upstream.active == 1)
        [generation] = relay.generations
        await until(lambda: generation.clocks.elapsed_s > 0.3, 5)
        more.set()
        assert (await client.over()).text == "Hello"
