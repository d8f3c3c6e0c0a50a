"""A page elsewhere that tries what a page can: it reads nothing, spends nothing, stops nothing and frames nothing.

Once by hand, with all that a browser might send, and once in Chromium, where a page on another origin does its worst
while the relay's own page, with its cookies, is open beside it.
"""

import itertools
import json
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
import pytest
from playwright.async_api import BrowserContext

from app import admin
from tests.browser import launched
from tests.credentials import KEYS, bearer, hashes
from tests.hostile import UNKNOWN, status_of
from tests.relay import Relay, chat, connect, fetch, running, settings_for
from tests.stage import profile_of
from tests.upstream import Upstream, answer, chunk, hang, head, status

FRIEND: Final = "https://app.example.com"
STRANGER: Final = "https://evil.example"
KNOWN: Final[dict[str, Any]] = {"keys": {"web": hashes(KEYS[0]) | {"mint": True}}, "allow_anonymous": True}
POSTS: Final = ("/chat/stream", "/v1/chat/completions", "/api/chat", "/ag-ui", "/session", "/tokens")
CANCEL: Final = f"/chat/stream/{UNKNOWN}/cancel"


@pytest.fixture(scope="module", params=[False, True], ids=["without credentials", "with credentials"])
async def relay(request: pytest.FixtureRequest) -> AsyncIterator[Relay]:
    """With one page elsewhere that may call, with its cookies or without."""
    cors = {"cors_origins": (FRIEND,), "cors_credentials": request.param}
    async with Upstream() as upstream, running(upstream.base_url, **KNOWN, **cors, log_level="error") as relay:
        upstream.script(answer("never asked for"))
        yield relay
        assert upstream.requests == []


SIMPLE: Final = [
    *("text/plain", "text/plain;charset=UTF-8", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"),
    *("", "text/plain; application/json", "text/plain, application/json", "application/csp-report", "*/*"),
    *("application/jsonp", "application/json-patch+json", "text/json", "application\\json", "application/ json"),
]


@pytest.mark.parametrize("path", POSTS)
async def test_what_a_page_can_post_without_asking_first_is_not_read(relay: Relay, path: str) -> None:
    """A form's body can be made to look like JSON; its content type cannot."""
    body = json.dumps(chat() | {"messages": [{"role": "user", "content": "hi"}]}).encode()
    for kind in SIMPLE:
        headers = {"content-type": kind, "origin": STRANGER, "sec-fetch-site": "cross-site"}
        if path == "/tokens":
            headers |= bearer(KEYS[0])
        response, _ = await fetch(relay.port, "POST", path, body, headers)
        assert response.status == (403 if path == "/session" else 415), kind
        assert "access-control-allow-origin" not in response.headers


SITES: Final = [
    {"sec-fetch-site": site, "sec-fetch-mode": mode, "sec-fetch-dest": dest}
    for site, (mode, dest) in itertools.product(
        ("cross-site", "same-site", "none"),
        (("navigate", "document"), ("no-cors", "image"), ("cors", "empty"), ("navigate", "iframe"), ("websocket", "x")),
    )
]
ODD_SITES: Final = [{"sec-fetch-site": value} for value in ("", "Same-Origin", "same-origin, cross-site", "x", "\xe9")]
ORIGINS: Final = [{"origin": origin} for origin in (STRANGER, "null", "file://", f"{FRIEND}.evil.example", "http://[")]


@pytest.mark.parametrize("cookie", [{}, {"cookie": "relay_subject=" + "a" * 32}], ids=["no cookie", "a cookie"])
async def test_no_mark_of_another_site_passes(relay: Relay, cookie: dict[str, str]) -> None:
    for marks in (*SITES, *ODD_SITES, *ORIGINS):
        asked = [("GET", "/chat/stream?message=hi&model=m"), ("DELETE", f"/chat/stream/{UNKNOWN}"), ("POST", CANCEL)]
        asked += [
            ("GET", "/api/chat/c/stream"),
            ("DELETE", "/api/chat/c/stream"),
            ("POST", "/session"),
            ("GET", "/v1/models"),
        ]
        statuses = [await status_of(relay.port, *each, headers=marks | cookie) for each in asked]
        assert statuses == [403] * 7, marks


@pytest.mark.parametrize("origin", [STRANGER, "null", FRIEND.upper(), f"{FRIEND}:8443", FRIEND.replace("s:", ":")])
async def test_no_origin_but_the_listed_one_is_told_that_it_may(relay: Relay, origin: str) -> None:
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "content-type, authorization"}
    for path in (*POSTS, "/", "/v1/models", f"/chat/stream/{UNKNOWN}", "/healthz", "/nowhere"):
        for method, headers in (("OPTIONS", asks), ("GET", {}), ("POST", {}), ("DELETE", {})):
            response, _ = await fetch(relay.port, method, path, headers=headers | {"origin": origin})
            allowed = {
                name: value for name, value in response.headers.items() if name.startswith("access-control-allow")
            }
            assert "access-control-allow-origin" not in allowed, (method, path)
            assert STRANGER not in str(response.headers)


