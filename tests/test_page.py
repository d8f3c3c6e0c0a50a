"""The chat page in a real browser: what a reader sees of a stream, however it goes."""

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
from playwright.async_api import Browser, Page, expect

from tests.browser import Table, launched, seated
from tests.relay import fetch
from tests.upstream import answer, chunk, delta, finish, hang, head, status, usage, wait

SOME_TRY: Final = re.compile(r"coming back \(try [2-9]\)")
"""The page is looked at every second or so: which try it is at by then depends on the machine."""


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with launched() as browser:
        yield browser


def halves(first: str, released: asyncio.Event, second: str) -> Any:
    """An answer that waits in its middle."""
    return head(), chunk(first), wait(released), chunk(second), finish(), usage(3, 9)


async def test_text_appears_while_it_is_written(chromium: Browser) -> None:
    released = asyncio.Event()
    async with seated(chromium) as table:
        table.upstream.script(halves("Hel", released, "lo"))
        await table.ask("hi")
        await expect(table.prose).to_have_text("Hel")
        await expect(table.answer).to_have_attribute("data-state", "streaming")
        released.set()
        await table.over()
        await expect(table.prose).to_have_text("Hello")
        await expect(table.line).to_contain_text("m · 9 tokens")
        await expect(table.line).to_contain_text("first after")


async def test_waiting_counts_seconds(chromium: Browser) -> None:
    async with seated(chromium, hold_status_seconds=0) as table:
        table.upstream.script((hang(),))
        await table.ask("hi")
        await expect(table.line).to_have_text("Waiting for the model… · 1 s")


@pytest.mark.parametrize("way", ["button", "Escape"])
async def test_stop_keeps_the_text_and_reaches_upstream(chromium: Browser, way: str) -> None:
    async with seated(chromium) as table:
        table.upstream.script((head(), chunk("Half of it"), hang()))
        await table.ask("hi")
        await expect(table.prose).to_have_text("Half of it")
        await (table.page.click("#stop") if way == "button" else table.page.keyboard.press("Escape"))
        await table.over("stopped")
        await expect(table.prose).to_have_text("Half of it")
        await expect(table.line).to_contain_text("stopped")
        await expect(table.page.locator("#message")).to_be_focused()
        await table.upstream.wait_for(lambda upstream: upstream.aborted == 1)


async def test_stop_before_the_first_word_reaches_upstream(chromium: Browser) -> None:
    async with seated(chromium) as table:
        table.upstream.script((hang(),))
        await table.ask("hi")
        await table.upstream.wait_for(lambda upstream: upstream.active == 1)
        await table.page.click("#stop")
        await table.over("stopped")
        await table.upstream.wait_for(lambda upstream: upstream.aborted == 1)


async def test_a_cut_connection_comes_back_and_says_everything_once(chromium: Browser) -> None:
    released = asyncio.Event()
    async with seated(chromium, failing=True) as table:
        table.upstream.script(halves("one two ", released, "three"))
        await table.ask("hi")
        await expect(table.prose).to_have_text("one two")
        table.wire.down = True
        table.wire.cut()
        await expect(table.line).to_contain_text(SOME_TRY)
        table.wire.down = False
        await table.state("resumed").wait_for()
        released.set()
        await table.over()
        await expect(table.prose).to_have_text("one two three")
        await expect(table.line).to_contain_text("resumed")
        assert table.upstream.opened == 1


async def test_a_reload_in_the_middle_goes_on(chromium: Browser) -> None:
    released = asyncio.Event()
    async with seated(chromium) as table:
        table.upstream.script(halves("one two ", released, "three"))
        await table.ask("What is it?")
        await expect(table.prose).to_have_text("one two")
        await table.page.reload()
        await expect(table.page.locator(".question")).to_have_text("What is it?")
        await expect(table.prose).to_have_text("one two")
        released.set()
        await table.over()
        await expect(table.prose).to_have_text("one two three")
        assert table.upstream.opened == 1


async def test_a_reload_before_the_first_word_asks_again(chromium: Browser) -> None:
    async with seated(chromium) as table:
        table.upstream.script((hang(),), answer("Here I am"))
        await table.ask("hi")
        await table.upstream.wait_for(lambda upstream: upstream.active == 1)
        await table.page.reload()
        await table.over()
        await expect(table.prose).to_have_text("Here I am")
        assert table.upstream.aborted == 1


