"""The recipes of the native dialect for a page: every answer whole, also over cuts and in a tab that was hidden."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
import pytest
from playwright.async_api import Browser, Page, Request, Route, expect

from tests.answers import ANSWERS, by_question
from tests.browser import Table, launched, seated
from tests.recipes import MODULES, block, blocks
from tests.relay import until
from tests.upstream import Upstream, answer, chunk, finish, hang, head, status, wait

LIBRARY: Final = MODULES / "@microsoft" / "fetch-event-source" / "lib" / "esm"
SCRIPT: Final = '<script type="module"'
IMPORT_MAP: Final = '<script type="importmap">{"imports": {"@microsoft/fetch-event-source": "./index"}}</script>'
ICON: Final = '<link rel="icon" href="data:,">'
"""Chromium would ask for /favicon.ico, and complain."""

COUNT_SOURCES: Final = """
window.sources = [];
window.EventSource = class extends EventSource {
  constructor(...given) {
    super(...given);
    sources.push(this);
  }
};
"""

COUNT_TIMERS: Final = """() => {
  const set = window.setTimeout;
  window.timers = 0;
  window.setTimeout = (...given) => {
    timers += 1;
    return set(...given);
  };
}"""

HIDE: Final = """(hidden) => {
  Object.defineProperty(document, "hidden", { configurable: true, value: hidden });
  Object.defineProperty(document, "visibilityState", { configurable: true, value: hidden ? "hidden" : "visible" });
  document.dispatchEvent(new Event("visibilitychange"));
}"""
"""Chromium without a window does not hide its tabs: the page is told what it would be told."""

FIVE: Final = ("one ", "two ", "three ", "four ", "five.")
CUTS: Final = (b'"content":"tw', b'"content":"three ","seq":3}\n', b".4\n")
"""Inside an event's JSON, between its `data` and its `id`, and behind its `id` but before the line that ends it."""

RECIPES: Final = ("fetch.md", "eventsource.md", "fetch-event-source.md")
RESUMING: Final = ("eventsource.md", "fetch-event-source.md")
PATIENCE_MILLISECONDS: Final = 15_000
"""Each reconnect waits the 2 s that the relay names."""


class Recipe(msgspec.Struct):
    """A recipe's page, opened on a relay's origin, and what it has asked the relay for."""

    page: Page
    table: Table
    asked: list[Request]

    async def ask(self, question: str) -> None:
        await self.page.fill("input", question)
        await self.page.press("input", "Enter")

    async def shows(self, text: str) -> None:
        """Text that has no white space of its own at its ends."""
        await expect(self.page.locator("#answer")).to_have_text(text, timeout=PATIENCE_MILLISECONDS)

    async def ends(self, state: str) -> None:
        await expect(self.page.locator("#state")).to_have_text(re.compile(state), timeout=PATIENCE_MILLISECONDS)

    async def text(self, selector: str) -> str | None:
        return await self.page.locator(selector).text_content()

    async def hide(self, hidden: bool) -> None:
        await self.page.evaluate(HIDE, hidden)

    async def is_at_rest(self) -> bool:
        """Whether no EventSource of the page would connect again."""
        return bool(await self.page.evaluate("sources.every((source) => source.readyState === EventSource.CLOSED)"))

    def cursors(self) -> list[str | None]:
        """Behind which `seq` each request began; None for one that began a stream, and for those of an EventSource."""
        ids = [request.headers.get("last-event-id") for request in self.asked]
        return [id and id.rpartition(".")[2] for id in ids]


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with launched() as browser:
        yield browser


@contextlib.asynccontextmanager
async def opened(browser: Browser, page: str, *, failing: bool = False, **settings: Any) -> AsyncIterator[Recipe]:
    files = files_of(page)

    async def serve(route: Route) -> None:
        name = route.request.url.rpartition("/")[2]
        kind = "javascript" if name else "html"
        await route.fulfill(body=files[name], headers={"content-type": f"text/{kind}; charset=utf-8"})

    async with seated(browser, failing=failing, **settings) as table:
        recipe = Recipe(table.page, table, [])
        await table.page.add_init_script(COUNT_SOURCES)
        await table.page.route("**/recipe/*", serve)
        await table.page.goto(table.page.url + "recipe/")
        table.page.on("request", lambda request: recipe.asked.append(request) if "/chat/" in request.url else None)
        yield recipe


