"""`sse-relay chat` against a relay by script: what is on the screen, what the relay is asked, and the exit code."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.relay_script import delta, done, end, failed, opened, refused, say, start, url_of, whole
from tests.terminal import COMMAND, environment, run, terminal
from tests.upstream import Exchange, Step, Upstream, hang, head, wait

CTRL_C, CTRL_D = "\x03", "\x04"


@pytest.fixture
async def relay() -> AsyncIterator[Upstream]:
    async with Upstream() as scripted:
        yield scripted


def thinking_aloud() -> list[Step]:
    return [opened(), start(), say("reasoning", 1, reasoning="Hm."), delta(2, "Yes"), delta(3, "."), done(4), end()]


def until_deleted() -> tuple[list[Step], list[Step]]:
    """A generation that goes on until it is deleted, and the answer to the DELETE."""
    deleted = asyncio.Event()

    async def release(_: Exchange) -> None:
        deleted.set()

    generation = [opened(), start(), delta(1, "Once"), wait(deleted), done(2, "cancelled"), end()]
    return generation, [head(202, {}, content_length=0), release]


async def test_piped_stdout_is_the_answer_alone(relay: Upstream, tmp_path: Path) -> None:
    relay.script(thinking_aloud())
    finished = await run(tmp_path, "chat", "Really?", "--url", url_of(relay), "--model", "m", "--system", "Be brief.")
    assert (finished.code, finished.out) == (0, "Yes.\n")
    assert finished.err == "9 tokens · first after 0.41 s · 5 tokens/s · finish reason: stop\n"
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Really?"}]
    assert relay.requests[0].body == {"messages": messages, "model": "m", "on_disconnect": "wait"}


async def test_json_is_the_events_as_they_came(relay: Upstream, tmp_path: Path) -> None:
    relay.script(thinking_aloud())
    finished = await run(tmp_path, "chat", "--json", "--url", url_of(relay), stdin="Really?\n")
    events = [json.loads(line) for line in finished.out.splitlines()]
    assert (finished.code, finished.err) == (0, "")
    assert [event["type"] for event in events] == ["start", "reasoning", "delta", "delta", "done"]
    assert relay.requests[0].body["messages"] == [{"role": "user", "content": "Really?"}]


async def test_a_key_is_named_by_its_variable(relay: Upstream, tmp_path: Path) -> None:
    relay.script(thinking_aloud())
    (tmp_path / ".env").write_text("SHOP_KEY=rk_secret")
    finished = await run(tmp_path, "chat", "Really?", "--url", url_of(relay), "--key-env", "SHOP_KEY")
    assert (finished.code, relay.requests[0].headers["authorization"]) == (0, "Bearer rk_secret")
    missing = await run(tmp_path, "chat", "Really?", "--url", url_of(relay), "--key-env", "NO_KEY")
    assert (missing.code, "--key-env: there is no variable NO_KEY" in missing.err) == (2, True)


@pytest.mark.parametrize("option", [(), ("--json",)], ids=["text", "json"])
async def test_an_error_in_the_stream_is_exit_1(relay: Upstream, tmp_path: Path, option: tuple[str, ...]) -> None:
    ending = failed(2, "upstream_truncated", partial=True, retryable=True)
    relay.script((opened(), start(), delta(1, "Half"), ending, end()))
    finished = await run(tmp_path, "chat", "hi", "--url", url_of(relay), *option)
    assert finished.code == 1
    assert finished.err.startswith("sse-relay: It is upstream_truncated (upstream_truncated). The answer is not whole.")
    assert finished.out == "Half\n" or json.loads(finished.out.splitlines()[-1])["type"] == "error"


async def test_a_refusal_says_what_to_do(relay: Upstream, tmp_path: Path) -> None:
    relay.script(refused(422, "invalid_request", param="model"))
    finished = await run(tmp_path, "chat", "hi", "--url", url_of(relay))
    assert (finished.code, finished.out) == (1, "")
    assert "--model" in finished.err


async def test_no_relay_is_exit_2(tmp_path: Path) -> None:
    async with Upstream() as gone:
        url = url_of(gone)
    finished = await run(tmp_path, "chat", "hi", "--url", url)
    wanted = f"sse-relay: no relay at {url}; start one with `sse-relay serve` or `sse-relay demo`\n"
    assert (finished.code, finished.err) == (2, wanted)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("hi", "--url", "localhost:8000"), "http://"),
        (("hi", "--url", "http://[::1"), "is no URL"),
        ((), "question is empty"),
        (("hi", "--bogus"), "--bogus"),
    ],
)
async def test_bad_usage_is_exit_2(tmp_path: Path, arguments: tuple[str, ...], why: str) -> None:
    finished = await run(tmp_path, "chat", *arguments)
    assert finished.code == 2
    assert why in finished.err


async def test_ctrl_c_stops_the_generation_and_reads_its_end(relay: Upstream, tmp_path: Path) -> None:
    relay.script(*until_deleted())
    async with terminal(tmp_path, "chat", "A story", "--url", url_of(relay)) as screen:
        await screen.expect("Once")
        screen.press(CTRL_C)
        await screen.expect("stopped · 9 tokens")
        assert await screen.end() == 130
    assert [(request.method, request.path) for request in relay.requests[1:]] == [("DELETE", "/chat/stream/s_1")]


async def test_ctrl_c_before_the_relay_answers_leaves(relay: Upstream, tmp_path: Path) -> None:
    relay.script([hang()])
    async with terminal(tmp_path, "chat", "A story", "--url", url_of(relay)) as screen:
        await relay.wait_for(lambda scripted: scripted.active == 1, 20)
        screen.press(CTRL_C)
        await screen.expect("stopped")
        assert await screen.end() == 130
    await relay.wait_for(lambda scripted: scripted.aborted == 1)
    assert len(relay.requests) == 1


async def test_a_second_ctrl_c_quits(relay: Upstream, tmp_path: Path) -> None:
    relay.script([opened(), start(), delta(1, "Once"), hang()], [hang()])
    async with terminal(tmp_path, "chat", "A story", "--url", url_of(relay)) as screen:
        await screen.expect("Once")
        screen.press(CTRL_C)
        await relay.wait_for(lambda scripted: scripted.active == 2)
        screen.press(CTRL_C)
        assert await screen.end() == 130


async def test_reasoning_is_dimmed_on_a_terminal(relay: Upstream, tmp_path: Path) -> None:
    relay.script(thinking_aloud())
    async with terminal(tmp_path, "chat", "Really?", "--url", url_of(relay)) as screen:
        await screen.expect("\x1b[2mHm.\x1b[0m\r\n\r\nYes.\r\n\x1b[2m9 tokens")
        assert await screen.end() == 0


async def test_no_color_is_plain(relay: Upstream, tmp_path: Path) -> None:
    relay.script(thinking_aloud())
    async with terminal(tmp_path, "chat", "Really?", "--url", url_of(relay), NO_COLOR="1") as screen:
        await screen.expect("Hm.\r\n\r\nYes.\r\n9 tokens")
        await screen.end()
        assert "\x1b" not in screen.text


async def test_an_answer_cannot_command_the_terminal(relay: Upstream, tmp_path: Path) -> None:
    relay.script(whole("\x1b]0;owned\x07 \x9b2J", "\r tab\tline\n"))
    async with terminal(tmp_path, "chat", "hi", "--url", url_of(relay), NO_COLOR="1") as screen:
        assert await screen.expect("9 tokens") == "]0;owned 2J tab\tline\r\n9 tokens"


async def test_turns_carry_what_was_said_before(relay: Upstream, tmp_path: Path) -> None:
    relay.script([head(204, {})], whole("One."), whole("Two."), whole("Three."))
    async with terminal(tmp_path, "chat", "--url", url_of(relay)) as screen:
        for keys in ("a\n", "b\n", "/clear\n", "c\n", CTRL_D):
            await screen.expect("> ")
            screen.press(keys)
        assert await screen.end() == 0
    asked = [[message["content"] for message in request.body["messages"]] for request in relay.requests[1:]]
    assert asked == [["a"], ["a", "One.", "b"], ["c"]]


async def test_a_chat_goes_on_after_a_stop_and_after_a_failure(relay: Upstream, tmp_path: Path) -> None:
    relay.script([head(204, {})], *until_deleted(), refused(503, "overloaded", retryable=True), whole("Three."))
    async with terminal(tmp_path, "chat", "--url", url_of(relay)) as screen:
        screen.press("a\n")
        await screen.expect("Once")
        screen.press(CTRL_C)
        await screen.expect("stopped")
        screen.press("b\n")
        await screen.expect("It may help to try again.")
        screen.press("c\n")
        await screen.expect("Three.")
        screen.press("/quit\n")
        assert await screen.end() == 0
    assert [message["content"] for message in relay.requests[-1].body["messages"]] == ["a", "Once", "c"]


async def test_a_chat_with_nobody_ends_before_the_first_prompt(tmp_path: Path) -> None:
    async with Upstream() as gone:
        url = url_of(gone)
    async with terminal(tmp_path, "chat", "--url", url) as screen:
        await screen.expect("no relay at")
        assert await screen.end() == 2


async def test_a_reader_that_goes_away_stops_the_generation(relay: Upstream, tmp_path: Path) -> None:
    generation, deleted = until_deleted()
    go_on = asyncio.Event()
    relay.script([*generation[:3], wait(go_on), delta(2, "upon"), *generation[3:]], deleted)
    reading, writing = os.pipe()
    command = (COMMAND, "chat", "hi", "--url", url_of(relay))
    variables = environment(tmp_path, {})
    process = await asyncio.create_subprocess_exec(
        *command, stdout=writing, stderr=asyncio.subprocess.PIPE, env=variables
    )
    os.close(writing)
    assert await asyncio.to_thread(os.read, reading, 4) == b"Once"
    os.close(reading)
    go_on.set()
    _, err = await process.communicate()
    assert (process.returncode, err) == (128 + signal.SIGPIPE, b"")
    assert relay.requests[-1].method == "DELETE"
