"""The recipes for the AI SDK: in Node over every answer, and the hook in a browser over a reload and a stop."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Final

import pytest
from playwright.async_api import Browser, Page, Route, expect

from tests.answers import ANSWERS
from tests.browser import Wire, launched, seated
from tests.recipes import (
    DEADLINE_SECONDS,
    MODULES,
    Ran,
    blocks,
    check,
    interrupt,
    relay_of_answers,
    run_node,
    started_node,
    url_of,
)
from tests.test_page_recipes import as_module, react
from tests.upstream import answer, chunk, finish, hang, head, pause, status, wait

HOOK, IN_NODE = blocks("ai-sdk.md", "js")

IMPORTS: Final = {
    "react": "./react.js",
    "react-dom/client": "./react-dom.js",
    "ai": "./node_modules/ai/dist/index.js",
    "@ai-sdk/react": "./node_modules/@ai-sdk/react/dist/index.js",
    "@ai-sdk/gateway": "./node_modules/@ai-sdk/gateway/dist/index.js",
    "@ai-sdk/provider": "./node_modules/@ai-sdk/provider/dist/index.js",
    "@ai-sdk/provider-utils": "./node_modules/@ai-sdk/provider-utils/dist/index.js",
    "@workflow/serde": "./node_modules/@workflow/serde/dist/index.js",
    "eventsource-parser/stream": "./node_modules/eventsource-parser/dist/stream.js",
    "zod/v4": "./node_modules/zod/v4/index.js",
    "zod/v4/mini": "./node_modules/zod/v4/mini/index.js",
    "zod/v4/core": "./node_modules/zod/v4/core/index.js",
    "zod/v4/locales/en.js": "./node_modules/zod/v4/locales/en.js",
    "throttleit": "./throttleit.js",
    "swr": "./unused.js",
    "react/jsx-runtime": "./unused.js",
    "@vercel/oidc": "./unused.js",
}
"""Where a bundler would find the packages."""

UNUSED: Final = "const no = null;\nexport { no as default, no as jsx, no as getContext, no as getVercelOidcToken };\n"
"""For what other hooks need."""

HOOKS: Final = (
    "createElement, useCallback, useEffect, useId, useInsertionEffect, useLayoutEffect, useMemo, useRef, useState, "
    "useSyncExternalStore"
)

PAGE: Final = f"""<!doctype html><div id="root"></div><link rel="icon" href="data:,">
<script type="importmap">{json.dumps({"imports": IMPORTS})}</script>
<script type="module" src="main.js"></script>"""

MAIN: Final = """
import { createElement as make } from "react";
import { createRoot } from "react-dom/client";
import { useRelayChat } from "./use-relay-chat.js";

const textOf = ({ parts }) => parts.map((part) => (part.type === "text" ? part.text : "")).join("");

function Conversation() {
  const { messages, sendMessage, status, error, stop } = useRelayChat("chat-1");
  const told = { text: messages.map(textOf).join("|"), status, error: error?.message ?? "" };
  const parts = Object.entries(told).map(([id, value]) => make("p", { id, key: id }, value));
  return [make("button", { id: "ask", key: 1, onClick: () => sendMessage({ text: "hi" }) }),
          make("button", { id: "stop", key: 2, onClick: stop }), ...parts];
}
createRoot(document.getElementById("root")).render(make(Conversation));
"""


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with launched() as browser:
        yield browser


def files() -> dict[str, str]:
    throttle = (MODULES / "throttleit" / "index.js").read_text()
    return react() | {
        "": PAGE,
        "main.js": MAIN,
        "use-relay-chat.js": HOOK,
        "react.js": as_module("react", "react.production.js", {}, HOOKS),
        "throttleit.js": f"const module = {{}};\n{throttle}\nexport default module.exports;\n",
        "unused.js": UNUSED,
    }


async def open_page(page: Page, made: Mapping[str, str]) -> None:
    """The recipe on the relay's origin, with the packages of tests/clients as they are."""

    async def serve(route: Route) -> None:
        name = route.request.url.partition("/recipe/")[2]
        text = made[name] if name in made else (MODULES.parent / name).read_text()
        await route.fulfill(body=text, content_type="text/javascript" if name else "text/html")

    await page.route("**/recipe/**", serve)
    await page.goto(page.url + "recipe/")