def files_of(page: str) -> dict[str, str]:
    """The document, its script by the name in its first line, and the package as a bundler would find it."""
    if not MODULES.exists():
        pytest.skip("the clients of npm are not installed (tests/install)")
    document, script = block(page, "html"), blocks(page, "js")[0]
    package = {path.stem: path.read_text() for path in LIBRARY.glob("*.js")}
    return package | {"": document.replace(SCRIPT, ICON + IMPORT_MAP + SCRIPT, 1), script.split()[1]: script}


def origin(server: Upstream) -> str:
    return server.base_url.removesuffix("/v1")


@pytest.mark.parametrize("page", RECIPES)
async def test_a_recipe_shows_every_answer_as_it_is(chromium: Browser, page: str) -> None:
    async with opened(chromium, page) as recipe:
        recipe.table.upstream.script(by_question())
        for question, expected in ANSWERS.items():
            await recipe.ask(question)
            await recipe.ends(expected.failure or "done|stop|tool_calls")
            assert await recipe.text("#answer") == expected.text
            if page != "fetch.md":
                assert await recipe.text("#thoughts") == expected.reasoning
        assert len(recipe.asked) == len(ANSWERS)
        assert await recipe.is_at_rest()


@pytest.mark.parametrize("page", RECIPES)
async def test_a_recipe_tells_why_there_is_no_answer_and_asks_once(chromium: Browser, page: str) -> None:
    async with opened(chromium, page, failing=True) as recipe:
        await recipe.page.clock.install()
        recipe.table.upstream.script(status(400, b'{"error": {"message": "no such model"}}'))
        await recipe.ask("plain")
        await recipe.ends("upstream_rejected")
        await recipe.page.clock.run_for(60_000)
        assert len(recipe.asked) == len(recipe.table.upstream.requests) == 1
        assert await recipe.is_at_rest()


@pytest.mark.parametrize("page", RESUMING)
async def test_cuts_inside_events_neither_lose_nor_repeat_one(chromium: Browser, page: str) -> None:
    """What came before a cut is shown first: Chromium drops what a script has not read when a connection fails."""
    shown = [asyncio.Event() for _ in FIVE]
    paced = (step for seen, text in zip(shown, FIVE, strict=True) for step in (chunk(text), wait(seen)))
    async with opened(chromium, page, failing=True) as recipe:
        recipe.table.upstream.script((head(), *paced, finish()))
        recipe.table.wire.cut_behind += CUTS
        await recipe.ask("plain")
        for number, seen in enumerate(shown, 1):
            await recipe.shows("".join(FIVE[:number]))
            seen.set()
        await recipe.ends("stop")
        assert await recipe.text("#answer") == "".join(FIVE)
        assert len(recipe.asked) == 1 + len(CUTS)
        assert len(recipe.table.upstream.requests) == 1
        assert await recipe.is_at_rest()


async def test_a_cut_between_the_last_event_and_the_end_asks_no_more(chromium: Browser) -> None:
    """An EventSource that waited for `[DONE]` to close itself would come back, and show that it was refused."""
    async with opened(chromium, "eventsource.md", failing=True) as recipe:
        recipe.table.upstream.script(answer("Hello"))
        recipe.table.wire.cut_behind += [b".2\n\n"]
        await recipe.ask("plain")
        await recipe.ends("stop")
        assert await recipe.is_at_rest()
        assert len(recipe.asked) == 1


