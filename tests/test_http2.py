"""Many streams of one browser: six at a time over HTTP/1.1, all at once over HTTP/2 through a real nginx."""

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
from playwright.async_api import Browser, expect

from tests.browser import launched
from tests.nginx import SHIPPED
from tests.stage import TWENTY, Front, Stage, ask, halves, hops, opened, profile_of, said, staged, unbroken
from tests.upstream import Answer, chunk, finish, hang, head, repeat, wait

DOCS: Final = Path(__file__).parents[1] / "docs" / "http2.md"


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with launched() as browser:
        yield browser


async def test_twenty_streams_of_one_page_run_at_once_over_http2(chromium: Browser) -> None:
    released = asyncio.Event()
    async with staged(chromium) as stage:
        stage.script(**{name: halves(name, released) for name in TWENTY})
        await ask(stage.page, TWENTY)
        await stage.active(20)
        await said(stage.page).to_have_text(["I am "] * 20)
        released.set()
        await said(stage.page).to_have_text([f"I am {name}" for name in TWENTY])
        assert await hops(stage.page, 20) == [("h2", 0)] * 20  # nobody connected anew: one connection carried all


@pytest.mark.parametrize(("front", "room"), [("http/1.1", 6), ("h2", 8)])
async def test_one_stream_too_many_waits_until_another_ends(chromium: Browser, front: Front, room: int) -> None:
    names = TWENTY[: room + 1]
    released = {name: asyncio.Event() for name in names}
    async with staged(chromium, front, max_streams=8) as stage:
        stage.script(**{name: halves(name, event) for name, event in released.items()})
        await ask(stage.page, names)
        await stage.active(room)
        await somebody_else_is_served(stage, chromium)
        [waiting] = set(names) - set(stage.asked)
        assert stage.upstream.active == room
        released.pop(names[0]).set()
        await stage.upstream.wait_for(lambda _: waiting in stage.asked)
        await said(stage.page, names[0]).to_have_text(f"I am {names[0]}")
        assert stage.upstream.active == room
        for event in released.values():
            event.set()
        await said(stage.page).to_have_text([f"I am {name}" for name in names])
        assert {protocol for protocol, _ in await hops(stage.page, len(names))} == {front}


async def somebody_else_is_served(stage: Stage, browser: Browser) -> None:
    """A whole page and an answer in another profile: longer than a request takes that is slow and does not wait."""
    other = await profile_of(browser, stage.page.url)
    stage.script(other=(head(), chunk("served"), finish()))
    page = await opened(other)
    await ask(page, ["other"])
    await said(page).to_have_text("served")
    await other.close()


async def test_over_http1_not_even_another_tab_loads(chromium: Browser) -> None:
    released = asyncio.Event()
    async with staged(chromium, "http/1.1") as stage:
        stage.script(**{name: halves(name, released) for name in TWENTY[:6]})
        second, third = await opened(stage.profile), await stage.profile.new_page()
        await ask(stage.page, TWENTY[:3])
        await ask(second, TWENTY[3:6])
        await stage.active(6)
        loading = asyncio.create_task(third.goto("/"))
        await somebody_else_is_served(stage, chromium)
        assert not loading.done()
        released.set()
        await loading


async def test_each_token_passes_nginx_before_the_next_is_written(chromium: Browser) -> None:
    events = [asyncio.Event() for _ in "abcd"]
    tokens = [step for letter, event in zip("abcd", events, strict=True) for step in (chunk(letter), wait(event))]
    async with staged(chromium) as stage:
        stage.script(f=(head(), *tokens, finish()))
        await ask(stage.page, ["f"])
        for seen, event in zip(("a", "ab", "abc", "abcd"), events, strict=True):
            await said(stage.page, "f").to_have_text(seen)
            event.set()
        await expect(stage.page.locator("#f")).to_have_attribute("title", "connecting waiting streaming closed ")


@pytest.mark.parametrize("answer", [(hang(),), (head(), chunk("Half"), hang())], ids=["held", "streaming"])
async def test_a_stopped_stream_ends_upstream_and_no_other(chromium: Browser, answer: Answer) -> None:
    released = asyncio.Event()
    async with staged(chromium) as stage:
        stage.script(f1=halves("f1", released), f2=answer, f3=halves("f3", released))
        await ask(stage.page, ["f1", "f2", "f3"])
        await stage.active(3)
        await said(stage.page, "f1", "f2", "f3").to_have_text(["I am ", "Half" if len(answer) > 1 else "", "I am "])
        await stage.page.evaluate("window.streams.f2.stop()")
        await stage.upstream.wait_for(lambda upstream: upstream.aborted == 1)
        released.set()
        for name in ("f1", "f3"):
            await unbroken(stage.page, name)
        assert stage.upstream.opened == 3