async def test_what_is_over_survives_a_reload(chromium: Browser) -> None:
    async with seated(chromium) as table:
        table.upstream.script(answer("**Bold** words"))
        await table.ask("hi")
        await table.over()
        kept = await table.page.evaluate("JSON.parse(sessionStorage.getItem('sse-relay'))")
        assert (kept["running"], kept["turns"][1]["state"]) == (None, "done")  # a crash would lose nothing either
        line = await table.line.text_content()
        await table.page.reload()
        await expect(table.prose.locator("strong")).to_have_text("Bold")
        assert await table.line.text_content() == line
        assert table.upstream.opened == 1


async def test_a_refusal_is_shown_and_can_be_asked_again(chromium: Browser) -> None:
    async with seated(chromium, failing=True, attempts=1) as table:
        table.upstream.script(status(500), answer("Better now"))
        await table.ask("hi")
        await table.over("failed")
        await expect(table.answer.locator(".problem")).to_contain_text("cannot be reached")
        await expect(table.answer.locator(".problem")).to_contain_text("request r_")
        await table.page.get_by_role("button", name="Regenerate").click()
        await table.over()
        await expect(table.prose).to_have_text("Better now")
        assert [request.body["messages"] for request in table.upstream.requests] == [[user("hi")]] * 2


async def test_an_error_in_the_middle_keeps_the_text(chromium: Browser) -> None:
    async with seated(chromium) as table:
        table.upstream.script(answer("Half of it", finish=None))
        await table.ask("hi")
        await table.over("failed")
        await expect(table.prose).to_have_text("Half of it")
        await expect(table.answer.locator(".problem")).to_contain_text("ended too early")
        await expect(table.page.get_by_role("button", name="Regenerate")).to_be_visible()


async def test_a_relay_that_is_away_is_told_from_a_failure_of_the_model(chromium: Browser) -> None:
    async with seated(chromium, failing=True) as table:
        table.wire.down = True
        table.wire.cut()
        await table.ask("hi")
        await table.over("failed")
        await expect(table.answer.locator(".problem")).to_contain_text("The relay cannot be reached.")


async def test_two_tabs_have_two_conversations(chromium: Browser) -> None:
    released = asyncio.Event()
    async with seated(chromium) as table:
        table.upstream.script(halves("first ", released, "tab"), answer("second tab"))
        await table.ask("one")
        await expect(table.prose).to_have_text("first")
        other = await table.page.context.new_page()
        await other.goto(table.page.url)
        await ask(other, "two")
        await expect(other.locator(".prose")).to_have_text("second tab")
        released.set()
        await expect(table.prose).to_have_text("first tab")
        await expect(other.locator(".question")).to_have_count(1)


async def test_a_turn_brings_its_history_and_options(chromium: Browser) -> None:
    async with seated(chromium) as table:
        table.upstream.script(answer("A1"), answer("A2"))
        await table.page.click("#options-toggle")
        await table.page.fill("#system", "Be brief.")
        await table.ask("Q1")
        await table.over()
        await table.page.fill("#model", "other")
        await table.ask("Q2")
        await expect(table.prose).to_have_text("A2")
        first, second = (request.body for request in table.upstream.requests)
        system = {"role": "system", "content": "Be brief."}
        assert (first["model"], first["messages"]) == ("m", [system, user("Q1")])
        said = [system, user("Q1"), {"role": "assistant", "content": "A1"}, user("Q2")]
        assert (second["model"], second["messages"]) == ("other", said)


async def test_clear_forgets_and_stops(chromium: Browser) -> None:
    async with seated(chromium) as table:
        table.upstream.script((head(), chunk("Half"), hang()), answer("Anew"))
        await table.ask("Q1")
        await expect(table.prose).to_have_text("Half")
        await table.page.click("#clear")
        await expect(table.page.locator(".turn")).to_have_count(0)
        await expect(table.page.locator("#welcome")).to_be_visible()
        await table.upstream.wait_for(lambda upstream: upstream.aborted == 1)
        await table.ask("Q2")
        await table.over()
        await expect(table.prose).to_have_text("Anew")
        assert table.upstream.requests[-1].body["messages"] == [user("Q2")]


async def test_thoughts_and_tool_calls_have_their_own_places(chromium: Browser) -> None:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "look", "arguments": '{"at":1}'}}
    async with seated(chromium) as table:
        steps = delta(reasoning_content="Hm <b>"), delta(content="Yes."), delta(tool_calls=[call])
        table.upstream.script((head(), *steps, finish("tool_calls")))
        await table.ask("hi")
        await table.over()
        await expect(table.prose).to_have_text("Yes.")
        await expect(table.answer.locator(".thinking")).to_be_hidden()
        await table.answer.locator("summary").click()
        await expect(table.answer.locator(".thinking")).to_have_text("Hm <b>")
        await expect(table.answer.locator(".tool")).to_have_text('Tool call: look{"at":1}')


