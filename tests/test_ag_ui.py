"""`POST /ag-ui`: a run over real sockets, as plain HTTP and as AG-UI's own HttpAgent sees it."""

import asyncio
import json
from pathlib import Path
from typing import Any, Final

import pytest

from tests.answers import ANSWERS, Expected
from tests.recipes import Ran, block, check, ended, interrupt, relay_of_answers, run_node, started_node, url_of
from tests.relay import SSE, Connection, Relay, Response, connect, fetch, subject, until
from tests.upstream import answer, chunk, delta, finish, hang, head, pause, status, wait

PATH: Final = "/ag-ui"
SCRIPT: Final = (Path(__file__).parent / "clients" / "ag_ui.mjs").read_text()
RECIPE: Final = block("ag-ui.md", "js")
DEADLINE_SECONDS: Final = 20
REFUSED: Final = status(400, b'{"error": {"message": "no such model"}}', {"content-type": "application/json"})


def asked(question: str = "plain", **fields: object) -> dict[str, object]:
    return {"threadId": "t", "runId": "r", "messages": [{"id": "1", "role": "user", "content": question}], **fields}


async def run(
    relay: Relay, body: object, headers: dict[str, str] | None = None
) -> tuple[Response, list[dict[str, Any]]]:
    """The events of one run; an answer that is no stream is the only one."""
    response, content = await fetch(relay.port, "POST", PATH, body, SSE | (headers or {}))
    if not response.headers["content-type"].startswith("text/event-stream"):
        return response, [json.loads(content)]
    return response, [json.loads(line.removeprefix("data: ")) for line in lines(content)]


def lines(content: bytes) -> list[str]:
    return [line for line in content.decode("ascii").split("\n\n") if line and not line.startswith(":")]


async def opened(connection: Connection, body: object, headers: dict[str, str] | None = None) -> Response:
    """A run whose text has begun."""
    response = await connection.request("POST", PATH, body, SSE | (headers or {}))
    async for line in response.blocks():
        if '"delta":' in line:
            return response
    raise AssertionError("no text came")


async def observed(relay: Relay, questions: str = "plain", **env: str) -> list[dict[str, Any]]:
    """What HttpAgent told of a run for each question."""
    ran = await run_node(SCRIPT, questions, url_of(relay), files=None, **env)
    assert (ran.stderr, ran.code) == ("", 0)
    runs: list[dict[str, Any]] = json.loads(ran.stdout)
    return runs


def of_role(seen: dict[str, Any], role: str) -> list[dict[str, Any]]:
    return [message for message in seen["messages"] if message["role"] == role]


async def test_a_run_is_events_and_nothing_else() -> None:
    async with relay_of_answers() as (relay, upstream):
        response, content = await fetch(relay.port, "POST", PATH, asked(), SSE)
        assert response.status == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-store, no-transform"
        events = [json.loads(line.removeprefix("data: ")) for line in content.decode("ascii").split("\n\n")[:-1]]
        assert events[0]["metadata"]["sse-relay"]["id"] == response.headers["x-stream-id"]
        assert [event["type"] for event in events[-2:]] == ["TEXT_MESSAGE_END", "RUN_FINISHED"]
        assert upstream.requests[0].body["messages"] == [{"role": "user", "content": "plain"}]


async def test_a_failure_before_the_first_event_is_an_http_status_and_json() -> None:
    async with relay_of_answers() as (relay, upstream):
        upstream.script(REFUSED)
        response, [body] = await run(relay, asked())
        assert (response.status, body["error"]["code"]) == (400, "upstream_rejected")
        assert response.headers["content-type"] == "application/json"


async def test_a_request_that_is_wrong_is_refused_by_name() -> None:
    async with relay_of_answers(default_model=None) as (relay, upstream):
        for body, headers, told in (
            (asked(), {"content-type": "text/plain"}, (415, "Content-Type")),
            (b"{", {}, (400, "body")),
            (asked(threadId=None), {}, (422, "threadId")),
            (asked(forwardedProps={"top_p": "x"}), {}, (422, "forwardedProps.top_p")),
            (asked(), {}, (422, "forwardedProps.model")),
            (asked(forwardedProps={"model": "m"}), {"x-timeout-idle": "999999"}, (422, "X-Timeout-Idle")),
            (asked(forwardedProps={"model": "m"}), {"x-on-disconnect": "stay"}, (422, "X-On-Disconnect")),
        ):
            headers = {"content-type": "application/json"} | headers
            response, [answered] = await run(relay, body, headers)
            assert (response.status, answered["error"]["param"]) == told
            assert answered["error"]["code"] == "invalid_request"
        assert upstream.requests == []


async def test_a_limit_may_come_as_a_header() -> None:
    async with relay_of_answers() as (relay, upstream):
        upstream.script((head(), chunk("Half"), hang()))
        _, events = await run(relay, asked(), {"x-timeout-idle": "0.1"})
        assert (events[-1]["type"], events[-1]["code"]) == ("RUN_ERROR", "upstream_timeout")
        assert events[-1]["metadata"]["sse-relay"]["partial"] is True
        await upstream.wait_for(lambda upstream: upstream.aborted == 1)


