"""Whoever can look into Redis learns which streams there are and what was answered, and not who asked for what."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
from redis.asyncio import Redis

from tests.credentials import AUDIENCE, ISSUER, KEYS, RSA, bearer, hashes, key_set, token
from tests.redis_server import RedisServer, redis_server
from tests.relay import SSE, Relay, connect, fetch, running
from tests.upstream import Upstream, chunk, finish, head, wait

PROMPT: Final = "canary-prompt-c0ffee"
SYSTEM: Final = "canary-system-c0ffee"
ANSWER: Final = "canary-answer-c0ffee"
SUBJECT: Final = "canary.subject@c0ffee.example"
COOKIE: Final = "c0ffee" * 5 + "c0"
IDEMPOTENCY: Final = "canary-idempotency-c0ffee"
CHAT_ID: Final = "canary-chat-c0ffee"
TOKEN_SECRET: Final = "canary-token-secret-c0ffee-long-enough"
LIMITS: Final = {"max_streams": 50, "requests_per_minute": 50, "tokens_per_minute": 5000, "tokens_per_day": 50_000}


def settings(folder: Path, redis: RedisServer) -> dict[str, Any]:
    (folder / "keys").write_bytes(key_set(RSA))
    return {
        "redis_url": redis.url,
        "keys": {"web": hashes(KEYS[0]) | {"mint": True} | LIMITS},
        "issuers": {"idp": {"issuer": ISSUER, "audience": AUDIENCE, "jwks_file": str(folder / "keys")} | LIMITS},
        "anonymous": LIMITS,
        "allow_anonymous": True,
        "profiles": {"support": {"system": SYSTEM, "model": "m"}},
        "token_secret": TOKEN_SECRET,
        "log_level": "error",
    }


async def held(client: Redis) -> dict[bytes, bytes]:
    """All that Redis has, by its name, whatever kind it is of."""
    names = [name for name in await client.keys() if isinstance(name, bytes)]
    return {name: repr(await _value(client, name)).encode() for name in names}


async def _value(client: Redis, name: bytes) -> Any:
    match await client.type(name):
        case b"string":
            return await client.get(name)
        case b"hash":
            return await client.hgetall(name)
        case b"stream":
            return await client.xrange(name)
        case b"zset":
            return await client.zrange(name, 0, -1, withscores=True)
        case b"set":
            return await client.smembers(name)
        case b"list":
            return await client.lrange(name, 0, -1)
        case b"none":
            return None  # its time was over between the two questions
        case kind:
            raise AssertionError(f"{name!r} is a {kind!r}")


@contextlib.asynccontextmanager
async def streaming(relay: Relay, who: dict[str, str]) -> AsyncIterator[None]:
    """A stream of the native dialect and one of a chat, each under way."""
    async with connect(relay.port) as native, connect(relay.port) as chatting:
        asked = who | SSE | {"idempotency-key": IDEMPOTENCY}
        response = await native.request("POST", "/chat/stream", {"message": PROMPT, "profile": "support"}, asked)
        assert response.status == 200, await response.read()
        parts = [{"type": "text", "text": PROMPT}]
        body = {"id": CHAT_ID, "model": "m", "messages": [{"role": "user", "parts": parts}]}
        assert (await chatting.request("POST", "/api/chat", body, who)).status == 200
        yield


async def test_redis_holds_the_answers_and_nobodys_name_key_or_question(tmp_path: Path) -> None:
    more = asyncio.Event()
    async with (
        redis_server(tmp_path) as redis,
        Upstream() as upstream,
        running(upstream.base_url, **settings(tmp_path, redis)) as relay,
        contextlib.AsyncExitStack() as stack,
    ):
        upstream.script((head(), chunk(ANSWER), wait(more), chunk("!"), finish()))
        _, minted = await fetch(relay.port, "POST", "/tokens", {"subject": SUBJECT, "limits": LIMITS}, bearer(KEYS[0]))
        browser_token = json.loads(minted)["token"]
        exchanged, _ = await fetch(relay.port, "POST", "/session", {"token": browser_token})
        session = exchanged.headers["set-cookie"].partition(";")[0]
        jwt = token(now=time.time(), sub=SUBJECT)
        for who in (
            bearer(KEYS[0]),
            bearer(browser_token),
            {"cookie": session},
            bearer(jwt),
            {"cookie": f"relay_subject={COOKIE}"},
        ):
            await stack.enter_async_context(streaming(relay, who))
        client = Redis.from_url(redis.url)
        stack.push_async_callback(client.aclose)
        running_now = await held(client)
        more.set()
        await upstream.wait_for(lambda seen: seen.active == 0)
        afterwards = await held(client)
    for found in (running_now, afterwards):
        names = b" ".join(found)
        values = b" ".join(found.values())
        hidden = [PROMPT, SYSTEM, SUBJECT, "c0ffee.example", COOKIE, IDEMPOTENCY, CHAT_ID, TOKEN_SECRET]
        hidden += [KEYS[0], browser_token, jwt, session.partition("=")[2], hashes(KEYS[0])["sha256"][0], "127.0.0.1"]
        assert [each for each in hidden if each.encode() in names + values] == []
        answers = [name for name, value in found.items() if ANSWER.encode() in value]
        assert answers
        assert all(name.endswith(b":events") for name in answers)
    assert len(running_now) > 20


@pytest.mark.parametrize(
    "value", [b"", b"\xff", b"nonsense", b"\x93\x01\x02\x03", b"{}" * 1000, b"\xdd\xff\xff\xff\xff"]
)
async def test_nonsense_in_redis_is_nobodys_stream_and_no_fault_of_ours(tmp_path: Path, value: bytes) -> None:
    """Who can write there can break streams; he cannot break the process."""
    stream_id = "s_" + "e" * 32
    async with redis_server(tmp_path) as redis, running("http://127.0.0.1:9/v1", **settings(tmp_path, redis)) as relay:
        client = Redis.from_url(redis.url)
        await client.hset(f"relay:{{{stream_id}}}:meta", mapping={"birth": value, "state": value, "next": "1"})
        for path in (f"/chat/stream/{stream_id}", f"/chat/stream/{stream_id}/result"):
            response, _ = await fetch(relay.port, "GET", path, headers=bearer(KEYS[0]))
            assert response.status == 404
        assert (await fetch(relay.port, "GET", "/healthz"))[0].status == 200
        await client.aclose()


async def test_a_token_that_was_exchanged_is_spent_in_every_process_and_not_named(tmp_path: Path) -> None:
    async with (
        redis_server(tmp_path) as redis,
        running("http://127.0.0.1:9/v1", **settings(tmp_path, redis)) as one,
        running("http://127.0.0.1:9/v1", **settings(tmp_path, redis)) as two,
    ):
        _, minted = await fetch(one.port, "POST", "/tokens", {"subject": SUBJECT}, bearer(KEYS[0]))
        text = json.loads(minted)["token"]
        statuses = [
            (await fetch(relay.port, "POST", "/session", {"token": text}))[0].status for relay in (one, two, one)
        ]
        assert statuses == [204, 401, 401]
        client = Redis.from_url(redis.url)
        assert SUBJECT.encode() not in b"".join([*(await held(client)), *(await held(client)).values()])
        await client.aclose()
