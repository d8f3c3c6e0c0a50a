"""Whoever reads logs, metrics and errors: what he reads is whole, was written by nobody else, and holds no secret.

A relay as an operator runs it, at its most talkative, with secrets that are known (canaries), and with faults of its
own that quote all they have in hands.
"""

import base64
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from joserfc.jwk import RSAKey

from tests.credentials import AUDIENCE, ISSUER, RSA, bearer, handmade, hashes, key_set, token
from tests.hostile import Operated, operated, told
from tests.relay import SSE, connect
from tests.upstream import Answer, Upstream, answer, chunk, delta, event, finish, hang, head, send
from tests.upstream import status as refusal
from tests.webhook_receiver import Receiver

PROMPT: Final = "canary-prompt-c0ffee"
SYSTEM: Final = "canary-system-c0ffee"
ANSWER: Final = "canary-answer-c0ffee"
SUBJECT: Final = "canary-subject-c0ffee"
COOKIE: Final = "c0ffee" * 5 + "c0"
KEY: Final = "rk_canaryclientkeyc0ffee"
IDEMPOTENCY: Final = "canary-idempotency-c0ffee"
WRONG: Final = "canary-wrong-c0ffee"
SECRETS: Final = {
    "UPSTREAM_KEY": "sk-canary-upstream-c0ffee",
    "WEBHOOK_SECRET": "whsec_" + base64.b64encode(b"canary-webhook-secret-c0ffee").decode(),
    "RELAY_TOKEN_SECRET": "canary-token-secret-c0ffee-long-enough",
    "PROXY_PASSWORD": "canary-proxy-c0ffee",
    "REDIS_PASSWORD": "canary-redis-c0ffee",
}
CANARIES: Final = {PROMPT, SYSTEM, ANSWER, SUBJECT, COOKIE, KEY, IDEMPOTENCY, WRONG, *SECRETS.values()}

FAULTY: Final = """
import os
from app import cli, fleet
from app.admission.keys import KeyRing
from app.door.browser_tokens import BrowserTokens
from app.request import ag_ui, ai_sdk, native, openai
from app.streams import Streams
from app.upstream.client import Upstream
from app.webhook.calls import Webhook
from app.wire.native import Shape
from app.wire.openai import Chunks

for owner, name in (
    (native, "draft"), (openai, "draft"), (ai_sdk, "draft"), (ag_ui, "draft"), (Upstream, "open"), (Shape, "encode"),
    (Chunks, "encode"), (Streams, "admit"), (KeyRing, "find"), (BrowserTokens, "mint"), (Webhook, "_attempt"),
):
    def faulty(*args, _works=getattr(owner, name), _name=name, **more):
        if f"fault-in-{_name}" in repr((args, more)):
            raise RuntimeError(repr((args, more)) + repr(dict(os.environ)))
        return _works(*args, **more)
    setattr(owner, name, faulty)
cli.main()
"""
"""The relay with faults of its own wherever secrets pass, as talkative as faults can be."""

FAULTS: Final = ("fault-in-draft", "fault-in-open", "fault-in-encode", "fault-in-admit", "fault-in-_attempt")

WORDS: Final = json.dumps(
    {"error": {"message": f"{ANSWER}: {SECRETS['UPSTREAM_KEY']} said {PROMPT} and {SYSTEM}", "code": ANSWER}}
).encode()
SAID: Final[dict[str, Answer]] = {
    "good": answer(ANSWER),
    "good-call": (
        head(),
        delta(tool_calls=[{"id": ANSWER, "function": {"name": ANSWER, "arguments": ANSWER}}]),
        finish(),
    ),
    "fault-in-encode": answer(ANSWER),
    "fault-in-_attempt": answer(ANSWER),
    "bad-request": refusal(
        400, json.dumps({"error": {"message": f"Bearer {SECRETS['UPSTREAM_KEY']} is bad"}}).encode()
    ),
    "no-key": refusal(401, WORDS),
    "no-money": refusal(402, WORDS),
    "no-right": refusal(403, WORDS),
    "no-more": refusal(429, WORDS, {"retry-after": "99", "x-forged": ANSWER}),
    "no-service": refusal(503, WORDS),
    "no-stream": refusal(200, WORDS, {"content-type": "text/html"}),
    "no-end": (head(), chunk(ANSWER)),
    "no-json": (head(), chunk(ANSWER), send(f"data: {{{ANSWER}\n\n".encode())),
    "odd-end": (head(), chunk(ANSWER), finish(f"{ANSWER} and more")),
    "error-inside": (head(), chunk(ANSWER), event({"error": {"message": ANSWER, "code": ANSWER, "type": ANSWER}})),
    "error-at-once": (head(), event({"error": {"message": ANSWER, "code": 500}})),
}

