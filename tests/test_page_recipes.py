"""The browser recipes of docs/clients, run word for word in a browser."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final

import pytest
from playwright.async_api import Browser, Page, Route, expect

from app.api.page import FOLDER, MEDIA_TYPES
from tests.browser import launched, seated
from tests.recipes import ROOT, blocks
from tests.upstream import answer, chunk, finish, hang, head, wait

MODULES: Final = ROOT / "tests" / "page" / "node_modules"

REACT_PAGE: Final = """<!doctype html><div id="root"></div>
<script type="importmap">{"imports": {"react": "./react.js", "react-dom/client": "./react-dom.js"}}</script>
<script type="module" src="main.js"></script>"""

REACT_MAIN: Final = """
import { createElement as make } from "react";
import { createRoot } from "react-dom/client";
import { useAnswer } from "./use-answer.js";

function Ask() {
  const { text, state, finish, error, ask, stop } = useAnswer();
  const told = { text, state, finish: finish ?? "", error: error?.code ?? "" };
  const parts = Object.entries(told).map(([id, value]) => make("p", { id, key: id }, value));
  return [make("button", { id: "ask", key: 1, onClick: () => ask({ message: "hi" }) }),
          make("button", { id: "stop", key: 2, onClick: stop }), ...parts];
}
createRoot(document.getElementById("root")).render(make(Ask));
"""


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with launched() as browser:
        yield browser


def as_module(package: str, file: str, required: Mapping[str, str], exported: str) -> str:
    """A CommonJS file as an ES module: React is published as nothing else, and a bundler would be one more part."""
    imports = "".join(f'import {name} from "{path}";\n' for name, path in required.items())
    known = ", ".join(f'"{name.replace("_", "-")}": {name}' for name in required)
    code = (MODULES / package / "cjs" / file).read_text()
    head = (
        f"{imports}const module = {{exports: {{}}}}, exports = module.exports, require = (name) => ({{{known}}})[name];"
    )
    return f"{head}\n{code}\nexport default module.exports;\nexport const {{ {exported} }} = module.exports;\n"


def react() -> dict[str, str]:
    hooks = "createElement, useCallback, useEffect, useRef, useState"
    dom = {"react": "./react.js", "react_dom": "./react-dom-base.js", "scheduler": "./scheduler.js"}
    return {
        "react.js": as_module("react", "react.production.js", {}, hooks),
        "scheduler.js": as_module("scheduler", "scheduler.production.js", {}, "unstable_now"),
        "react-dom-base.js": as_module("react-dom", "react-dom.production.js", {"react": "./react.js"}, "version"),
        "react-dom.js": as_module("react-dom", "react-dom-client.production.js", dom, "createRoot"),
    }


async def open_recipe(page: Page, files: Mapping[str, str]) -> None:
    """Opens a folder of files on the relay's origin, beside what the relay serves."""

    async def serve(route: Route) -> None:
        name = route.request.url.rpartition("/")[2] or "index.html"
        kind = MEDIA_TYPES[Path(name).suffix]
        await route.fulfill(body=files[name], headers={"content-type": kind})

    await page.route("**/recipe/*", serve)
    await page.goto(page.url + "recipe/")


async def test_the_page_shows_stops_and_goes_on_after_a_reload(chromium: Browser) -> None:
    [document], [script] = blocks("browser.md", "html"), blocks("browser.md", "js")
    released = asyncio.Event()
    icon = '<link rel="icon" href="data:,">'  # Chromium would ask for /favicon.ico, and complain
    async with seated(chromium) as table:
        goes_on = head(), chunk("one "), wait(released), chunk("two"), finish()
        table.upstream.script(goes_on, (head(), chunk("Half"), hang()), answer("x", finish=None))
        page = table.page
        await open_recipe(page, {"index.html": document + icon, "ask.js": script})
        await page.fill("input", "hi")
        await page.press("input", "Enter")
        await expect(page.locator("#answer")).to_have_text("one")
        await page.reload()
        released.set()
        await expect(page.locator("#state")).to_have_text("closed")
        await expect(page.locator("#answer")).to_have_text("one two")
        await page.fill("input", "again")
        await page.press("input", "Enter")
        await expect(page.locator("#answer")).to_have_text("Half")
        await page.click("#stop")
        await expect(page.locator("#state")).to_have_text("closed")
        await page.press("input", "Enter")
        await expect(page.locator("#state")).to_contain_text("(upstream_truncated, try again)")


async def test_the_hook_asks_stops_and_fails(chromium: Browser) -> None:
    if not MODULES.exists():
        pytest.skip("react is not installed (tests/install)")
    client = {name: (FOLDER / name).read_text() for name in ("relay-client.js", "relay-wire.js")}
    [hook] = blocks("react.md", "js")
    files = {"index.html": REACT_PAGE + '<link rel="icon" href="data:,">', "main.js": REACT_MAIN, "use-answer.js": hook}
    async with seated(chromium) as table:
        table.upstream.script(answer("Hello"), (head(), chunk("Half"), hang()), answer("x", finish=None))
        page = table.page
        await open_recipe(page, files | client | react())
        for text, end in (("Hello", "stop"), ("Half", "cancelled"), ("x", "")):
            await page.click("#ask")
            await expect(page.locator("#text")).to_have_text(text)
            await page.click("#stop")
            await expect(page.locator("#state")).to_have_text("closed")
            await expect(page.locator("#finish")).to_have_text(end)
        await expect(page.locator("#error")).to_have_text("upstream_truncated")
