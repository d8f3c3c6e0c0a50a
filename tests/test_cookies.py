"""Sessions and strangers over HTTP: who is given which cookie, and whose browser can be made to use it."""

import json
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from tests.credentials import KEYS, bearer, hashes
from tests.relay import SSE, Relay, ask, chat, connect, event_of, fetch, running, subject, text_of
from tests.upstream import Upstream, answer

KEY: Final = KEYS[0]
FRIEND: Final = "https://app.example.com"
STRANGER: Final = "https://evil.example"
OWN: Final = {"sec-fetch-site": "same-origin"}
KNOWN: Final[dict[str, Any]] = {
    "profiles": {"support": {"model": "m"}},
    "keys": {"web": hashes(KEY) | {"mint": True}},
}
UNKNOWN: Final = "/chat/stream/s_" + "0" * 32


@pytest.fixture(scope="module")
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as upstream:
        upstream.script(answer("Hel", "lo"))
        yield upstream


@pytest.fixture(scope="module")
async def relay(upstream: Upstream) -> AsyncIterator[Relay]:
    """Knows one application, and no strangers."""
    async with running(upstream.base_url, **KNOWN, cors_origins=(FRIEND,)) as relay:
        yield relay


@pytest.fixture(scope="module")
async def friendly(upstream: Upstream) -> AsyncIterator[Relay]:
    """Lets pages elsewhere send its cookies."""
    async with running(upstream.base_url, **KNOWN, cors_origins=(FRIEND,), cors_credentials=True) as relay:
        yield relay


@pytest.fixture(scope="module")
async def hospitable(upstream: Upstream) -> AsyncIterator[Relay]:
    """Knows an application, and admits strangers beside it."""
    async with running(upstream.base_url, **KNOWN, allow_anonymous=True) as relay:
        yield relay


async def minted(relay: Relay, who: str = "user-1", **fields: object) -> str:
    _, content = await fetch(relay.port, "POST", "/tokens", {"subject": who, **fields}, bearer(KEY))
    token: str = json.loads(content)["token"]
    return token


async def session(relay: Relay, who: str = "user-1", **fields: object) -> dict[str, str]:
    """The header that a browser sends from then on."""
    response, _ = await fetch(relay.port, "POST", "/session", {"token": await minted(relay, who, **fields)})
    assert response.status == 204
    return {"cookie": response.headers["set-cookie"].partition(";")[0]}


async def said(relay: Relay, headers: dict[str, str], path: str = "/session", body: object = b"{}") -> tuple[int, Any]:
    response, content = await fetch(relay.port, "POST", path, body, headers)
    return response.status, json.loads(content)["error"] if content else None


async def test_a_token_becomes_a_cookie_that_no_script_can_read(relay: Relay) -> None:
    response, content = await fetch(relay.port, "POST", "/session", {"token": await minted(relay)})
    assert (response.status, content, response.headers["cache-control"]) == (204, b"", "no-store")
    value, *attributes = response.headers["set-cookie"].split("; ")
    assert value.startswith("relay_session=")
    assert attributes == ["Path=/", "Max-Age=3600", "HttpOnly", "SameSite=Strict"]


async def test_behind_https_the_session_is_secure(relay: Relay) -> None:
    headers = {"x-forwarded-proto": "https"}
    response, _ = await fetch(relay.port, "POST", "/session", {"token": await minted(relay)}, headers)
    assert response.headers["set-cookie"].endswith("; HttpOnly; SameSite=Strict; Secure")


async def test_the_token_may_be_in_the_header(relay: Relay) -> None:
    text = await minted(relay)
    response, _ = await fetch(relay.port, "POST", "/session", {}, bearer(text))
    assert response.status == 204
    status, refused = await said(relay, bearer(text))
    assert (status, refused["code"]) == (401, "unauthorized")
    assert "exchanged before" in refused["message"]