async def test_enter_sends_and_shift_enter_breaks_the_line(chromium: Browser) -> None:
    async with seated(chromium) as table:
        table.upstream.script(answer("ok"))
        await table.page.focus("#message")
        await table.page.keyboard.type("one")
        await table.page.keyboard.press("Shift+Enter")
        await table.page.keyboard.type("two")
        await table.page.keyboard.press("Enter")
        await table.over()
        assert table.upstream.requests[0].body["messages"] == [user("one\ntwo")]


@pytest.mark.parametrize("sign", ["isComposing: true", "keyCode: 229"])
async def test_enter_that_ends_a_composition_does_not_send(chromium: Browser, sign: str) -> None:
    event = f"new KeyboardEvent('keydown', {{key: 'Enter', bubbles: true, cancelable: true, {sign}}})"
    async with seated(chromium) as table:
        await table.page.fill("#message", "你好")
        assert await table.page.evaluate(f"document.getElementById('message').dispatchEvent({event})")
        await expect(table.page.locator("#message")).to_have_value("你好")
        assert table.upstream.opened == 0


async def test_the_page_speaks_the_browsers_language(chromium: Browser) -> None:
    async with seated(chromium, failing=True, attempts=1, context={"locale": "zh-CN"}) as table:
        await expect(table.page.locator("html")).to_have_attribute("lang", "zh-CN")
        await expect(table.page.get_by_role("heading", name="想问点什么？")).to_be_visible()  # noqa: RUF001
        await expect(table.page.get_by_role("textbox", name="消息")).to_be_visible()
        table.upstream.script(status(500), answer("好"))
        await table.ask("你好")
        await expect(table.answer.locator(".problem")).to_contain_text("无法连接模型服务。")
        await table.page.get_by_role("button", name="重新生成").click()
        await table.over()
        await expect(table.line).to_contain_text("首个 token")


async def test_a_screen_reader_hears_the_ends_and_not_the_tokens(chromium: Browser) -> None:
    released = asyncio.Event()
    async with seated(chromium) as table:
        await table.page.evaluate(RECORD_ANNOUNCEMENTS)
        table.upstream.script((head(), *map(chunk, "abcdefgh"), wait(released), chunk("i"), finish()))
        await table.ask("hi")
        await expect(table.prose).to_have_text("abcdefgh")
        log = table.page.get_by_role("log")
        await expect(log).to_have_attribute("aria-busy", "true")
        await expect(table.answer).to_have_attribute("aria-live", "off")
        released.set()
        await table.over()
        await expect(log).to_have_attribute("aria-busy", "false")
        assert await table.answer.get_attribute("aria-live") is None
        assert await table.page.evaluate("window.announced") == ["Answering", "The answer is complete"]


RECORD_ANNOUNCEMENTS = """() => {
    window.announced = [];
    const announcer = document.getElementById("announcer");
    new MutationObserver(() => window.announced.push(announcer.textContent)).observe(announcer, {childList: true});
}"""


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


async def ask(page: Page, question: str) -> None:
    await page.fill("#message", question)
    await page.press("#message", "Enter")


KEY = "rk_" + "k" * 43
SHOP = {"sha256": (hashlib.sha256(KEY.encode()).hexdigest(),), "mint": True}


async def token_at(table: Table) -> str:
    headers = {"authorization": f"Bearer {KEY}"}
    response, body = await fetch(table.relay.port, "POST", "/tokens", {"subject": "user-1"}, headers)
    assert response.status == 201
    return str(json.loads(body)["token"])


async def test_a_page_that_is_opened_with_a_token_is_signed_in_and_forgets_it(chromium: Browser) -> None:
    async with seated(chromium, failing=True, keys={"shop": SHOP}) as table:
        table.upstream.script(answer("Hello"))
        await table.ask("hi")
        await table.over("failed")
        await expect(table.answer).to_contain_text("You are not signed in")
        address = table.page.url
        await table.page.goto("about:blank")
        await table.page.goto(f"{address}#token={await token_at(table)}")
        await expect(table.page).to_have_url(address)
        await table.ask("hi again")
        await table.over()
        await expect(table.prose).to_have_text("Hello")
        await table.page.reload()
        await table.ask("and again")
        await table.over()
        assert len(table.upstream.requests) == 2
