"""`sse-relay` as it is installed: refusals and exit codes, the listing, and the demonstration over real sockets."""

import json
from pathlib import Path

import httpx2
import pytest

from app import __version__
from tests.terminal import run, terminal

CTRL_C = "\x03"
KEY = "sk-proj-0123456789abcd"


@pytest.mark.parametrize("command", ["serve", "demo", "config"])
async def test_a_misspelt_variable_stops_every_command(tmp_path: Path, command: str) -> None:
    finished = await run(tmp_path, command, RELAY_HEARTBEET_SECONDS="1", OPENAI_API_KEY=KEY)
    assert (finished.code, finished.out) == (2, "")
    wanted = "sse-relay: RELAY_HEARTBEET_SECONDS is no setting; did you mean RELAY_HEARTBEAT_SECONDS?\n"
    assert finished.err == wanted


async def test_serve_without_a_key_names_both_ways_out(tmp_path: Path) -> None:
    finished = await run(tmp_path, "serve")
    assert finished.code == 2
    assert "`export OPENAI_API_KEY=…`" in finished.err
    assert "`sse-relay demo`" in finished.err


async def test_serve_beyond_loopback_says_what_to_set(tmp_path: Path) -> None:
    finished = await run(tmp_path, "serve", "--host", "0.0.0.0", OPENAI_API_KEY=KEY)
    assert finished.code == 2
    assert "RELAY_ALLOW_ANONYMOUS=true" in finished.err


async def test_serve_says_where_it_listens_and_ends_well(tmp_path: Path) -> None:
    async with terminal(tmp_path, "serve", "--port", "0", OPENAI_API_KEY=KEY) as screen:
        await screen.expect(f"sse-relay {__version__} listens on ")
        url = (await screen.expect("\r\n")).strip()
        async with httpx2.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"{url}/healthz")).status_code == 200
        screen.press(CTRL_C)
        assert await screen.end() == 0


async def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    async with terminal(tmp_path, "serve", "--port", "0", OPENAI_API_KEY=KEY) as screen:
        await screen.expect("listens on http://127.0.0.1:")
        port = (await screen.expect("\r\n")).strip()
        finished = await run(tmp_path, "serve", "--port", port, OPENAI_API_KEY=KEY)
        assert finished.code == 1
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use; try --port" in finished.err
        async with terminal(tmp_path, "demo", RELAY_PORT=port) as demonstration:
            await demonstration.expect(f"port {port} is taken")
            await demonstration.expect("curl -N http://127.0.0.1:")


async def test_config_masks_secrets(tmp_path: Path) -> None:
    plain = await run(tmp_path, "config", OPENAI_API_KEY=KEY)
    assert plain.code == 0
    assert plain.out.splitlines()[0].split() == ["OPENAI_API_KEY", '"sk-…abcd"', "environment"]
    listing = await run(tmp_path, "config", "--json", OPENAI_API_KEY=KEY)
    assert json.loads(listing.out)["OPENAI_API_KEY"] == {"value": "sk-…abcd", "source": "environment"}
    assert "56789" not in plain.out + plain.err + listing.out + listing.err


async def test_an_unknown_command_is_exit_2(tmp_path: Path) -> None:
    finished = await run(tmp_path, "bogus")
    assert finished.code == 2
    assert "bogus" in finished.err


async def test_the_version_is_told(tmp_path: Path) -> None:
    assert (await run(tmp_path, "--version")).out == f"sse-relay {__version__}\n"


async def test_the_demonstration_shows_an_answer_and_leaves(tmp_path: Path) -> None:
    finished = await run(tmp_path, "demo", "--once", "--model", "demo-fast", "Is anybody there?")
    assert finished.code == 0
    assert "Is anybody there?" in finished.out
    assert "finish reason: stop" in finished.err
    assert "\x1b" not in finished.out + finished.err


async def test_a_demonstration_that_fails_is_exit_1(tmp_path: Path) -> None:
    finished = await run(tmp_path, "demo", "--once", "--model", "demo-cut")
    assert finished.code == 1
    assert "upstream_truncated" in finished.err


async def test_the_demonstration_goes_on_serving_until_ctrl_c(tmp_path: Path) -> None:
    async with terminal(tmp_path, "demo", "--port", "0", "--model", "demo-fast", NO_COLOR="1") as screen:
        await screen.expect("curl -N ")
        url = (await screen.expect("/chat/stream")).removesuffix("/chat/stream")
        answer = await run(tmp_path, "chat", "--url", url, "Still there?")
        assert (answer.code, "Still there?" in answer.out) == (0, True)
        async with terminal(tmp_path, "chat", "--url", url, "--model", "demo-slow", "A story") as talk:
            await talk.expect("A story")
            talk.press(CTRL_C)
            await talk.expect("stopped · about")
            assert await talk.end() == 130
        screen.press(CTRL_C)
        assert await screen.end() == 0
