"""What is kept is counted: prompts go with their generation, and full logs make room or hold upstream back."""

import gc

import pytest

from app.admission.callers import Caller
from app.errors import RelayError
from app.settings import MiB
from tests.relay import ask, chat, connect, running, text_of, until
from tests.upstream import Answer, Upstream, answer, chunk, done, finish, hang, head, reset, send, status

NOBODY = Caller("", None)
SSE = {"accept": "text/event-stream"}


async def test_an_ended_stream_keeps_its_answer_but_not_its_prompt() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(answer("a"))
        response, _ = await ask(relay.port, chat("x" * MiB), headers=SSE)
        generation = relay.streams.find(response.headers["x-stream-id"], NOBODY)
        assert generation.chat.payload == {}
        await until(lambda: not relay.generations)
        upstream.requests.clear()
        gc.collect()
        held = [each for each in gc.get_objects() if isinstance(each, dict) and len(str(each.get("messages"))) > MiB]
        assert held == []
        assert relay.streams.held_bytes < 16 * 1024
        assert generation.usage().source == "estimated"


async def test_a_running_stream_is_charged_for_its_prompt() -> None:
    async with Upstream() as upstream, running(upstream.base_url, log_total_bytes=MiB) as relay:
        upstream.script((head(), chunk("a"), hang()))
        async with connect(relay.port) as first, connect(relay.port) as second:
            await first.request("POST", "/chat/stream", chat("x" * 2 * MiB), SSE)
            refused = await second.request("POST", "/chat/stream", chat("x" * MiB), SSE)
            assert (refused.status, refused.headers["retry-after"]) == (503, "2")
        async with connect(relay.port) as third:
            assert (await third.request("POST", "/chat/stream", chat("small"), SSE)).status == 200


async def test_more_streams_than_may_run_are_refused() -> None:
    async with Upstream() as upstream, running(upstream.base_url, max_streams=1, max_queued=0) as relay:
        upstream.script((head(), chunk("a"), hang()))
        async with connect(relay.port) as first:
            assert (await first.request("POST", "/chat/stream", chat())).status == 200
            refused, (problem,) = await ask(relay.port, chat())
        assert (refused.status, problem["error"]["code"]) == (503, "overloaded")
        assert 2 <= int(refused.headers["retry-after"]) <= 4
    assert len(upstream.requests) == 1


async def test_nobody_is_waited_for_who_could_only_have_read_live() -> None:
    async with Upstream() as upstream, running(upstream.base_url, log_stream_bytes=1024) as relay:
        upstream.script((head(), chunk("x" * 1000), chunk("y"), hang()))
        async with connect(relay.port) as connection:
            response = await connection.request("POST", "/chat/stream", chat(), SSE)
            async for block in response.blocks():
                if "live_only" in block:
                    break
        await upstream.wait_for(lambda seen: seen.aborted == 1)


async def test_all_bytes_are_given_back() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(answer("a", "b"))
        for headers in (SSE, {}):
            await ask(relay.port, chat(), headers=headers)
        streams = relay.streams
    assert streams.held_bytes == 0


async def test_one_name_in_a_refusal_does_not_end_usage_for_all() -> None:
    words = b'{"error": {"message": "The model `stream_options` does not exist"}}'
    async with Upstream() as upstream, running(upstream.base_url, attempts=1) as relay:
        upstream.script(status(404, words, {"content-type": "application/json"}), answer("a"))
        await ask(relay.port, chat())
        await ask(relay.port, chat())
    assert ["stream_options" in request.body for request in upstream.requests] == [True, True]


LAST_WORDS = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}'


@pytest.mark.parametrize(
    "cut",
    [(done(),), (reset(),), (hang(),)],
    ids=["ends", "is reset", "is never ended"],
)
async def test_how_a_finished_answer_is_cut_changes_nothing(cut: Answer) -> None:
    async with Upstream() as upstream, running(upstream.base_url, usage_wait_seconds=0.2) as relay:
        half = send(LAST_WORDS % rb"b\ud83d" + b"\n\n")
        upstream.script((head(), chunk("a"), half, finish(), *cut))
        _, events = await ask(relay.port, chat())
    assert (events[-2]["type"], text_of(events)) == ("done", "ab\ufffd")


async def test_an_error_whose_body_hangs_is_known_by_its_status() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script((head(500, {}), send(b"{"), hang()), answer("a"))
        _, events = await ask(relay.port, chat())
    assert (text_of(events), len(upstream.requests)) == ("a", 2)


async def test_a_stream_that_is_gone_is_not_found_by_a_stranger() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(answer("a"))
        owner = {"cookie": f"relay_subject={'a' * 32}"}
        response, _ = await ask(relay.port, chat(), headers=owner)
        for subject, code in (("a" * 32, "not_resumable"), ("b" * 32, "not_found")):
            with pytest.raises(RelayError) as caught:
                relay.streams.find(response.headers["x-stream-id"], Caller("", subject))
            assert caught.value.problem.code == code