async def test_a_token_is_exchanged_once_whoever_comes_first(relay: Relay) -> None:
    text = await minted(relay)
    first, _ = await fetch(relay.port, "POST", "/session", {"token": text})
    second, _ = await fetch(relay.port, "POST", "/session", {"token": text})
    assert (first.status, second.status) == (204, 401)
    assert "set-cookie" not in second.headers


async def test_an_event_source_asks_with_its_cookie(relay: Relay, upstream: Upstream) -> None:
    """It sends no header of its own, and is given an answer, and comes back to it."""
    cookie = await session(relay, profile="support")
    before = len(upstream.requests)
    async with connect(relay.port) as connection:
        response = await connection.request("GET", "/chat/stream?message=hi&profile=support", None, cookie | SSE | OWN)
        events = [event_of(block) async for block in response.blocks()]
    assert (response.status, text_of(events), "set-cookie" in response.headers) == (200, "Hello", False)
    again = cookie | SSE | OWN | {"last-event-id": events[1]["_id"]}
    async with connect(relay.port) as connection:
        response = await connection.request("GET", "/chat/stream?message=hi&profile=support", None, again)
        rest = [event_of(block) async for block in response.blocks()]
    assert (text_of(rest), len(upstream.requests) - before) == ("lo", 1)


async def test_a_session_sees_its_own_streams_alone(relay: Relay) -> None:
    one, other = await session(relay, "one"), await session(relay, "other")
    response, _ = await ask(relay.port, chat(), headers=one | SSE)
    path = f"/chat/stream/{response.headers['x-stream-id']}/result"
    found = [(await fetch(relay.port, "GET", path, headers=each))[0].status for each in (one, other, bearer(KEY))]
    assert found == [200, 404, 404]


ELSEWHERE: Final = [
    {"sec-fetch-site": "cross-site", "origin": STRANGER},
    {"sec-fetch-site": "same-site", "origin": "https://other.localhost"},
    {"origin": STRANGER},
    {"origin": "null"},
    {"sec-fetch-site": "cross-site"},
]


@pytest.mark.parametrize("page", ELSEWHERE, ids=str)
async def test_no_page_elsewhere_spends_stops_or_exchanges_with_a_session(relay: Relay, page: dict[str, str]) -> None:
    headers = await session(relay) | page
    got, _ = await fetch(relay.port, "GET", "/chat/stream?message=hi&model=m", headers=headers)
    stopped = [(await fetch(relay.port, "DELETE", UNKNOWN, headers=headers))[0].status]
    stopped += [(await fetch(relay.port, "POST", f"{UNKNOWN}/cancel", headers=headers))[0].status]
    exchanged, _ = await said(relay, headers, body={"token": await minted(relay)})
    assert (got.status, stopped, exchanged) == (403, [403, 403], 403)


@pytest.mark.parametrize("path", ["/chat/stream", "/v1/chat/completions", "/api/chat", "/ag-ui", "/session"])
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
async def test_what_a_form_can_post_is_not_read(relay: Relay, path: str, kind: str) -> None:
    headers = await session(relay) | {"content-type": kind}
    assert (await said(relay, headers, path, b'{"message": "hi"}'))[0] == 415


@pytest.mark.parametrize("scheme", ["Basic dXNlcjpwYXNz", "Digest username=x", "Negotiate abc"])
async def test_what_a_browser_adds_for_a_proxy_is_no_proof(relay: Relay, scheme: str) -> None:
    headers = await session(relay) | {"authorization": scheme, "sec-fetch-site": "cross-site"}
    got, _ = await fetch(relay.port, "GET", "/chat/stream?message=hi&model=m", headers=headers)
    assert got.status == 403


async def test_what_a_browser_adds_for_a_proxy_hides_no_session(relay: Relay) -> None:
    headers = await session(relay) | {"authorization": "Basic dXNlcjpwYXNz"}
    assert (await ask(relay.port, chat(), headers=headers))[0].status == 200


async def test_a_credential_goes_before_the_session(relay: Relay) -> None:
    headers = await session(relay)
    assert (await said(relay, headers | bearer("rk_wrong"), "/chat/stream", chat()))[0] == 401


