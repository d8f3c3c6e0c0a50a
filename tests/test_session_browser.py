"""Sessions in a real browser: `EventSource` with the cookie, on our own page and on a page of another site."""

import contextlib
import json
import shutil
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
from playwright.async_api import Page, async_playwright

from tests.credentials import KEYS, bearer, hashes
from tests.nginx import fronted
from tests.relay import Relay, fetch, running
from tests.upstream import Upstream, answer

KEY: Final = KEYS[0]
OURS, THEIRS = "https://relay.test", "https://app.example"
"""Two sites on one server: what makes a page one of elsewhere is its name."""

ASK: Final = """async ([relay, token]) => {
    const exchange = () => fetch(`${relay}/session`, {
        method: "POST",
        credentials: "include",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ token }),
    });
    const statuses = [(await exchange()).status, (await exchange()).status];
    const source = new EventSource(`${relay}/chat/stream?message=hi&model=m`, { withCredentials: true });
    const text = await new Promise((resolve) => {
        let text = "";
        source.onmessage = ({ data }) => {
            if (data === "[DONE]") resolve(text);
            else text += JSON.parse(data).content;
        };
        source.onerror = () => resolve("refused");
    });
    source.close();
    return { statuses, text, seen: document.cookie };
}"""


@contextlib.asynccontextmanager
async def visited(page_of: str) -> AsyncIterator[tuple[Page, Relay]]:
    """A page of that site, before a relay that admits no strangers."""
    known: dict[str, Any] = {
        "keys": {"web": hashes(KEY) | {"mint": True}},
        "allowed_hosts": ("relay.test", "app.example"),
        "cors_origins": (THEIRS,),
        "cors_credentials": True,
    }
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("chromium is not installed (tests/install)")
    async with (
        Upstream() as upstream,
        running(upstream.base_url, **known) as relay,
        fronted(relay.port) as port,
        async_playwright() as playwright,
    ):
        upstream.script(answer("Hel", "lo"))
        rules = ",".join(f"MAP {name}:443 127.0.0.1:{port}" for name in ("relay.test", "app.example"))
        # Browsers come to keep no cookie of a third party; this one, in a profile such as this, has come to it.
        flags = ["--no-sandbox", "--test-third-party-cookie-phaseout", f"--host-resolver-rules={rules}"]
        browser = await playwright.chromium.launch(executable_path=executable, args=flags)
        # The page is the relay's own, under a name that is not: its policy would let it ask nobody else.
        profile = await browser.new_context(ignore_https_errors=True, bypass_csp=True)
        page = await profile.new_page()
        await page.goto(page_of)
        yield page, relay
        await browser.close()


async def asked(page: Page, relay: Relay) -> Any:
    headers = bearer(KEY) | {"host": "localhost"}
    _, content = await fetch(relay.port, "POST", "/tokens", {"subject": "user-1"}, headers)
    return await page.evaluate(ASK, [OURS, json.loads(content)["token"]])


ANSWERED: Final = {"statuses": [204, 401], "text": "Hello", "seen": ""}
"""The second exchange is refused, and no script sees the cookie."""


async def test_an_event_source_asks_with_the_session_of_its_page() -> None:
    """That of another site's page is kept for that page alone: who comes to the relay itself has none."""
    async with visited(THEIRS) as (page, relay):
        assert await asked(page, relay) == ANSWERED
        await page.goto(OURS)
        assert await page.evaluate("fetch('/chat/stream?message=hi&model=m').then(({ status }) => status)") == 401
        assert await asked(page, relay) == ANSWERED
