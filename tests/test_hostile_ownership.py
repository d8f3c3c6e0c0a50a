"""Somebody else's stream, chat and key: for whoever does not own it, it is as if it had never been.

All kinds of callers are tried against each other, with subjects that are chosen to be taken for one another. What one
who knows the id is told is what he is told of an id that nobody has, byte for byte but for the request's own id.
"""

import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from tests.credentials import AUDIENCE, EC, ISSUER, KEYS, RSA, bearer, hashes, key_set, token
from tests.hostile import UNKNOWN
from tests.redis_server import redis_server
from tests.relay import SSE, Connection, Relay, ask, chat, connect, fetch, running, subject, text_of
from tests.upstream import Upstream, answer, chunk, hang, head

OTHER_ISSUER: Final = "https://other.example.com/"
SAME: Final = "a" * 32
"""A subject of every kind has this name: a cookie's value, a token's `sub`, a browser token's subject."""

Headers = dict[str, str]


class Scene(msgspec.Struct, frozen=True):
    """`at` is the relay where streams are begun, `elsewhere` the one where others look for them."""

    upstream: Upstream
    at: Relay
    elsewhere: Relay
    callers: dict[str, Headers]


def tables(folder: Path) -> dict[str, Any]:
    for name, key in (("idp", RSA), ("other", EC)):
        (folder / name).write_bytes(key_set(key))
    return {
        "keys": {"web": hashes(KEYS[0]) | {"mint": True}, "shop": hashes(KEYS[1]) | {"mint": True}},
        "issuers": {
            "web": {"issuer": ISSUER, "audience": AUDIENCE, "jwks_file": str(folder / "idp")},
            "other": {"issuer": OTHER_ISSUER, "audience": AUDIENCE, "jwks_file": str(folder / "other")},
        },
        "allow_anonymous": True,
        "token_secret": "a secret that both processes know of",
        "max_readers_per_stream": 2,
    }


async def minted(relay: Relay, key: str, who: str) -> str:
    _, body = await fetch(relay.port, "POST", "/tokens", {"subject": who}, bearer(key))
    text: str = json.loads(body)["token"]
    return text


async def session(relay: Relay, key: str, who: str) -> Headers:
    response, _ = await fetch(relay.port, "POST", "/session", {"token": await minted(relay, key, who)})
    return {"cookie": response.headers["set-cookie"].partition(";")[0]}


async def cast_of(relay: Relay) -> dict[str, Headers]:
    now = time.time()
    return {
        "a stranger": subject("a"),
        "another stranger": subject("b"),
        "a key": bearer(KEYS[0]),
        "another key": bearer(KEYS[1]),
        "a subject of an issuer": bearer(token(now=now, sub=SAME)),
        "another of its subjects": bearer(token(now=now, sub="b" * 32)),
        "the subject of another issuer": bearer(token(EC, "ES256", now=now, iss=OTHER_ISSUER, sub=SAME)),
        "a subject of a key": bearer(await minted(relay, KEYS[0], SAME)),
        "another of its subjects, by cookie": await session(relay, KEYS[0], "b" * 32),
        "the subject of another key": bearer(await minted(relay, KEYS[1], SAME)),
        "the subject of another key, by cookie": await session(relay, KEYS[1], f"web/{SAME}"),
    }


@pytest.fixture(scope="module", params=["in memory", "in another process"])
async def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    folder = tmp_path_factory.mktemp("scene")
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(Upstream())
        settings = tables(folder) | {"log_level": "error"}
        if request.param == "in another process":
            settings["redis_url"] = (await stack.enter_async_context(redis_server(folder))).url
        relays = [await stack.enter_async_context(running(upstream.base_url, **settings)) for _ in range(2)]
        at, elsewhere = relays if "redis_url" in settings else relays[:1] * 2
        yield Scene(upstream, at, elsewhere, await cast_of(at))


def wanted(stream_id: str, chat_id: str) -> list[tuple[str, str, object, Headers]]:
    """All that can be asked about a stream by its id, or about a chat by its."""
    path, cursor = f"/chat/stream/{stream_id}", {"last-event-id": f"{stream_id}.0"}
    return [
        ("GET", path, None, {}),
        ("GET", path, None, SSE),
        ("GET", path, None, cursor),
        ("GET", f"{path}?after=999999", None, {}),
        ("GET", f"{path}/result", None, {}),
        ("GET", "/chat/stream?message=hi&model=m", None, {"sec-fetch-site": "same-origin"} | cursor),
        ("POST", "/chat/stream", chat(), cursor),
        ("DELETE", path, None, {}),
        ("POST", f"{path}/cancel", None, {}),
        ("GET", f"/api/chat/{chat_id}/stream", None, {}),
        ("DELETE", f"/api/chat/{chat_id}/stream", None, {}),
    ]