async def test_a_listed_origin_may_with_its_cookies_only_where_the_operator_says_so(relay: Relay) -> None:
    with_cookies = relay._app.state.parts.settings.cors_credentials
    response, _ = await fetch(relay.port, "GET", "/healthz", headers={"origin": FRIEND})
    assert response.headers["access-control-allow-origin"] == FRIEND
    assert response.headers.get("access-control-allow-credentials") == ("true" if with_cookies else None)
    assert "Origin" in response.headers["vary"]


PATHS: Final = ["/", "/static/page.js", "/chat/stream", "/v1/models", "/openapi.json", "/chat/events.schema.json", "/x"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.nip.io", "localhost.evil.example"])
async def test_a_name_that_was_made_to_point_here_is_served_nothing(relay: Relay, host: str) -> None:
    """DNS rebinding: to the browser the page and the relay are of one origin."""
    own = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin", **bearer(KEYS[0])}
    for method, path in itertools.product(("GET", "POST", "DELETE", "OPTIONS"), (*PATHS, *POSTS, CANCEL)):
        response, body = await fetch(relay.port, method, path, headers=own)
        assert (response.status, json.loads(body)["error"]["param"]) == (400, "Host"), (method, path)
        assert not {"set-cookie", "access-control-allow-origin"} & response.headers.keys()


# The operator's own listener.


async def test_no_page_stops_a_stream_at_the_operators_listener() -> None:
    """It listens on loopback, where every page in the operator's browser can reach it."""
    settings = settings_for("http://127.0.0.1:9/v1", admin_port=0)
    async with Upstream() as upstream, running(upstream.base_url, log_level="error") as relay:
        upstream.script((head(), chunk("on and on"), hang()))
        async with admin.listening(settings, lambda: relay._app.state.desk) as url, connect(relay.port) as connection:
            assert url is not None
            port = int(url.rpartition(":")[2])
            response = await connection.request("POST", "/chat/stream", chat())
            path = f"/streams/{response.headers['x-stream-id']}"
            for marks in (*SITES, *ODD_SITES, {"origin": STRANGER}, {"origin": "null"}, {"referer": STRANGER}):
                assert await status_of(port, "DELETE", path, headers=marks) == 403, marks
            assert (upstream.active, upstream.aborted) == (1, 0)
            assert await status_of(port, "DELETE", path) == 202
            await upstream.wait_for(lambda seen: seen.aborted == 1)


# In a browser.


class Scene(msgspec.Struct, frozen=True):
    """A browser that has been to the relay's page, and holds its cookies; `evil` is where another page is served."""

    profile: BrowserContext
    relay: Relay
    admin_port: int
    upstream: Upstream
    evil: Upstream

    @property
    def home(self) -> str:
        return f"http://127.0.0.1:{self.relay.port}"

    async def visit(self, host: str) -> Any:
        """The evil page under a name of another site, or of the same one, and what it had of all its tries."""
        page = await self.profile.new_page()
        await page.goto(f"http://{host}:{self.evil.base_url.rpartition(':')[2].removesuffix('/v1')}/")
        return page


ATTACK: Final = """async ([home, admin, stream]) => {
    const read = [];
    const note = (what) => (response) => {
        if (response.type !== "opaque" && response.type !== "opaqueredirect") read.push(what);
    };
    const json = JSON.stringify({ message: "hi", model: "m", messages: [{ role: "user", content: "hi" }] });
    const form = new FormData();
    form.set("message", "hi");
    const paths = ["/chat/stream", "/chat/stream?message=hi&model=m", "/v1/chat/completions", "/v1/models", "/api/chat",
        "/ag-ui", "/tokens", "/session", "/", "/healthz", "/readyz", "/openapi.json", `/chat/stream/${stream}`,
        `/chat/stream/${stream}/result`, `/chat/stream/${stream}/cancel`, "/api/chat/c/stream"];
    const operators = ["/metrics", "/streams", "/readyz", `/streams/${stream}`];
    const urls = [...paths.map((path) => home + path), ...operators.map((path) => admin + path)];
    const tries = [];
    for (const url of urls) for (const mode of ["cors", "no-cors"]) for (const credentials of ["include", "omit"]) {
        const ask = (init) => fetch(url, { mode, credentials, ...init }).then(note(`${url} ${mode}`), () => {});
        tries.push(ask({}));
        if (mode === "cors") tries.push(ask({ method: "DELETE" }), ask({ method: "PUT", body: "x" }));
        const kinds = ["text/plain", "application/json", "application/x-www-form-urlencoded"];
        for (const kind of kinds) tries.push(ask({ method: "POST", body: json, headers: { "content-type": kind } }));
        tries.push(ask({ method: "POST", body: form }), ask({ headers: { accept: "text/event-stream" } }));
        tries.push(ask({ headers: { authorization: "Bearer x" } }));
    }
    const embed = (tag, attributes) => new Promise((resolve) => {
        const element = Object.assign(document.createElement(tag), attributes);
        element.onload = () => { if (tag !== "iframe") read.push(`${tag} ${attributes.src}`); resolve(); };
        element.onerror = resolve;
        document.body.append(element);
        setTimeout(resolve, 1000);
    });
    for (const path of ["/chat/stream?message=hi&model=m", "/v1/models", "/static/page.js", "/static/icon.svg"]) {
        for (const tag of ["img", "script", "video", "iframe"]) tries.push(embed(tag, { src: home + path }));
    }
    tries.push(embed("script", { type: "module", src: `${home}/static/relay-client.js` }));
    tries.push(embed("iframe", { src: `${home}/` }));
    tries.push(new Promise((resolve) => {
        const source = new EventSource(`${home}/chat/stream?message=hi&model=m`, { withCredentials: true });
        source.onmessage = () => { read.push("EventSource"); resolve(); };
        source.onerror = () => { source.close(); resolve(); };
    }));
    tries.push(new Promise((resolve) => {
        const socket = new WebSocket(`${home.replace("http", "ws")}/chat/stream`);
        socket.onopen = () => { read.push("WebSocket"); resolve(); };
        socket.onerror = resolve;
    }));
    for (const path of ["/chat/stream", `/chat/stream/${stream}/cancel`]) navigator.sendBeacon(home + path, json);
    for (const enctype of ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]) {
        const frame = Object.assign(document.createElement("iframe"), { name: `sink-${enctype}` });
        const sent = Object.assign(document.createElement("form"),
            { method: "POST", action: `${home}/chat/stream/${stream}/cancel`, enctype, target: frame.name });
        document.body.append(frame, sent);
        tries.push(new Promise((resolve) => { frame.onload = resolve; setTimeout(resolve, 1000); }));
        sent.submit();
    }
    await Promise.all(tries);
    const frames = [...document.querySelectorAll("iframe")].filter((frame) => {
        try { return frame.contentDocument?.body?.textContent.includes("relay"); } catch { return false; }
    });
    return [read, frames.length, tries.length];
}"""

PAGE: Final = b"<!doctype html><title>evil</title><body></body>"


@pytest.fixture(scope="module")
async def scene() -> AsyncIterator[Scene]:
    async with (
        launched() as browser,
        Upstream() as upstream,
        Upstream() as evil,
        running(upstream.base_url, **KNOWN, log_level="error") as relay,
        admin.listening(settings_for(upstream.base_url, admin_port=0), lambda: relay._app.state.desk) as url,
    ):
        assert url is not None
        upstream.script((head(), chunk("mine"), hang()))
        evil.script(status(200, PAGE, {"content-type": "text/html"}))
        profile = await profile_of(browser, f"http://127.0.0.1:{relay.port}/")
        yield Scene(profile, relay, int(url.rpartition(":")[2]), upstream, evil)
        await profile.close()


BEGIN: Final = """async (home) => {
    const response = await fetch(`${home}/chat/stream`, {
        method: "POST",
        headers: { "content-type": "application/json", accept: "text/event-stream" },
        body: JSON.stringify({ message: "hi", model: "m" }),
    });
    window.reader = response.body.getReader();
    await window.reader.read();
    return [response.status, response.headers.get("x-stream-id")];
}"""


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"], ids=["of another site", "of the same site"])
async def test_a_page_elsewhere_does_its_worst_in_vain(scene: Scene, host: str) -> None:
    """It knows the id of a stream that runs on the relay's own page, in the same browser."""
    own = await scene.profile.new_page()
    await own.goto("/")
    cookies = {cookie["name"] for cookie in await scene.profile.cookies(scene.home)}
    answered, stream = await own.evaluate(BEGIN, scene.home)
    asked, aborted = len(scene.upstream.requests), scene.upstream.aborted
    evil = await scene.visit(host)
    read, frames, tries = await evil.evaluate(ATTACK, [scene.home, f"http://127.0.0.1:{scene.admin_port}", stream])
    assert (cookies, answered) == ({"relay_subject"}, 200)
    assert (read, frames, tries > 200) == ([], 0, True)
    assert len(scene.upstream.requests) == asked
    assert (scene.upstream.aborted, len(scene.relay.generations)) == (aborted, 1)
    path = f"/chat/stream/{stream}"
    stopped = await own.evaluate(
        "(url) => fetch(url, {method: 'DELETE'}).then((said) => said.status)", scene.home + path
    )
    assert stopped == 202
    await scene.upstream.wait_for(lambda seen: seen.aborted == aborted + 1)
    await evil.close()
    await own.close()
