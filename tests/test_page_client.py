"""relay-client.js in Node against a relay by script: every event once, however it is cut, and each failure by name."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest

from tests.relay_script import STREAM_HEADERS, delta, done, end, failed, opened, refused, say, start, url_of, whole
from tests.upstream import Answer, Exchange, Step, Upstream, close, hang, head, reset, send, status, wait
from tests.upstream_server import Ending

SCRIPT: Final = Path(__file__).parent / "page" / "client.mjs"
DEADLINE_SECONDS: Final = 20
TEXT: Final = 'Hel|lo \u6f22\U0001f389 "quoted"\n\nend'


class Outcome(msgspec.Struct):
    """What a reader had in the end: of states and the error the fields that are there."""

    id: str | None
    seq: int
    text: str
    events: list[dict[str, Any]]
    states: list[dict[str, Any]]
    error: dict[str, Any] | None

    @property
    def path(self) -> list[str]:
        return [state["name"] for state in self.states]

    @property
    def code(self) -> str | None:
        return self.error["code"] if self.error else None


async def read(relay: Upstream, *jobs: dict[str, Any]) -> list[Outcome]:
    """Runs the jobs of tests/page/client.mjs; nothing may be left that keeps Node alive."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(node, str(SCRIPT), stdin=pipe, stdout=pipe, stderr=pipe)
    task = json.dumps({"base": url_of(relay), "jobs": jobs}).encode()
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            printed, complaints = await process.communicate(task)
    finally:
        if process.returncode is None:
            process.kill()
    assert (process.returncode, complaints) == (0, b""), complaints.decode()
    return msgspec.json.decode(printed, type=list[Outcome])


async def read_one(relay: Upstream, **job: Any) -> Outcome:
    return (await read(relay, job))[0]


def block(kind: str, seq: int, content: str = "", **fields: object) -> bytes:
    payload = json.dumps({"type": kind, "content": content, **fields, "seq": seq})
    return f"data: {payload}\nid: s_1.{seq}\n\n".encode()


STREAM: Final = (
    block("start", 0, protocol=1, id="s_1", model="m", resumable=True),
    block("reasoning", 1, reasoning="Hm."),
    *(block("delta", seq, text) for seq, text in enumerate(TEXT.split("|"), 2)),
    block("done", 4, finish_reason="stop"),
)
END: Final = b"data: [DONE]\n\n"


def cut_at(ending: Ending) -> Step:
    """The stream's first bytes, as many as the message says."""

    async def step(exchange: Exchange) -> None:
        await exchange.body((b"".join(STREAM) + END)[: int(exchange.request.body["message"])])
        exchange.ending = ending

    return step


async def from_cursor(exchange: Exchange) -> None:
    await exchange.body(b"".join(STREAM[after(exchange.request.path) + 1 :]) + END)


def after(path: str) -> int:
    return int(parse_qs(urlsplit(path).query)["after"][0])


@pytest.mark.parametrize("ending", ["close", "reset"])
async def test_cut_at_any_byte_every_event_comes_once(ending: Ending) -> None:
    async with Upstream() as relay:
        relay.script((opened(), from_cursor))
        relay.script((opened(), cut_at(ending)), model="cut")
        length = sum(map(len, STREAM)) + len(END)
        jobs = [{"request": {"message": str(cut), "model": "cut"}} for cut in range(length + 1)]
        outcomes = await read(relay, *jobs)
    for cut, outcome in enumerate(outcomes):
        assert outcome.error is None, cut
        assert [event["seq"] for event in outcome.events] == [0, 1, 2, 3, 4], cut
        assert outcome.text == TEXT.replace("|", ""), cut


async def test_what_is_replayed_is_passed_over() -> None:
    async with Upstream() as relay:
        again = opened(), delta(1, "one "), delta(2, "two "), delta(3, "three"), done(4), end()
        relay.script((opened(), start(), delta(1, "one "), delta(2, "two "), reset()), again)
        assert (await read_one(relay)).text == "one two three"


async def test_characters_cut_in_two_are_whole() -> None:
    async with Upstream() as relay:
        raw = '{"type":"delta","content":"\u6f22\U0001f389","seq":1}'.encode()
        pieces = [send(b"data: "), *(send(raw[at : at + 1]) for at in range(len(raw))), send(b"\n\n")]
        relay.script((opened(), start(), *pieces, done(2), end()))
        assert (await read_one(relay)).text == "\u6f22\U0001f389"


async def test_it_asks_for_the_shape_with_ids_and_to_be_waited_for() -> None:
    async with Upstream() as relay:
        relay.script(whole("Hello"))
        outcome = await read_one(relay, client={"headers": {"authorization": "Bearer k"}})
        request = relay.requests[0]
    assert (request.method, request.path, request.body) == (
        "POST",
        "/chat/stream",
        {"message": "hi", "on_disconnect": "wait"},
    )
    assert (request.headers["accept"], request.headers["authorization"]) == ("text/event-stream", "Bearer k")
    assert (outcome.id, outcome.seq, outcome.text) == ("s_1", 2, "Hello")
    assert outcome.path == ["connecting", "waiting", "streaming", "closed"]


