"""`StreamingChat`: what is sent with the next question, and which turns are kept."""

import asyncio

import pytest

from app.client import AsyncRelayClient, AsyncStreamingChat, Message, RelayClient, RelayProblem, StreamingChat
from tests.relay import until
from tests.relay_script import delta, done, end, failed, opened, refused, say, start, url_of, whole
from tests.test_client_twins import Twin, both, chat_with, scripted, until_deleted
from tests.upstream import Upstream, hang, reset, send


def asked(relay: Upstream) -> list[list[str]]:
    """What each question brought with it."""
    posts = [request for request in relay.requests if request.method == "POST"]
    return [[message["content"] for message in request.body["messages"]] for request in posts]


@both
async def test_turns_carry_what_was_said_before(twin: Twin) -> None:
    async with scripted(twin, whole("On", "e."), whole("Two."), whole("Three.")) as (relay, client):
        chat = chat_with(client, system="Be brief.", model="m", temperature=0)
        assert [text async for text in chat.ask("a")] == ["On", "e."]
        assert await chat.answer("b", temperature=1) == "Two."
        assert [event.type async for event in chat.stream("c")] == ["start", "delta", "done"]
        assert asked(relay)[2] == ["Be brief.", "a", "One.", "b", "Two.", "c"]
        roles = [message["role"] for message in relay.requests[1].body["messages"]]
        assert roles == ["system", "user", "assistant", "user"]
        assert [(request.body["model"], request.body["temperature"]) for request in relay.requests] == [
            ("m", 0),
            ("m", 1),
            ("m", 0),
        ]


@both
async def test_history_goes_from_chat_to_chat_and_can_be_forgotten(twin: Twin) -> None:
    async with scripted(twin, whole("One."), whole("Two.")) as (relay, client):
        first = chat_with(client, system="Be brief.")
        await first.answer("a")
        assert first.history == (Message("user", "a"), Message("assistant", "One."))
        second = chat_with(client, history=first.history)
        await second.answer("b")
        first.clear()
        await first.answer("c")
        assert asked(relay)[1:] == [["a", "One.", "b"], ["Be brief.", "c"]]
    assert len(second.history) == 4


@both
async def test_a_turn_that_failed_is_dropped_and_can_be_asked_again(twin: Twin) -> None:
    broken = opened(), start(), delta(1, "Half"), failed(2, "upstream_truncated", partial=True), end()
    lost = opened(), start(resumable=False), delta(1, "Half"), reset()
    async with scripted(twin, broken, lost, refused(503, "overloaded"), whole("One.")) as (relay, client):
        chat = chat_with(client)
        for code in ("upstream_truncated", "connection_lost", "overloaded"):
            with pytest.raises(RelayProblem, match=code):
                await chat.answer("a")
            assert chat.history == ()
        assert await chat.answer("a") == "One."
        assert asked(relay) == [["a"]] * 4


@both
async def test_of_a_stopped_turn_what_was_written_is_kept(twin: Twin) -> None:
    async with scripted(twin, *until_deleted("Half"), whole("Two.")) as (relay, client):
        chat = chat_with(client)
        await chat.stop()  # nothing is under way yet
        async for text in chat.ask("a"):
            assert text == "Half"
            await chat.stop()
        await chat.answer("b")
        assert asked(relay)[1] == ["a", "Half", "b"]


@both
async def test_a_turn_stopped_before_a_word_is_no_turn(twin: Twin) -> None:
    async with scripted(twin, (hang(),)) as (relay, client):
        chat = chat_with(client)
        answering = asyncio.ensure_future(chat.answer("a"))
        await relay.wait_for(lambda relay: relay.active == 1)
        await chat.stop()
        assert (await answering, chat.history) == ("", ())


@both
async def test_a_refusal_is_what_was_said(twin: Twin) -> None:
    refusing = opened(), start(), say("refusal", 1, refusal="I will "), say("refusal", 2, refusal="not."), done(3)
    async with scripted(twin, refusing) as (_, client):
        chat = chat_with(client)
        assert [text async for text in chat.ask("a")] == ["I will ", "not."]
        assert await chat.answer("a") == "I will not."
    assert [message.content for message in chat.history] == ["a", "I will not."] * 2


@both
async def test_an_answer_without_a_word_is_no_turn(twin: Twin) -> None:
    call = say("tool_call", 1, tool_call={"index": 0, "id": "call_1", "name": "f", "arguments": "{}"})
    async with scripted(twin, (opened(), start(), call, done(2, "tool_calls"), end())) as (_, client):
        chat = chat_with(client)
        assert await chat.answer("a") == ""
    assert chat.history == ()


def block(seq: int, content: str) -> bytes:
    return f'data: {{"type":"delta","content":"{content}","seq":{seq}}}\n\n'.encode()


async def leave_blocking(url: str, last: str) -> tuple[Message, ...]:
    def read() -> tuple[Message, ...]:
        with RelayClient(url) as client:
            chat = StreamingChat(client)
            for text in chat.ask("a"):
                if text == last:
                    break
            return chat.history

    return await asyncio.to_thread(read)


async def leave_async(url: str, last: str) -> tuple[Message, ...]:
    async with AsyncRelayClient(url) as client:
        chat = AsyncStreamingChat(client)
        async for text in chat.ask("a"):
            if text == last:
                break
        await until(lambda: chat.history, 5)  # the loop closes the generator in a task of its own
        return chat.history


@both
@pytest.mark.parametrize("over", [False, True], ids=["it is being written", "it was over"])
async def test_leaving_the_loop_stops_the_answer(twin: Twin, over: bool) -> None:
    async with Upstream() as relay:
        generation, deleted = until_deleted("one ")
        pieces = b"".join(block(seq, text) for seq, text in enumerate(("one ", "two ", "three"), 1))
        answer = opened(), start(), send(pieces + b'data: {"type":"done","seq":4}\n\n')
        relay.script(*([answer] if over else [(*generation[:3], delta(2, "two "), *generation[3:]), deleted]))
        leave = leave_blocking if twin == "sync" else leave_async
        async with asyncio.timeout(5):
            history = await leave(url_of(relay), "two ")
        await relay.wait_for(lambda relay: not relay.connections)
        assert [request.method for request in relay.requests] == (["POST"] if over else ["POST", "DELETE"])
    assert [message.content for message in history] == ["a", "one two "]


async def test_an_interrupt_stops_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(url: str) -> tuple[Message, ...]:
        with RelayClient(url) as client:
            chat = StreamingChat(client)
            answer = chat.ask("a")
            assert next(answer) == "Half"
            with pytest.raises(KeyboardInterrupt):
                answer.throw(KeyboardInterrupt)
            return chat.history

    async with Upstream() as relay:
        relay.script(*until_deleted("Half"))
        history = await asyncio.to_thread(interrupted, url_of(relay))
        await relay.wait_for(lambda relay: not relay.connections)
        assert [request.method for request in relay.requests] == ["POST", "DELETE"]
    assert [message.content for message in history] == ["a", "Half"]


async def test_a_cancelled_reader_stops_the_answer() -> None:
    async with scripted("async", *until_deleted("Half")) as (relay, client):
        chat = chat_with(client)

        async def read_on() -> None:
            async for _ in chat.ask("a"):
                pass

        reading = asyncio.create_task(read_on())
        await until(lambda: chat._turn is not None and chat._turn.seq == 1, 5)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert [request.method for request in relay.requests] == ["POST", "DELETE"]
    assert [message.content for message in chat.history] == ["a", "Half"]