async def test_usage_is_upstream_s_or_told_as_an_estimate() -> None:
    async with relay_of_answers() as (relay, upstream):
        _, events = await run(relay, asked())
        assert events[-1]["usage"] == [{"model": "demo", "inputTokens": 3, "outputTokens": 9, "totalTokens": 12}]
        upstream.script(answer("Hel", "lo"))
        _, events = await run(relay, asked())
        assert "usage" not in events[-1]
        assert events[-1]["metadata"]["sse-relay"]["usage"]["source"] == "estimated"


async def test_leaving_closes_the_upstream_at_once() -> None:
    async with relay_of_answers() as (relay, upstream):
        upstream.script((head(), chunk("Half"), hang()))
        async with connect(relay.port) as connection:
            await opened(connection, asked())
            connection.close()
            await upstream.wait_for(lambda upstream: upstream.aborted == 1)


@pytest.mark.parametrize("how", [{"x-on-disconnect": "wait"}, {"idempotency-key": "k"}, {}])
async def test_a_run_may_wait_for_its_client(how: dict[str, str]) -> None:
    properties = {"forwardedProps": {} if how else {"on_disconnect": "wait"}}
    more = asyncio.Event()
    async with relay_of_answers() as (relay, upstream):
        upstream.script((head(), chunk("Hel"), wait(more), chunk("lo"), finish()))
        async with connect(relay.port) as connection:
            await opened(connection, asked() | properties, subject("a") | how)
            [generation] = relay.generations
            connection.close()
            await until(lambda: not generation.log.readers)
        more.set()
        await until(lambda: not relay.generations)
        assert (upstream.aborted, upstream.ended) == (0, 1)


async def test_the_same_key_brings_the_same_run_again() -> None:
    async with relay_of_answers() as (relay, upstream):
        headers = SSE | subject("a") | {"idempotency-key": "k"}
        first, second = [await fetch(relay.port, "POST", PATH, asked(), headers) for _ in range(2)]
        assert first[1] == second[1]
        response, _ = await fetch(relay.port, "POST", PATH, asked(runId="other"), headers)
        assert response.status == 409
        assert len(upstream.requests) == 1


async def test_a_cancel_is_an_error_of_its_own_code() -> None:
    async with relay_of_answers() as (relay, upstream):
        upstream.script((head(), chunk("Half"), hang()))
        async with connect(relay.port) as connection:
            response = await opened(connection, asked(), subject("a"))
            stream_id = response.headers["x-stream-id"]
            await fetch(relay.port, "DELETE", f"/chat/stream/{stream_id}", headers=subject("a"))
            rest = [json.loads(line.removeprefix("data: ")) async for line in response.blocks()]
        assert [event["type"] for event in rest] == ["TEXT_MESSAGE_END", "RUN_ERROR"]
        assert rest[-1]["code"] == "cancelled"
        await upstream.wait_for(lambda upstream: upstream.aborted == 1)


@pytest.mark.parametrize("question", ANSWERS)
async def test_http_agent_has_every_answer_as_it_is(question: str) -> None:
    """It checks every event and their order itself: no error and no warning is a stream that keeps the protocol."""
    expected = ANSWERS[question]
    async with relay_of_answers() as (relay, _):
        [seen] = await observed(relay, question)
    assert (seen["error"], seen["warnings"]) == (None, [])
    assert "".join(message["content"] for message in of_role(seen, "reasoning")) == expected.reasoning
    [said] = of_role(seen, "assistant")
    assert said["content"] == expected.text
    calls = [(call["id"], call["function"]) for call in said.get("toolCalls", [])]
    assert calls == [(call.id, {"name": call.name, "arguments": "".join(call.pieces)}) for call in expected.calls]
    assert [tuple(call) for call in seen["calls"]] == [(call.id, call.name, call.arguments) for call in expected.calls]
    check_end(seen, expected)


def check_end(seen: dict[str, Any], expected: Expected) -> None:
    if expected.failure:
        assert (seen["ended"], seen["failed"]["code"]) == ([], expected.failure)
        assert seen["failed"]["metadata"]["sse-relay"]["request_id"]
    else:
        assert (seen["ended"], seen["failed"]) == ([["success", [call.id for call in expected.calls]]], None)


async def test_http_agent_reports_a_refusal_with_its_status_and_object() -> None:
    async with relay_of_answers() as (relay, upstream):
        upstream.script(REFUSED)
        [seen] = await observed(relay)
    assert seen["error"]["status"] == 400
    assert seen["error"]["payload"]["error"]["code"] == "upstream_rejected"


async def test_abort_run_stops_the_upstream() -> None:
    async with relay_of_answers() as (relay, upstream):
        upstream.script((head(), chunk("Half"), hang()))
        [seen] = await observed(relay, STOP_BEHIND="Half")
        await upstream.wait_for(lambda upstream: upstream.aborted == 1)
    assert (seen["error"], seen["ended"]) == (None, [])
    assert of_role(seen, "assistant")[0]["content"] == "Half"