async def test_states_tell_what_a_reader_waits_for() -> None:
    async with Upstream() as relay:
        ping = say("ping", None, phase="queued", elapsed_s=15.2)
        relay.script((opened(), start(), ping, delta(1, "a"), reset()), (opened(), delta(2, "b"), done(3), end()))
        outcome = await read_one(relay)
    assert outcome.states[2] == {"name": "waiting", "phase": "queued", "elapsed": 15.2}
    assert outcome.path[3:] == ["streaming", "reconnecting", "resumed", "streaming", "closed"]
    assert outcome.text == "ab"


async def test_stop_ends_the_generation_and_reads_its_end() -> None:
    deleted = asyncio.Event()

    async def note(exchange: Exchange) -> None:
        deleted.set()

    async with Upstream() as relay:
        stopped = (*status(202), note)
        relay.script((opened(), start(), delta(1, "Half"), wait(deleted), done(2, "cancelled"), end()), stopped)
        outcome = await read_one(relay, on={"delta": "stop"})
        assert (relay.requests[1].method, relay.requests[1].path) == ("DELETE", "/chat/stream/s_1")
    assert (outcome.text, outcome.error, outcome.events[-1]["finish_reason"]) == ("Half", None, "cancelled")
    assert "usage" in outcome.events[-1]


@pytest.mark.parametrize("answer", [status(404), (reset(),)], ids=["gone", "unreachable"])
async def test_stop_ends_the_answer_where_the_relay_cannot_be_told(answer: Answer) -> None:
    async with Upstream() as relay:
        relay.script((opened(), start(), delta(1, "Half"), hang()), answer)
        outcome = await read_one(relay, on={"delta": "stop"})
        await relay.wait_for(lambda relay: relay.aborted == 1)
    assert (outcome.text, outcome.error, outcome.path[-2:]) == ("Half", None, ["streaming", "closed"])
    assert outcome.events[-1] == {"type": "done", "content": "", "finish_reason": "cancelled"}


@pytest.mark.parametrize("way", ["stop", "abort"])
async def test_the_wait_for_another_try_can_be_ended(way: str) -> None:
    async with Upstream() as relay:
        relay.script((opened(), start(), delta(1, "Half"), reset()), (reset(),))
        async with asyncio.timeout(3):  # half of the longest back-off is 4 s
            outcome = await read_one(relay, at={"reconnecting": way}, client={"backoffSeconds": 60})
    assert (outcome.events[-1]["type"], outcome.path[-1]) == ("done" if way == "stop" else "delta", "closed")


async def test_stop_before_the_relay_has_answered_leaves() -> None:
    async with Upstream() as relay:
        relay.script((hang(),))
        outcome = await read_one(relay, at={"connecting": "stop"})
        assert [request.method for request in relay.requests] in ([], ["POST"])
    assert [event["finish_reason"] for event in outcome.events] == ["cancelled"]


@pytest.mark.parametrize("way", ["leave", "abort"])
async def test_leaving_closes_the_connection_and_nothing_else(way: str) -> None:
    async with Upstream() as relay:
        relay.script((opened(), start(), delta(1, "Half"), hang()))
        outcome = await read_one(relay, on={"delta": way})
        await relay.wait_for(lambda relay: relay.aborted == 1)
        assert len(relay.requests) == 1
    assert (outcome.error or {}).get("name") == (None if way == "leave" else "AbortError")
    assert outcome.path[-1] == "closed"


async def test_a_refusal_is_an_error_with_all_it_says() -> None:
    problem = {"code": "rate_limited", "message": "Slow down.", "type": "rate_limit_error", "param": "model"}
    rest = {"phase": "admission", "retryable": True, "partial": False, "upstream_status": 429, "request_id": "r_1"}
    headers = {"content-type": "application/json", "retry-after": "7"}
    async with Upstream() as relay:
        relay.script(status(429, json.dumps({"error": problem | rest}).encode(), headers))
        outcome = await read_one(relay)
        assert len(relay.requests) == 1
    renamed = {"upstreamStatus": 429, "requestId": "r_1", "status": 429, "retryAfter": 7, "name": "RelayError"}
    said = problem | {name: rest[name] for name in ("phase", "retryable", "partial")} | renamed
    assert outcome.error is not None
    assert {name: value for name, value in outcome.error.items() if name != "cause"} == said


async def test_a_refusal_in_the_shape_of_a_stream_is_the_same_error() -> None:
    async with Upstream() as relay:
        relay.script(refused(404, "not_found"))
        outcome = await read_one(relay)
    assert (outcome.code, outcome.error and outcome.error["status"]) == ("not_found", 404)