CROSS: Final = {"origin": FRIEND, "sec-fetch-site": "cross-site"}
SAME_SITE: Final = {"origin": FRIEND, "sec-fetch-site": "same-site"}
HTTPS: Final = {"x-forwarded-proto": "https"}


@pytest.mark.parametrize(
    ("page", "same_site"),
    [
        (CROSS | HTTPS, "SameSite=None; Partitioned; Secure"),
        (SAME_SITE | HTTPS, "SameSite=Strict; Secure"),
        (SAME_SITE, "SameSite=Strict"),
        (OWN | HTTPS, "SameSite=Strict; Secure"),
        ({"origin": FRIEND}, "SameSite=Strict"),
    ],
    ids=str,
)
async def test_a_listed_page_gets_a_cookie_that_comes_back(
    friendly: Relay, page: dict[str, str], same_site: str
) -> None:
    response, _ = await fetch(friendly.port, "POST", "/session", {"token": await minted(friendly)}, page)
    assert (response.status, response.headers["set-cookie"].partition("HttpOnly; ")[2]) == (204, same_site)
    if "origin" in page:
        assert response.headers["access-control-allow-credentials"] == "true"


async def test_an_own_page_that_is_listed_as_well_is_an_own_page(relay: Relay) -> None:
    page = OWN | {"origin": FRIEND}
    response, _ = await fetch(relay.port, "POST", "/session", {"token": await minted(relay)}, page)
    assert (response.status, response.headers["set-cookie"].partition("HttpOnly; ")[2]) == (204, "SameSite=Strict")


async def test_a_cookie_that_would_not_come_back_is_refused_and_the_token_stays_good(
    relay: Relay, friendly: Relay
) -> None:
    for where, page, why in ((relay, CROSS | HTTPS, "RELAY_CORS_CREDENTIALS"), (friendly, CROSS, "https")):
        text = await minted(where)
        status, refused = await said(where, page, body={"token": text})
        assert (status, refused["param"], why in refused["message"]) == (403, "Origin", True)
        assert (await fetch(where.port, "POST", "/session", {"token": text}))[0].status == 204


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 422),
        (b'{"tokens": "x"}', 422),
        (b'{"token": 7}', 422),
        (b"{}", 401),
        (b'{"token": ""}', 401),
    ],
)
async def test_a_session_needs_a_token(relay: Relay, body: bytes, status: int) -> None:
    assert (await said(relay, {}, body=body))[0] == status


@pytest.mark.parametrize("text", ["x", "a.b.c", "\u00e9", "a" * 9000, KEY])
async def test_a_session_is_made_of_nothing_but_a_token(relay: Relay, text: str) -> None:
    status, refused = await said(relay, {}, body={"token": text})
    assert (status, refused["code"], text in refused["message"] and len(text) > 1) == (401, "unauthorized", False)