async def test_the_hook_goes_on_after_a_reload_stops_and_fails(chromium: Browser) -> None:
    if not MODULES.exists():
        pytest.skip("the clients of npm are not installed (tests/install)")
    more = asyncio.Event()
    async with seated(chromium, failing=True) as table:
        goes_on = (head(), chunk("one "), wait(more), chunk("two"), finish())
        table.upstream.script(goes_on, (head(), chunk("Half"), hang()), answer("x", finish=None), status(400))
        page, text, state = table.page, table.page.locator("#text"), table.page.locator("#status")
        await open_page(page, files())
        await page.click("#ask")
        await expect(text).to_have_text("hi|one ")
        await page.reload()
        await expect(state).to_have_text("streaming")
        more.set()
        await expect(text).to_have_text("hi|one two")
        await expect(state).to_have_text("ready")
        await page.click("#ask")
        await expect(text).to_have_text("hi|one two|hi|Half")
        await page.click("#stop")
        await table.upstream.wait_for(lambda upstream: upstream.aborted == 1)
        await expect(state).to_have_text("ready")
        for told in ("upstream_truncated: ", '"code":"upstream_rejected"'):
            await page.click("#ask")
            await expect(page.locator("#error")).to_contain_text(told)
            await expect(state).to_have_text("error")
    assert len(table.upstream.requests) == 4


async def test_the_recipe_shows_every_answer_as_it_is() -> None:
    async with relay_of_answers() as (relay, _):
        for question, expected in ANSWERS.items():
            check(await run_node(IN_NODE, question, url_of(relay)), expected)


async def test_the_recipe_tells_why_there_is_no_answer() -> None:
    async with relay_of_answers() as (relay, upstream):
        upstream.script(status(400, b'{"error": {"message": "no such model"}}', {"content-type": "application/json"}))
        ran = await run_node(IN_NODE, "plain", url_of(relay))
    assert (ran.stdout, ran.code) == ("", 1), ran
    assert "upstream_rejected" in ran.stderr
    assert "no such model" in ran.stderr


async def test_the_recipe_takes_a_cut_connection_for_a_loss() -> None:
    async with relay_of_answers(max_connection_seconds=0.3, hold_status_seconds=0.1) as (relay, upstream):
        upstream.script((head(), chunk("one "), pause(1), chunk("two"), finish()))
        ran = await run_node(IN_NODE, "plain", url_of(relay))
    assert ran == Ran("one ", "terminated\n", 1)


async def test_the_recipe_says_that_it_was_cut() -> None:
    async with relay_of_answers() as (relay, _):
        wire = Wire(relay.port)
        await wire.open()
        wire.cut_behind.append(b'"delta":"wor')
        ran = await run_node(IN_NODE, "plain", f"http://127.0.0.1:{wire.port}")
        await wire.close()
    assert ran.stdout in ("Hello", "Hello, "), ran
    assert (ran.code, ran.stderr != "") == (1, True), ran


async def test_the_recipe_that_is_left_stops_the_generation() -> None:
    async with relay_of_answers() as (relay, upstream):
        upstream.script((head(), chunk("Half"), hang()))
        async with started_node(IN_NODE, "plain", url_of(relay)) as process:
            assert process.stdout is not None
            async with asyncio.timeout(DEADLINE_SECONDS):
                assert await process.stdout.readexactly(4) == b"Half"
            interrupt(process)
            await upstream.wait_for(lambda upstream: upstream.aborted == 1)
