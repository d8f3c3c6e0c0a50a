"""`sse-relay top`: what runs, in a terminal, in a pipe and as JSON; and a terminal that is left as it was."""

import asyncio
import contextlib
import fcntl
import io
import json
import struct
import termios
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
from rich.console import Console
from rich.text import Text

from app import admin
from app.api.admin import Desk
from app.terminal.board import age, board, size
from app.terminal.seen import Logs, Lookout, Places, Queue, Readiness, Seen, StreamSeen, Unseen, UpstreamSeen
from tests.relay import Relay, chat, connect, running, settings_for, subject
from tests.relay_script import url_of
from tests.terminal import Terminal, run, terminal
from tests.upstream import Answer, Upstream, chunk, close, finish, hang, head, reset, send, status, wait

CTRL_C: Final = "\x03"
OTHER_SCREEN: Final = "\x1b[?1049h"
OWN_SCREEN_AGAIN: Final = "\x1b[?1049l"
CURSOR: Final = "\x1b[?25h"


@contextlib.asynccontextmanager
async def overseen(relay: Relay, port: int = 0) -> AsyncIterator[str]:
    """The URL of a relay's admin listener."""

    def desk() -> Desk:
        found: Desk = relay._app.state.desk
        return found

    async with admin.listening(settings_for("http://x", admin_port=port), desk) as url:
        assert url is not None
        yield url


@contextlib.asynccontextmanager
async def streaming(port: int, model: str) -> AsyncIterator[str]:
    """The id of a stream that runs while the block does."""
    async with connect(port) as connection:
        response = await connection.request("POST", "/chat/stream", chat("a secret", model=model), subject("a"))
        yield response.headers["x-stream-id"]


def modes(screen: Terminal) -> list[Any]:
    return termios.tcgetattr(screen._controller)