WAYS_IN: Final[list[tuple[str, str, object]]] = [
    ("POST", "/chat/stream", chat()),
    ("GET", "/chat/stream?message=hi&model=m", None),
    ("GET", UNKNOWN, None),
    ("GET", f"{UNKNOWN}/result", None),
    ("DELETE", UNKNOWN, None),
    ("POST", f"{UNKNOWN}/cancel", None),
    ("POST", "/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "hi"}]}),
    ("POST", "/api/chat", {"id": "c", "messages": []}),
    ("GET", "/api/chat/c/stream", None),
    ("DELETE", "/api/chat/c/stream", None),
    ("POST", "/ag-ui", {}),
]


@pytest.mark.parametrize(("method", "path", "body"), WAYS_IN, ids=lambda value: str(value)[:30])
async def test_every_way_in_asks_who_comes(relay: Relay, method: str, path: str, body: object) -> None:
    for headers, challenge in (({}, "Bearer"), (bearer("rk_wrong"), 'Bearer error="invalid_token"')):
        response, content = await fetch(relay.port, method, path, body, OWN | headers)
        error = json.loads(content)["error"]
        assert (response.status, error["code"], error["param"]) == (401, "unauthorized", "Authorization")
        assert (response.headers["www-authenticate"], response.headers["x-should-retry"]) == (challenge, "false")
        assert "set-cookie" not in response.headers


async def test_an_event_source_is_told_as_a_stream(relay: Relay) -> None:
    response, content = await fetch(relay.port, "POST", "/chat/stream", chat(), SSE)
    assert (response.status, response.headers["content-type"][:17]) == (401, "text/event-stream")
    assert b'"code":"unauthorized"' in content


@pytest.mark.parametrize("path", ["/", "/static/page.js", "/healthz", "/readyz"])
async def test_the_page_and_the_probes_need_no_credential(relay: Relay, path: str) -> None:
    response, _ = await fetch(relay.port, "GET", path)
    assert (response.status, "set-cookie" in response.headers) == (200, False)


async def test_strangers_are_admitted_beside_others_and_given_a_subject(hospitable: Relay) -> None:
    page, _ = await fetch(hospitable.port, "GET", "/")
    assert page.headers["set-cookie"].startswith("relay_subject=")
    response, events = await ask(hospitable.port, chat())
    assert (response.status, text_of(events)) == (200, "Hello")
    assert response.headers["set-cookie"].startswith("relay_subject=")
    refused, _ = await fetch(hospitable.port, "POST", "/chat/stream", b"nope")
    assert (refused.status, refused.headers["set-cookie"][:14]) == (400, "relay_subject=")


async def test_who_has_a_credential_is_given_no_subject(hospitable: Relay) -> None:
    for headers in (bearer(KEY), bearer(await minted(hospitable)), await session(hospitable)):
        for path in ("/", "/static/none"):
            response, _ = await fetch(hospitable.port, "GET", path, headers=headers)
            assert "set-cookie" not in response.headers
        response, _ = await ask(hospitable.port, chat(), headers=headers)
        assert (response.status, "set-cookie" in response.headers) == (200, False)
        refused, _ = await fetch(hospitable.port, "POST", "/chat/stream", b"nope", headers)
        assert (refused.status, "set-cookie" in refused.headers) == (400, False)


async def test_a_wrong_credential_is_no_stranger(hospitable: Relay) -> None:
    for headers in (bearer("rk_wrong"), {"authorization": KEY}, bearer("a.b.c") | subject("a")):
        status, refused = await said(hospitable, headers, "/chat/stream", chat())
        assert (status, refused["code"]) == (401, "unauthorized")


async def test_a_session_that_is_over_is_a_stranger_where_such_are_admitted(hospitable: Relay) -> None:
    response, _ = await ask(hospitable.port, chat(), headers={"cookie": "relay_session=over"})
    assert (response.status, response.headers["set-cookie"][:14]) == (200, "relay_subject=")


async def test_an_application_can_be_idempotent_and_a_stranger_without_a_subject_cannot(hospitable: Relay) -> None:
    for headers, status in ((bearer(KEY), 200), (await session(hospitable), 200), ({}, 400)):
        response, _ = await ask(hospitable.port, chat(), headers=headers | {"idempotency-key": "k"})
        assert response.status == status


async def test_without_callers_any_key_will_do(upstream: Upstream) -> None:
    """The SDKs cannot be used without one."""
    async with running(upstream.base_url) as relay:
        for headers in ({}, bearer("sk-whatever"), {"authorization": "odd"}, {"cookie": "relay_session=x"}):
            response, events = await ask(relay.port, chat(), headers=headers)
            assert (response.status, text_of(events)) == (200, "Hello")
            assert response.headers["set-cookie"].startswith("relay_subject=")
        for path in ("/tokens", "/session"):
            status, refused = await said(relay, bearer("a.b.c"), path)
            assert (status, refused["code"]) in ((403, "forbidden"), (401, "unauthorized"))