async def test_an_error_in_the_stream_comes_as_an_event_and_is_thrown() -> None:
    async with Upstream() as relay:
        relay.script((opened(), start(), delta(1, "Half"), failed(2, "upstream_truncated", partial=True), end()))
        outcome = await read_one(relay)
    assert (outcome.text, outcome.events[-1]["type"], outcome.code) == ("Half", "error", "upstream_truncated")
    assert outcome.error is not None
    assert (outcome.error["partial"], outcome.error["status"]) == (True, None)


async def test_a_gateway_whose_relay_restarts_is_asked_again() -> None:
    async with Upstream() as relay:
        cut = opened(), start(), delta(1, "one "), reset()
        rest = opened(), delta(2, "two"), done(3), end()
        relay.script(cut, status(502, b"<html>Bad Gateway"), refused(503, "draining", retryable=True), (reset(),), rest)
        outcome = await read_one(relay)
    assert (outcome.text, outcome.error) == ("one two", None)
    assert [state["attempt"] for state in outcome.states if state["name"] == "reconnecting"] == [1, 2, 3, 4]


async def test_tries_to_come_back_are_bounded_and_counted_from_the_last_progress() -> None:
    async with Upstream() as relay:
        cut = opened(), start(), delta(1, "one "), reset()
        relay.script(cut, (reset(),), (opened(), delta(2, "two "), reset()), (opened(), close()))
        outcome = await read_one(relay, client={"reconnects": 3})
        assert [after(request.path) for request in relay.requests[1:]] == [1, 1, 2, 2, 2]
    assert (outcome.text, outcome.code) == ("one two ", "connection_lost")
    assert outcome.error is not None
    assert (outcome.error["retryable"], outcome.error["partial"]) == (True, True)


@pytest.mark.parametrize(
    "steps",
    [
        (say("start", 0, protocol=1, id="s_1", model="m", resumable=False), delta(1, "Half")),
        (start(), say("live_only", None), say("delta", None, content="Half")),
    ],
    ids=["never was", "no longer is"],
)
async def test_a_stream_that_cannot_be_resumed_is_not_asked_for_again(steps: Answer) -> None:
    async with Upstream() as relay:
        relay.script((opened(), *steps, reset()))
        outcome = await read_one(relay)
        assert len(relay.requests) == 1
    assert (outcome.text, outcome.code) == ("Half", "connection_lost")


async def test_a_stream_that_is_gone_says_so_and_that_text_had_come() -> None:
    async with Upstream() as relay:
        relay.script((opened(), start(), delta(1, "Half"), reset()), refused(410, "not_resumable"))
        outcome = await read_one(relay)
    assert outcome.error is not None
    assert (outcome.code, outcome.error["status"], outcome.error["partial"]) == ("not_resumable", 410, True)


async def test_a_silent_connection_is_taken_for_lost() -> None:
    async with Upstream() as relay:
        relay.script((opened(), start(), delta(1, "one "), hang()), (opened(), delta(2, "two"), done(3), end()))
        assert (await read_one(relay, client={"silenceSeconds": 0.2})).text == "one two"


async def test_attach_goes_on_from_a_cursor() -> None:
    async with Upstream() as relay:
        relay.script((opened(), from_cursor))
        outcome = await read_one(relay, id="s_1", after=2)
        assert (relay.requests[0].method, relay.requests[0].path) == ("GET", "/chat/stream/s_1?after=2")
    assert [event["seq"] for event in outcome.events] == [3, 4]


async def test_attach_tries_again_where_a_question_does_not() -> None:
    async with Upstream() as relay:
        relay.script((reset(),), (opened(), from_cursor))
        assert (await read_one(relay, id="s_1", after=2)).error is None
        relay.script((reset(),), (opened(), from_cursor))
        assert (await read_one(relay)).code == "unreachable"


async def test_attach_behind_the_end_brings_nothing() -> None:
    async with Upstream() as relay:
        relay.script(status(204))
        outcome = await read_one(relay, id="s_1", after=4)
    assert (outcome.events, outcome.error) == ([], None)


@pytest.mark.parametrize(
    "answer",
    [
        status(200, b"<html>Sign in</html>", {"content-type": "text/html"}),
        (head(headers=STREAM_HEADERS), send(b"data: <html>\n\n")),
        (head(headers=STREAM_HEADERS), send(b"data: " + b"x" * 2_000_000)),
    ],
    ids=["a page", "no event", "no end of a line"],
)
async def test_what_is_no_relay_is_called_so(answer: Answer) -> None:
    async with Upstream() as relay:
        relay.script(answer)
        outcome = await read_one(relay)
    assert outcome.error is not None
    assert (outcome.code, outcome.error["retryable"]) == ("not_a_relay", False)