def resize(screen: Terminal, columns: int, lines: int) -> None:
    fcntl.ioctl(screen._controller, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


# In a terminal


async def test_streams_are_seen_to_come_to_change_and_to_go(tmp_path: Path) -> None:
    released = asyncio.Event()
    async with Upstream() as upstream, running(upstream.base_url, max_streams=1) as relay, overseen(relay) as url:
        upstream.script((head(), chunk("Hel"), wait(released), finish()), model="first")
        upstream.script((head(), chunk("Hel"), hang()), model="second")
        async with terminal(tmp_path, "top", "--url", url, "--interval", "0.1") as screen:
            before = modes(screen)
            await screen.expect(OTHER_SCREEN)
            await screen.expect("streams 0/1")
            resize(screen, 130, 20)
            async with streaming(relay.port, "first") as first, connect(relay.port) as second:
                assert first in await screen.expect("streaming")
                second.write("POST", "/chat/stream", chat(model="second"))
                await screen.expect("queue 1/100")
                await screen.expect("queued")
                released.set()
                await screen.expect("queue 0/100")
                assert "second" in await screen.expect("streaming")
                await screen.expect("now by age")
                screen.press("s")
                await screen.expect("now by lag")
                resize(screen, 50, 8)
                await screen.expect("…")  # the head has no room for all its letters
                short = await screen.expect("now by lag")
                assert [word for word in ("LAG", "READERS", "streaming") if word not in short] == []
            await screen.expect("streams 0/1")
            assert "anony" not in await screen.expect("now by lag")
            screen.press("q")
            assert await screen.end() == 0
            assert modes(screen) == before
            assert screen.text.rindex(OWN_SCREEN_AGAIN) > screen.text.rfind(OTHER_SCREEN)
            assert CURSOR in screen.text


async def test_a_listener_that_goes_is_looked_for_and_ctrl_c_gives_the_terminal_back(tmp_path: Path) -> None:
    async with running("http://127.0.0.1:9") as relay, contextlib.AsyncExitStack() as listening:
        url = await listening.enter_async_context(overseen(relay))
        async with terminal(tmp_path, "top", "--url", url, "--interval", "0.1", COLUMNS="150") as screen:
            before = modes(screen)
            await screen.expect("streams 0/5000")
            await listening.aclose()
            await screen.expect(f"this is how it was: no admin listener at {url}")
            async with overseen(relay, port=int(url.rpartition(":")[2])):
                await screen.expect("s sorts")
                screen.press(CTRL_C)
                assert await screen.end() == 130
            assert modes(screen) == before
            assert OWN_SCREEN_AGAIN in screen.text


async def test_who_is_told_to_end_gives_the_terminal_back(tmp_path: Path) -> None:
    async with (
        running("http://127.0.0.1:9") as relay,
        overseen(relay) as url,
        terminal(tmp_path, "top", "--url", url, "--interval", "600") as screen,
    ):
        before = modes(screen)
        await screen.expect("s sorts")
        resize(screen, 40, 8)
        await screen.expect("…")  # drawn anew at once
        screen._process.terminate()
        assert await screen.end() == 143
        assert modes(screen) == before
        assert OWN_SCREEN_AGAIN in screen.text


@pytest.mark.parametrize(("columns", "lines", "rows"), [(60, 7, 1), (79, 24, 18), (120, 20, 14), (300, 60, 30)])
def test_it_fits_the_terminal_and_says_what_is_left_out(columns: int, lines: int, rows: int) -> None:
    streams = [StreamSeen(f"s_{n:032}", "key:app", "gpt-4o", "openai", "waiting", n, 1, 0) for n in range(30)]
    upstreams = [UpstreamSeen(f"upstream-{n}", "open", 1, 10, 5, 8.0, 0.0) for n in range(20)]
    readiness = Readiness("ready", "there", Places(1, 2), Queue(3, 4), Logs(5, 6), upstreams)
    console = Console(file=io.StringIO(), width=columns, height=lines)
    with console.capture() as captured:
        shown = board(Seen(readiness, streams, 0.01), "http://x", sort="age", room=console.size, note=Text("note"))
        console.print(shown)
    drawn = captured.get().splitlines()
    assert len(drawn) <= lines
    assert max(map(len, drawn)) <= columns
    ids = [line.split()[0] for line in drawn if line.startswith("s_")]
    assert (ids[0] == streams[-1].id) == (columns >= 120)
    assert len(ids) == rows
    assert (f"… and {30 - rows} more" in drawn) == (rows < 30)


# In a pipe


async def test_once_is_a_table_without_a_terminals_colours_and_of_nobodys_making(tmp_path: Path) -> None:
    model = "[bold]m[/]\x1b]0;owned\x07" + "x" * 200
    async with Upstream() as upstream, running(upstream.base_url) as relay, overseen(relay) as url:
        upstream.script((head(), chunk("a secret"), hang()), model=model)
        async with streaming(relay.port, model) as id:
            ended = await run(tmp_path, "top", "--url", url)
            json_ended = await run(tmp_path, "top", "--url", url, "--once", "--json")
    assert (ended.code, ended.err, json_ended.code) == (0, "", 0)
    first, second, _, heading, row = ended.out.splitlines()
    assert first.startswith("ready  streams 1/5000 · queue 0/100 · logs ")
    assert second == "upstreams default closed 1"
    assert heading.split() == ["STREAM", "CALLER", "MODEL", "UPSTREAM", "PHASE", "AGE", "READERS", "LAG"]
    assert row.split()[:5] == [id, "anonymous", "[bold]m[/]]0;owned" + "x" * 200, "default", "streaming"]
    assert "\x1b" not in ended.out
    look = json.loads(json_ended.out)
    assert [stream["id"] for stream in look["streams"]] == [id]
    assert look["readiness"]["streams"] == {"running": 1, "max": 5000}
    assert 0 <= look["loop_lag_s"] < 5
    assert "secret" not in ended.out + json_ended.out


async def test_json_goes_on_a_line_a_look_and_tells_what_it_cannot_see(tmp_path: Path) -> None:
    async with running("http://127.0.0.1:9") as relay, contextlib.AsyncExitStack() as listening:
        url = await listening.enter_async_context(overseen(relay))
        async with terminal(tmp_path, "top", "--url", url, "--json", "--interval", "0.1") as screen:
            for _ in range(2):
                assert json.loads(await screen.expect("\r\n"))["streams"] == []
            await listening.aclose()
            await screen.expect('{"error":"no admin listener at ')
            screen.press(CTRL_C)
            assert await screen.end() == 130


# What is no admin listener


async def test_nothing_there_is_told_at_once(tmp_path: Path) -> None:
    ended = await run(tmp_path, "top", "--url", "http://127.0.0.1:9")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("sse-relay: no admin listener at http://127.0.0.1:9;")


async def unseen(url: str) -> str:
    async with Lookout(url) as lookout:
        with pytest.raises(Unseen) as caught:
            await lookout.look()
    return str(caught.value)


NOT_IT: Final = "{url} is not the admin listener of a relay; it has a port of its own: RELAY_ADMIN_PORT, 8001 unless"
NO_HTTP: Final = "what listens at {url} does not speak HTTP, or has just gone"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (status(200, b"<html>"), NOT_IT),
        (status(200, b"\xff"), NOT_IT),
        (status(200, b'{"status": "ready"}'), NOT_IT),
        (status(503, b'{"error": {"message": "the relay is starting"}}'), "{url} says: the relay is starting"),
        ((send(b"SSH-2.0-x\r\n\r\n"), close()), NO_HTTP),
        ((reset(),), NO_HTTP),
    ],
)
async def test_what_is_no_admin_listener_is_told(answer: Answer, why: str) -> None:
    async with Upstream() as other:
        other.script(answer)
        url = url_of(other)
        assert (await unseen(url)).startswith(why.format(url=url))


async def test_a_relays_public_port_is_told_from_its_admin_listener() -> None:
    async with running("http://127.0.0.1:9") as relay, overseen(relay) as url:
        assert "it has a port of its own" in await unseen(f"http://127.0.0.1:{relay.port}")
        async with Lookout(url) as lookout:
            assert (await lookout.look()).readiness.status == "ready"


@pytest.mark.parametrize("url", ["nonsense", "ftp://x", "http://", "http://[::1"])
def test_what_is_no_url_is_told(url: str) -> None:
    with pytest.raises(ValueError, match="is no URL"):
        Lookout(url)


def test_figures_are_short() -> None:
    ages = [age(seconds) for seconds in (0.04, 59.94, 60, 3599, 3600)]
    assert ages == ["0.0 s", "59.9 s", "1:00", "59:59", "1:00:00"]
    sizes = [size(count) for count in (0, 1023, 1024, 2**20, 3 * 2**29)]
    assert sizes == ["0 B", "1023 B", "1.0 KiB", "1.0 MiB", "1536.0 MiB"]