async def test_silence_is_broken_by_comments() -> None:
    first, second = asyncio.Event(), asyncio.Event()
    async with relay_of_answers(heartbeat_seconds=0.05, hold_status_seconds=0.05) as (relay, upstream):
        upstream.script((head(), wait(first), chunk("Hel"), wait(second), chunk("lo"), finish()))
        async with connect(relay.port) as connection:
            response = await connection.request("POST", PATH, asked(), SSE)
            said = ""
            async for line in response.blocks():
                if line == ": ping":
                    (second if "Hel" in said else first).set()
                said += line
    assert (
        said.index("RUN_STARTED")
        < said.index(": ping")
        < said.index("Hel")
        < said.rindex(": ping")
        < said.index('"lo"')
    )


async def test_http_agent_passes_over_pings() -> None:
    async with relay_of_answers(heartbeat_seconds=0.02, hold_status_seconds=0.02) as (relay, upstream):
        upstream.script((head(), pause(0.2), chunk("Hel"), pause(0.2), chunk("lo"), finish()))
        [seen] = await observed(relay)
    assert (seen["error"], seen["warnings"], seen["ended"]) == (None, [], [["success", []]])
    assert of_role(seen, "assistant")[0]["content"] == "Hello"


async def test_a_conversation_with_tools_goes_on_over_several_runs() -> None:
    """What HttpAgent kept of a run is what upstream gets of it with the next, in OpenAI's order."""
    tool = {"name": "get_weather", "description": "", "parameters": {"type": "object"}}
    parameters = json.dumps({"tools": [tool], "forwardedProps": {"temperature": 0}})
    async with relay_of_answers() as (relay, upstream):
        runs = await observed(relay, "tools,reasoning,plain", PARAMETERS=parameters, ANSWER="sunny")
        body = upstream.requests[-1].body
    assert [seen["warnings"] for seen in runs] == [[], [], []]
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": "".join(call.pieces)}}
        for call in ANSWERS["tools"].calls
    ]
    assert body["messages"] == [
        {"role": "user", "content": "tools"},
        {"role": "assistant", "content": "I will look.", "tool_calls": calls},
        *({"role": "tool", "tool_call_id": call["id"], "content": "sunny"} for call in calls),
        {"role": "user", "content": "reasoning"},
        {"role": "assistant", "content": "The answer is 42."},
        {"role": "user", "content": "plain"},
    ]
    assert body["tools"] == [{"type": "function", "function": tool}]
    assert body["temperature"] == 0


async def test_an_upstream_that_counts_its_calls_anew_does_not_spoil_the_history() -> None:
    """HttpAgent adds arguments to the first call that it knows under an id, also to one of an earlier run."""
    call = {"index": 0, "id": "call_0", "function": {"name": "look", "arguments": "{}"}}
    async with relay_of_answers() as (relay, upstream):
        upstream.script((head(), delta(tool_calls=[call]), finish("tool_calls")))
        seen = (await observed(relay, "one,two", ANSWER="sunny"))[-1]
    calls = [call for message in of_role(seen, "assistant") for call in message["toolCalls"]]
    assert [call["function"]["arguments"] for call in calls] == ["{}", "{}"]
    assert calls[0]["id"] != calls[1]["id"]


@pytest.mark.parametrize("question", ANSWERS)
async def test_the_recipe_shows_every_answer_as_it_is(question: str) -> None:
    async with relay_of_answers() as (relay, _):
        check(await run_node(RECIPE, question, url_of(relay)), ANSWERS[question])


async def test_the_recipe_tells_why_there_is_no_answer() -> None:
    async with relay_of_answers() as (relay, upstream):
        upstream.script(REFUSED)
        ran = await run_node(RECIPE, "plain", url_of(relay))
    assert (ran.stdout, ran.code) == ("", 1)
    assert "upstream_rejected" in ran.stderr


async def test_the_recipe_takes_an_end_without_a_word_for_a_loss() -> None:
    """HttpAgent itself takes it for a success."""
    async with relay_of_answers(max_connection_seconds=0.3, hold_status_seconds=0.1) as (relay, upstream):
        upstream.script((head(), chunk("one "), pause(5), chunk("two"), finish()))
        ran = await run_node(RECIPE, "plain", url_of(relay))
        [seen] = await observed(relay)
    assert ran == Ran("one ", "The connection was lost before the answer was whole.\n", 1)
    assert (seen["error"], seen["failed"], seen["ended"]) == (None, None, [])


async def test_the_recipe_that_is_left_stops_the_generation() -> None:
    async with relay_of_answers() as (relay, upstream):
        upstream.script((head(), chunk("Half"), hang()))
        async with started_node(RECIPE, "plain", url_of(relay)) as process:
            assert process.stdout is not None
            async with asyncio.timeout(DEADLINE_SECONDS):
                assert await process.stdout.readexactly(4) == b"Half"
            interrupt(process)
            await upstream.wait_for(lambda upstream: upstream.aborted == 1)
            assert (await ended(process)).code != 0