TABLES: Final = """
log_level = "debug"
attempts = 2
allow_anonymous = true
usage_wait_seconds = 0.1
max_retry_wait_seconds = 0.01
[upstreams.main]
base_url = "{base_url}"
api_key_env = "UPSTREAM_KEY"
[upstreams.proxied]
base_url = "https://upstream.example/v1"
proxy = "http://user:{PROXY_PASSWORD}@127.0.0.1:9"
models = ["proxied"]
priority = -1
[profiles.support]
system = "{SYSTEM}"
webhook_text = true
[keys.web]
sha256 = "{sha256}"
mint = true
[issuers.idp]
issuer = "{ISSUER}"
audience = "{AUDIENCE}"
jwks_file = "keys"
[webhook]
url = "{webhook}"
secret_env = "WEBHOOK_SECRET"
attempts = 2
"""


class Heard(msgspec.Struct, frozen=True):
    """What came back to a request."""

    what: str
    answer: bytes

    def secrets(self, canaries: set[str], given: set[str]) -> list[str]:
        """Those that are not this request's own: the text of an answer, a token that was asked for."""
        own: set[str] = {ANSWER} if self.answer.startswith(b"HTTP/1.1 200 ") else set()
        if self.what.startswith(("POST /tokens", "POST /session")) and self.answer.startswith(b"HTTP/1.1 20"):
            own = {SUBJECT, *given}
        told, _, error = self.answer.partition(b'"error":')
        return [each for each in quoted(told, canaries) if each.split(" ")[0] not in own] + quoted(error, canaries)