async def said(connection: Connection, asked: tuple[str, str, object, Headers], who: Headers) -> tuple[int, Any, str]:
    """The answer, without what is the request's own."""
    method, path, body, headers = asked
    response = await connection.request(method, path, body, who | headers)
    text = "" if response.status == 204 else (await response.read()).decode()
    request_id = response.headers.pop("x-request-id")
    for header in ("date", "content-length", "set-cookie"):
        response.headers.pop(header, None)
    return response.status, response.headers, text.replace(request_id, "")


async def is_told_nothing(port: int, who: Headers, stream_id: str, chat_id: str) -> None:
    async with connect(port) as connection:
        for theirs, nobodys in zip(wanted(stream_id, chat_id), wanted(UNKNOWN, "no-such-chat"), strict=True):
            status, headers, text = await said(connection, theirs, who)
            of_a_chat = {"GET": 204, "DELETE": 202}  # as for a chat that waits for nothing
            assert status == (of_a_chat[theirs[0]] if theirs[1].startswith("/api/") else 404), theirs
            without_ids = text.replace(stream_id, UNKNOWN).replace(chat_id, "no-such-chat")
            assert (status, headers, without_ids) == await said(connection, nobodys, who), theirs


UI: Final = {"messages": [{"role": "user", "parts": [{"type": "text", "text": "hi"}]}], "model": "m"}


@pytest.mark.parametrize("owner", range(11))
async def test_who_knows_an_id_knows_nothing_and_can_do_nothing(scene: Scene, owner: int) -> None:
    scene.upstream.script((head(), chunk("a secret"), hang()))
    owners = list(scene.callers.values())[owner]
    aborted, chat_id = scene.upstream.aborted, f"chat-{owner}"
    async with connect(scene.at.port) as native, connect(scene.at.port) as chatting:
        response = await native.request("POST", "/chat/stream", chat(), owners | SSE | {"idempotency-key": "k"})
        assert response.status == 200
        assert (await chatting.request("POST", "/api/chat", UI | {"id": chat_id}, owners)).status == 200
        stream_id = response.headers["x-stream-id"]
        for name, other in {**scene.callers, "a stranger without a cookie": {}}.items():
            if other != owners:
                await is_told_nothing(scene.elsewhere.port, other, stream_id, chat_id)
                assert scene.upstream.aborted == aborted, name
        account, _ = await fetch(scene.elsewhere.port, "GET", f"/chat/stream/{stream_id}/result", headers=owners)
        assert account.status == 200
        for path in (f"/chat/stream/{stream_id}", f"/api/chat/{chat_id}/stream"):
            assert (await fetch(scene.elsewhere.port, "DELETE", path, headers=owners))[0].status == 202
        await scene.upstream.wait_for(lambda upstream: upstream.aborted == aborted + 2)


async def test_the_same_key_of_two_callers_is_two_keys(scene: Scene) -> None:
    scene.upstream.script(answer("mine"))
    begun: set[str] = set()
    for who in scene.callers.values():
        response, events = await ask(scene.at.port, chat(), headers=who | SSE | {"idempotency-key": "shared"})
        assert (response.status, text_of(events)) == (200, "mine")
        begun.add(response.headers["x-stream-id"])
        again, _ = await ask(scene.elsewhere.port, chat(), headers=who | SSE | {"idempotency-key": "shared"})
        assert again.headers["x-stream-id"] == response.headers["x-stream-id"]
    assert len(begun) == len(scene.callers)


async def test_a_stream_that_is_gone_is_gone_to_its_owner_alone(tmp_path: Path) -> None:
    settings = tables(tmp_path) | {"log_level": "error", "log_ttl_seconds": 0.05}
    async with Upstream() as upstream, running(upstream.base_url, **settings) as relay:
        upstream.script(answer("short"))
        cast = await cast_of(relay)
        for owner in cast.values():
            response, _ = await ask(relay.port, chat(), headers=owner | {"x-on-disconnect": "cancel"})
            path = f"/chat/stream/{response.headers['x-stream-id']}"
            statuses = {
                name: (await fetch(relay.port, "GET", path, headers=who))[0].status for name, who in cast.items()
            }
            assert [cast[name] for name, status in statuses.items() if status == 410] == [owner]
            assert set(statuses.values()) == {404, 410}


async def test_an_operators_eyes_see_no_subject(scene: Scene) -> None:
    """What they see of a stream is its application; who a user is, is not shown."""
    scene.upstream.script((head(), chunk("a secret"), hang()))
    async with contextlib.AsyncExitStack() as stack:
        for who in scene.callers.values():
            connection = await stack.enter_async_context(connect(scene.at.port))
            await connection.request("POST", "/chat/stream", chat(), who)
        shown = msgspec.json.encode(scene.at._app.state.desk.overview.streams())
    assert len(json.loads(shown)) >= len(scene.callers)
    assert SAME.encode() not in shown
    assert b"a secret" not in shown