async def test_an_eventsource_elsewhere_comes_back_without_a_cookie(chromium: Browser) -> None:
    script = block("eventsource.md", "js")
    async with (
        Upstream() as site,
        opened(chromium, "eventsource.md", failing=True, cors_origins=(origin(site),)) as recipe,
    ):
        away = script.replace("`/chat", f"`http://127.0.0.1:{recipe.table.wire.port}/chat")
        document = files_of("eventsource.md")[""].replace(' src="ask.js">', f">{away}")
        site.script(status(200, document.encode(), {"content-type": "text/html"}))
        recipe.table.upstream.script(answer("Hello ", "world."))
        recipe.table.wire.cut_behind += [b'"content":"wor']
        await recipe.page.context.clear_cookies()
        await recipe.page.goto(origin(site))
        await recipe.ask("plain")
        await recipe.ends("stop")
        assert await recipe.text("#answer") == "Hello world."
        assert len(recipe.asked) == 2
        assert len(recipe.table.upstream.requests) == 1
        assert await recipe.page.context.cookies() == []


@pytest.mark.parametrize("page", RESUMING)
async def test_stop_ends_the_generation_and_the_answer_properly(chromium: Browser, page: str) -> None:
    async with opened(chromium, page) as recipe:
        recipe.table.upstream.script((head(), chunk("Half"), hang()))
        await recipe.ask("plain")
        await recipe.shows("Half")
        await recipe.page.click("#stop")
        await recipe.ends("cancelled")
        assert recipe.table.upstream.aborted == 1


async def test_stop_of_the_fetch_recipe_leaves_and_so_ends_the_generation(chromium: Browser) -> None:
    async with opened(chromium, "fetch.md") as recipe:
        recipe.table.upstream.script((head(), chunk("Half"), hang()))
        await recipe.ask("plain")
        await recipe.shows("Half")
        await recipe.page.click("#stop")
        await recipe.table.upstream.wait_for(lambda upstream: upstream.aborted == 1)
        await recipe.ends("abort")


async def test_a_tab_that_was_hidden_goes_on_where_it_was(chromium: Browser) -> None:
    unseen, seen = asyncio.Event(), asyncio.Event()
    async with opened(chromium, "fetch-event-source.md") as recipe:
        recipe.table.upstream.script(
            (head(), chunk("one "), wait(unseen), chunk("two "), wait(seen), chunk("three"), finish())
        )
        await recipe.ask("plain")
        await recipe.shows("one ")
        [generation] = recipe.table.relay.generations
        await recipe.hide(True)
        await until(lambda: not generation.log.readers, deadline_seconds=5)
        unseen.set()
        await until(lambda: generation.log.next_seq == 3, deadline_seconds=5)
        assert await recipe.text("#answer") == "one "
        await recipe.hide(False)
        await recipe.shows("one two ")
        seen.set()
        await recipe.ends("stop")
        assert await recipe.text("#answer") == "one two three"
        assert recipe.cursors() == [None, "1"]
        assert len(recipe.table.upstream.requests) == 1


async def test_a_tab_shown_again_in_the_middle_of_a_retry_repeats_nothing(chromium: Browser) -> None:
    """The library then forgets its timer, and reads the stream twice at once."""
    shown, twice, told = asyncio.Event(), asyncio.Event(), asyncio.Event()
    async with opened(chromium, "fetch-event-source.md", failing=True) as recipe:
        recipe.table.upstream.script(
            (head(), chunk("one "), wait(shown), chunk("two "), wait(twice), chunk("three"), wait(told), finish())
        )
        recipe.table.wire.cut_behind += [b'"content":"tw']
        await recipe.ask("plain")
        await recipe.shows("one ")
        await recipe.page.clock.install(time=0)
        await recipe.page.clock.pause_at(1)  # the retry waits for us, however slow this machine is
        await recipe.page.evaluate(COUNT_TIMERS)
        shown.set()
        [generation] = recipe.table.relay.generations
        await recipe.page.wait_for_function("timers > 0", polling=10)
        assert not generation.log.readers
        await recipe.hide(True)
        await recipe.hide(False)
        await until(lambda: len(generation.log.readers) == 1, deadline_seconds=5)
        await recipe.page.clock.run_for(10_000)
        await until(lambda: len(generation.log.readers) == 2, deadline_seconds=5)
        twice.set()
        await expect(recipe.page.locator("#answer")).to_contain_text("three")
        told.set()
        await recipe.ends("stop")
        assert await recipe.text("#answer") == "one two three"
        assert len(recipe.table.upstream.requests) == 1
