"""openai-node in a page of another origin: the preflight passes with all that the SDK sends, and streams arrive."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Final

import pytest
from playwright.async_api import Browser, Page, Request

from tests.answers import ANSWERS
from tests.browser import launched
from tests.recipes import MODULES, relay_of_answers, url_of
from tests.relay import Relay
from tests.upstream import Upstream, chunk, hang, head

PAGE: Final = Path(__file__).parent / "clients" / "openai-page.mjs"


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    if not MODULES.exists():
        pytest.skip("the clients of npm are not installed (tests/install)")
    async with launched() as browser:
        yield browser


class Files(SimpleHTTPRequestHandler):
    """A server of files that says nothing on the console."""

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def site() -> Iterator[str]:
    """A page on an origin of its own, with the SDK's modules. Chromium lets no faked one reach a loopback address."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "index.html").write_text("<!doctype html>")
        (Path(folder) / "page.mjs").symlink_to(PAGE)
        (Path(folder) / "modules").symlink_to(MODULES)
        with ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=folder)) as server:
            serving = Thread(target=server.serve_forever)
            serving.start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()
            serving.join()


@asynccontextmanager
async def elsewhere(browser: Browser, *, allowed: bool = True) -> AsyncIterator[tuple[Page, Relay, Upstream]]:
    with site() as origin:
        origins = (origin,) if allowed else ("http://other.example",)
        async with relay_of_answers(cors_origins=origins) as (relay, upstream):
            profile = await browser.new_context()
            page = await profile.new_page()
            await page.goto(origin)
            yield page, relay, upstream
            await profile.close()


async def call(page: Page, name: str, relay: Relay, *more: Any) -> Any:
    """Calls a function that the module of ours exports."""
    script = "async ([name, ...args]) => (await import('/page.mjs'))[name](...args)"
    async with asyncio.timeout(20):
        return await page.evaluate(script, [name, url_of(relay), *more])


async def test_a_page_of_another_origin_asks_as_a_program_does(browser: Browser) -> None:
    async with elsewhere(browser) as (page, relay, _):
        sent: list[Request] = []
        page.on("request", lambda request: sent.append(request))
        for way in ("stream", "whole", "helper"):
            told = await call(page, "ask", relay, way, "emoji")
            assert told["text"] == ANSWERS["emoji"].text
            if way != "helper":
                assert told["streamId"].startswith("s_")
                assert told["requestId"].startswith("r_")
        headers = await next(request for request in sent if request.method == "POST").all_headers()
        assert headers["x-stainless-runtime"] == "browser:chrome"
        assert headers["x-timeout-first-token"] == "20"


async def test_a_failure_is_told_to_a_page_of_another_origin(browser: Browser) -> None:
    async with elsewhere(browser) as (page, relay, upstream):
        told = await call(page, "ask", relay, "stream", "broken")
        assert (told["text"], told["code"]) == (ANSWERS["broken"].text, "upstream_truncated")
        assert (await call(page, "ask", relay, "whole", "broken"))["status"] == 502
        assert len(upstream.requests) == 2


async def test_a_page_that_leaves_stops_the_generation(browser: Browser) -> None:
    async with elsewhere(browser) as (page, relay, upstream):
        upstream.script((head(), chunk("Half"), hang()))
        assert await call(page, "leave", relay) == "Half"
        await upstream.wait_for(lambda upstream: upstream.aborted == 1)


async def test_an_origin_that_is_not_allowed_reaches_nothing(browser: Browser) -> None:
    async with elsewhere(browser, allowed=False) as (page, relay, upstream):
        assert (await call(page, "ask", relay, "stream", "plain"))["class"] == "APIConnectionError"
        assert upstream.requests == []