class Stranger(msgspec.Struct):
    """Asks all that can be asked, and keeps all that it is told."""

    port: int
    heard: list[Heard] = []
    given: set[str] = set()

    async def ask(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> bytes:
        async with connect(self.port) as connection:
            connection.write(method, path, body, (headers or {}) | {"connection": "close"})
            said = await told(connection)
        self.heard.append(Heard(f"{method} {path} {str(body)[:80]}", said))
        return said

    async def mint(self, who: str) -> str:
        """A browser token; it and the session made of it are canaries from then on."""
        said = await self.ask("POST", "/tokens", {"subject": SUBJECT, "profile": "support"}, bearer(who))
        text: str = json.loads(said.partition(b"\r\n\r\n")[2])["token"]
        self.given.add(text)
        return text

    async def exchange(self, text: str) -> dict[str, str]:
        said = await self.ask("POST", "/session", {"token": text})
        if said.startswith(b"HTTP/1.1 503 "):
            return {}  # whether it was exchanged before is not known while Redis is away
        cookie = re.findall(rb"relay_session=([^;]+)", said)[0].decode()
        self.given.add(cookie)
        return {"cookie": f"relay_session={cookie}"}


@contextlib.asynccontextmanager
async def talkative(folder: Path, form: str, **variables: str) -> AsyncIterator[tuple[Upstream, Receiver, Operated]]:
    (folder / "keys").write_bytes(key_set(RSA))
    async with Upstream() as upstream, Receiver() as receiver:
        for model, said in SAID.items():
            upstream.script(said, model=model)
        upstream.script(answer(ANSWER))
        own = {"base_url": upstream.base_url, "webhook": receiver.url, "sha256": hashes(KEY)["sha256"][0]}
        known = {"SYSTEM": SYSTEM, "ISSUER": ISSUER, "AUDIENCE": AUDIENCE, "PROXY_PASSWORD": SECRETS["PROXY_PASSWORD"]}
        (folder / "relay.toml").write_text(TABLES.format(**own, **known))
        more = {"RELAY_LOG_FORMAT": form, "RELAY_ADMIN_PORT": "0", "OPENAI_API_KEY": SECRETS["UPSTREAM_KEY"]}
        async with operated(folder, upstream, FAULTY, **SECRETS, **more, **variables) as relay:
            yield upstream, receiver, relay


def dialects(model: str, **more: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """The prompt in every dialect."""
    messages = [{"role": "user", "content": PROMPT}]
    yield "/chat/stream", {"message": PROMPT, "model": model, **more}
    yield "/v1/chat/completions", {"messages": messages, "model": model, "stream": True, **more}
    yield "/v1/chat/completions", {"messages": messages, "model": model, **more}
    parts = [{"type": "text", "text": PROMPT}]
    yield "/api/chat", {"id": "c", "messages": [{"id": "1", "role": "user", "parts": parts}], "model": model, **more}
    run = {"threadId": "t", "runId": "r", "messages": [{"id": "1", **messages[0]}]}
    yield "/ag-ui", run | {"forwardedProps": {"model": model, **more}}


async def ask_everything(client: Stranger) -> None:
    """Every path and dialect as every kind of caller, in order and not."""
    minted = await client.mint(KEY)
    jwt = token(now=time.time(), sub=SUBJECT)
    session = await client.exchange(await client.mint(KEY))
    client.given |= {minted, jwt}
    stranger = {"cookie": f"relay_subject={COOKIE}"}
    for model in (*SAID, "proxied", *FAULTS):
        for path, body in dialects(model):
            await client.ask("POST", path, body, bearer(KEY))
    for who in (bearer(KEY), bearer(minted), bearer(jwt), session, stranger, stranger | SSE):
        await client.ask("POST", "/chat/stream", {"message": PROMPT, "profile": "support", "model": "good"}, who)
        idempotent = who | {"idempotency-key": IDEMPOTENCY}
        await client.ask("POST", "/chat/stream", {"message": PROMPT, "profile": "support"}, idempotent)
    await ask_wrongly(client, minted)


async def ask_wrongly(client: Stranger, minted: str) -> None:
    own_page = {"sec-fetch-site": "same-origin"}
    forged = handmade({"alg": "none", "kid": WRONG}, {"iss": WRONG, "sub": WRONG, "exp": 1})
    foreign = token(RSAKey.generate_key(2048, {"kid": WRONG}), sub=WRONG)
    half = f"{minted.rpartition('.')[0]}.AAAA"
    for credential in (f"rk_{WRONG}", WRONG, forged, foreign, half, f"fault-in-find-{WRONG}", WRONG * 500):
        for path, body in (*dialects("good"), ("/tokens", {"subject": SUBJECT}), ("/session", {"token": credential})):
            await client.ask("POST", path, body, bearer(credential))
    for value in (f"Basic {WRONG}", f"bearer {WRONG} {WRONG}", WRONG, f"Digest username={WRONG}"):
        await client.ask("POST", "/tokens", {"subject": SUBJECT}, {"authorization": value})
        await client.ask("GET", "/chat/stream/" + "s_" + "0" * 32, None, {"authorization": value})
    for cookie in (f"relay_session={WRONG}", f"relay_session={half}", f"relay_subject={WRONG}"):
        await client.ask("POST", "/chat/stream", {"message": PROMPT, "model": 5}, {"cookie": cookie})
    for subject in (SUBJECT + "\n", f"fault-in-mint {SUBJECT}"):
        await client.ask("POST", "/tokens", {"subject": subject}, bearer(KEY))
    await client.ask("POST", "/tokens", {"subject": SUBJECT, "secret": PROMPT, "limits": {"a": PROMPT}}, bearer(KEY))
    await client.ask("POST", "/session", {"token": 5, "cookie": WRONG})
    for path, body in dialects("good", temperature=PROMPT, tools=PROMPT, stop=[{PROMPT: 5}], profile="support"):
        await client.ask("POST", path, body, bearer(KEY))
    for path, body in dialects("good", system=PROMPT, profile="support", max_tokens=-5):
        await client.ask("POST", path, body, bearer(KEY))
    for bad in (
        PROMPT.encode(),
        json.dumps(PROMPT).encode(),
        b'{"message":"' + PROMPT.encode(),
        b"[" + PROMPT.encode(),
    ):
        for path in ("/chat/stream", "/v1/chat/completions", "/api/chat", "/ag-ui", "/tokens", "/session"):
            await client.ask("POST", path, bad, bearer(KEY))
            await client.ask("POST", path, bad, bearer(KEY) | {"content-type": "text/plain"})
    await client.ask("GET", f"/chat/stream?message={PROMPT}&model=fault-in-open", None, own_page)
    await client.ask("GET", f"/chat/stream?message={PROMPT}&temperature={PROMPT}", None, own_page)
    await client.ask("GET", f"/chat/stream?message={PROMPT}&model=no-service", None, own_page | SSE)
    await client.ask("GET", "/chat/stream", None, own_page | {"last-event-id": WRONG})
    await client.ask("POST", "/chat/stream", {"message": PROMPT}, {"idempotency-key": f"{WRONG} {WRONG}"})
    await client.ask("GET", f"/nowhere?key={KEY}", None, {"x-request-id": f"{WRONG} {WRONG}", "referer": WRONG})
    async with connect(client.port) as connection:
        connection.writer.write(f"NO HTTP {PROMPT} {KEY}\r\n\r\n".encode())
        client.heard.append(Heard("noise", await told(connection)))


def quoted(text: bytes, canaries: set[str]) -> list[str]:
    """Also as they look in base64, in a URL and in JSON, at any of the three places where base64 may begin."""
    found = [canary for canary in canaries if canary.encode() in text]
    for canary in canaries:
        for shift in range(3):
            encoded = base64.urlsafe_b64encode(b"\0" * shift + canary.encode()).rstrip(b"=")[4:-4]
            if len(encoded) > 12 and encoded in text:
                found.append(f"{canary} in base64")
    return found


@pytest.mark.parametrize("form", ["json", "console"])
async def test_no_secret_comes_out_anywhere(tmp_path: Path, form: str) -> None:
    """In JSON with a webhook that works, on the console with a Redis that is away."""
    password = SECRETS["REDIS_PASSWORD"]
    variables = {} if form == "json" else {"RELAY_REDIS_URL": f"redis://user:{password}@127.0.0.1:9/0"}
    async with talkative(tmp_path, form, **variables) as (upstream, receiver, relay):
        client, operator = Stranger(relay.port, [], set()), Stranger(relay.admin_port, [], set())
        upstream.script((head(), chunk(ANSWER), hang()), model="endless")
        async with connect(relay.port) as running:
            running.write("POST", "/chat/stream", {"message": PROMPT, "model": "endless"}, bearer(KEY))
            await running.reader.readuntil(ANSWER.encode())
            await ask_everything(client)
            for path in ("/metrics", "/readyz", "/healthz", "/streams", "/nowhere"):
                assert await operator.ask("GET", path)
        await relay.end()
        written = bytes(relay.written)
    canaries = CANARIES | client.given
    assert quoted(written, canaries) == []
    assert written.count(b"RuntimeError") >= 5 * len(FAULTS) - 5
    for heard in (*client.heard, *operator.heard):
        assert heard.answer or "fault-in-encode" in heard.what, heard.what
        assert heard.secrets(canaries, client.given) == [], heard.what
    calls = b"".join(call.body for call in receiver.received)
    assert ANSWER.encode() in calls
    assert quoted(calls, canaries - {ANSWER, SUBJECT}) == []
    lines = [json.loads(line) for line in relay.lines] if form == "json" else []
    assert {line["event"] for line in lines} >= ({"stream", "internal"} if lines else set())
