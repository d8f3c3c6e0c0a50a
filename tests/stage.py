"""A page of the relay in a browser profile of its own, reached straight or through nginx over HTTP/2."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, Literal

import msgspec
from playwright.async_api import Browser, BrowserContext, Page, expect

from tests.browser import DEADLINE_MILLISECONDS, Wire
from tests.nginx import fronted
from tests.relay import running
from tests.upstream import Answer, Upstream, chunk, finish, head, wait

TWENTY: Final = [f"{'ef'[number % 2]}{number}" for number in range(20)]
"""Names of answers, of their elements and of the models asked: e… are read by EventSource, f… by relay-client.js."""

Front = Literal["http/1.1", "h2"]


class Stage(msgspec.Struct):
    """A browser profile with one page of the relay, which is reached straight or through nginx."""

    upstream: Upstream
    profile: BrowserContext
    page: Page
    wire: Wire

    @property
    def asked(self) -> list[str]:
        """The models whose requests have reached upstream."""
        return [request.body["model"] for request in self.upstream.requests]

    def script(self, **answers: Answer) -> None:
        for model, steps in answers.items():
            self.upstream.script(steps, model=model)

    async def active(self, count: int) -> None:
        await self.upstream.wait_for(lambda upstream: upstream.active == count)


@contextlib.asynccontextmanager
async def staged(
    browser: Browser, front: Front = "h2", max_streams: int = 128, **settings: Any
) -> AsyncIterator[Stage]:
    """A relay of a scripted upstream, what stands before it, and the relay's page in a fresh profile."""
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(Upstream())
        port = (await stack.enter_async_context(running(upstream.base_url, **settings))).port
        if front == "h2":
            port = await stack.enter_async_context(fronted(port, max_streams=max_streams))
        wire = Wire(port)
        await wire.open()
        stack.push_async_callback(wire.close)
        scheme = "https" if front == "h2" else "http"
        profile = await profile_of(browser, f"{scheme}://127.0.0.1:{wire.port}/")
        stack.push_async_callback(profile.close)
        yield Stage(upstream, profile, await opened(profile), wire)


async def profile_of(browser: Browser, url: str) -> BrowserContext:
    """A profile of its own, with its own connections and cookies."""
    profile = await browser.new_context(base_url=url, ignore_https_errors=True)
    profile.set_default_timeout(DEADLINE_MILLISECONDS)
    return profile


async def opened(profile: BrowserContext) -> Page:
    page = await profile.new_page()
    await page.goto("/")
    return page


async def ask(page: Page, names: Sequence[str], **request: Any) -> None:
    """Opens a stream for each name; what it says appears in an element of that name."""
    await page.evaluate(ASK, [names, request])


ASK: Final = """async ([names, request]) => {
    const { RelayClient } = await import("/static/relay-client.js");
    const client = new RelayClient();
    window.streams ??= {};
    for (const name of names) {
        const output = document.body.appendChild(document.createElement("output"));
        output.id = name;
        (name.startsWith("e") ? listen : read)(name, output);
    }
    function listen(name, output) {
        const source = new EventSource(`/chat/stream?message=hi&model=${name}`);
        source.onmessage = ({ data }) => {
            if (data === "[DONE]") source.close();
            else output.append(JSON.parse(data).content);
        };
    }
    async function read(name, output) {
        const onState = (state) => { output.title += `${state.name} `; };
        window.streams[name] = client.stream({ message: "hi", model: name, ...request }, { onState });
        for await (const event of window.streams[name]) output.append(event.content);
    }
}"""


def said(page: Page, *names: str) -> Any:
    return expect(page.locator(", ".join(f"#{name}" for name in names) if names else "output"))


async def hops(page: Page, count: int) -> list[tuple[str, float]]:
    """Of so many streams that are over: the protocol of each, and how long it took to connect for it."""
    return [(protocol, took) for protocol, took in await page.evaluate(HOPS, count)]


HOPS: Final = """(count) => new Promise((resolve) => {
    const found = [];
    new PerformanceObserver((list) => {
        const streams = list.getEntries().filter((entry) => new URL(entry.name).pathname === "/chat/stream");
        found.push(...streams.map((entry) => [entry.nextHopProtocol, entry.connectEnd - entry.connectStart]));
        if (found.length >= count) resolve(found);
    }).observe({ type: "resource", buffered: true });
})"""


async def unbroken(page: Page, name: str) -> None:
    """The answer is whole, and its stream never had to come back."""
    await said(page, name).to_have_text(f"I am {name}")
    await expect(page.locator(f"#{name}")).to_have_attribute("title", "connecting waiting streaming closed ")


def halves(name: str, released: asyncio.Event) -> Answer:
    return head(), chunk("I am "), wait(released), chunk(name), finish()