async def test_stop_gets_through_although_six_streams_hold_every_connection(chromium: Browser) -> None:
    names = [f"f{number}" for number in range(6)]
    async with staged(chromium, "http/1.1") as stage:
        stage.script(**{name: (head(), chunk("Half"), hang()) for name in names})
        await ask(stage.page, names)
        await said(stage.page, *names).to_have_text(["Half"] * 6)
        await stage.page.evaluate("window.streams.f2.stop()")
        await stage.upstream.wait_for(lambda upstream: upstream.aborted == 1)
        await expect(stage.page.locator("#f2")).to_have_attribute("title", re.compile("closed $"))
        assert stage.upstream.active == 5


async def test_a_closed_tab_ends_its_streams_and_not_those_of_another(chromium: Browser) -> None:
    released = asyncio.Event()
    async with staged(chromium) as stage:
        stage.script(f1=(head(), chunk("Half"), hang()), f2=(hang(),), f3=halves("f3", released))
        other = await opened(stage.profile)
        await ask(other, ["f3"])
        await ask(stage.page, ["f1", "f2"], on_disconnect="cancel")
        await stage.active(3)
        await said(stage.page, "f1").to_have_text("Half")
        await stage.page.close()
        await stage.upstream.wait_for(lambda upstream: upstream.aborted == 2)
        released.set()
        await unbroken(other, "f3")
        assert await hops(other, 1) == [("h2", 0)]


async def test_a_stream_that_nobody_reads_is_cut_off_and_no_other(chromium: Browser) -> None:
    released = asyncio.Event()
    flood = repeat(chunk("x" * 60_000), 800)  # more than all buffers on the way, were nginx not to put it on disk
    async with staged(chromium, send_timeout_seconds=1) as stage:
        stage.script(f1=(head(), flood, finish()), f2=halves("f2", released))
        await ask(stage.page, ["f2"])
        await stage.page.evaluate(TAKE_NOTHING)
        await stage.upstream.wait_for(lambda upstream: upstream.aborted == 1, 15)
        released.set()
        await unbroken(stage.page, "f2")


TAKE_NOTHING: Final = """async () => {
    const headers = { "content-type": "application/json" };
    const body = JSON.stringify({ message: "hi", model: "f1" });
    window.unread = await fetch("/chat/stream", { method: "POST", headers, body });
}"""


async def test_twenty_streams_survive_the_loss_of_their_connection(chromium: Browser) -> None:
    names = [f"f{number}" for number in range(20)]
    released = asyncio.Event()
    async with staged(chromium) as stage:
        stage.script(**{name: halves(name, released) for name in names})
        await ask(stage.page, names)
        await said(stage.page, *names).to_have_text(["I am "] * 20)
        stage.wire.cut()
        await expect(stage.page.locator("[title*=reconnecting]")).to_have_count(20)
        await expect(stage.page.locator("[title*=resumed]")).to_have_count(20)
        released.set()
        await said(stage.page, *names).to_have_text([f"I am {name}" for name in names])
        assert stage.upstream.opened == 20


@pytest.mark.parametrize(("front", "secure"), [("http/1.1", False), ("h2", True)])
async def test_the_cookie_is_secure_behind_tls(chromium: Browser, front: Front, secure: bool) -> None:
    async with staged(chromium, front) as stage:
        stage.script(f=(head(), chunk("hi"), finish()))
        await ask(stage.page, ["f"])
        await said(stage.page, "f").to_have_text("hi")
        [cookie] = await stage.profile.cookies()
        assert (cookie["secure"], cookie["httpOnly"], cookie["sameSite"]) == (secure, True, "Strict")


async def test_what_is_too_large_is_refused_by_the_relay_and_not_by_nginx(chromium: Browser) -> None:
    async with staged(chromium) as stage:
        stage.script(f=(head(), chunk("hi"), finish()))
        refused = """async () => {
            const { RelayClient } = await import("/static/relay-client.js");
            const answer = new RelayClient().stream({ message: "x".repeat(10 * 2 ** 20) });
            return answer[Symbol.asyncIterator]().next().catch(({ code, status }) => [code, status]);
        }"""
        for _ in range(4):  # whether nginx still reads an answer that cuts it short is a matter of luck
            assert await stage.page.evaluate(refused) == ["invalid_request", 413]
        assert stage.asked == []


@pytest.mark.parametrize(("front", "version"), [("http/1.1", b"1.1"), ("h2", b"2")])
async def test_curl_tells_the_protocol(chromium: Browser, front: Front, version: bytes) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed (tests/install)")
    async with staged(chromium, front) as stage:
        arguments = ("-kso", os.devnull, "-w", "%{http_version}", f"{stage.page.url}healthz")
        curl = await asyncio.create_subprocess_exec("curl", *arguments, stdout=asyncio.subprocess.PIPE)
        told, _ = await curl.communicate()
        assert told == version


def test_the_documentation_shows_the_lines_that_were_tried() -> None:
    [(shown, name)] = re.findall(r"```nginx\n(.*?)```\n\n\(from `nginx/(\S+)`\)", DOCS.read_text(), re.DOTALL)
    assert shown in (SHIPPED / name).read_text()
