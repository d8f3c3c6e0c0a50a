"""What strangers may not do: other hosts, other pages, pipelines, open doors; and what nobody may read in a log."""

import asyncio
import contextlib
import json
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.server import may_listen
from tests.relay import DEADLINE_SECONDS, ask, chat, connect, fetch, running, settings_for, subject
from tests.terminal import environment
from tests.upstream import Upstream, answer, chunk, event, hang, head, send, status
from tests.upstream_server import Answer

HERE = "http://localhost"
FRIEND = "https://app.example.com"
STRANGER = "https://evil.example"
UNKNOWN = "/chat/stream/s_" + "0" * 32
NAMED = {"allowed_hosts": ("Chat.example.com", "*.example.org")}


@pytest.fixture(scope="module")
async def port() -> AsyncIterator[int]:
    """A relay with all that an operator can allow: two names, and one other page."""
    async with Upstream() as upstream, running(upstream.base_url, cors_origins=(FRIEND,), **NAMED) as relay:
        upstream.script(answer("ok"))
        yield relay.port


LOOPBACK = [
    *("localhost", "localhost:8000", "LOCALHOST", "localhost.", "chat.localhost:3000"),
    *("127.0.0.1", "127.0.0.1:8000", "127.9.8.7", "[::1]", "[::1]:8000"),
]
OURS = ["chat.example.com", "CHAT.EXAMPLE.COM:8443", "chat.example.com.", "a.example.org", "a.b.example.org:80"]
NOT_OURS = [
    *("", "evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "notlocalhost"),
    *("10.0.0.1", "0.0.0.0", "[::]", "[::2]:8000", "127.1", "2130706433", "[", "127.0.0.1@evil.example"),
    *("example.org", "evilexample.org", "a.example.org.evil.example", "x.chat.example.com", "*"),
]


@pytest.mark.parametrize("host", [*LOOPBACK, *OURS])
async def test_our_hosts_are_served(port: int, host: str) -> None:
    response, _ = await fetch(port, "GET", UNKNOWN, headers={"host": host})
    assert response.status == 404


@pytest.mark.parametrize("host", NOT_OURS)
async def test_other_hosts_are_refused(port: int, host: str) -> None:
    response, body = await fetch(port, "GET", UNKNOWN, headers={"host": host})
    assert (response.status, json.loads(body)["error"]["param"]) == (400, "Host")
    assert "RELAY_ALLOWED_HOSTS" in json.loads(body)["error"]["message"]


@pytest.mark.parametrize("hosts", [b"", b"host: localhost\r\nhost: evil.example\r\n"], ids=["none", "two"])
async def test_a_request_has_one_host(port: int, hosts: bytes) -> None:
    async with connect(port) as connection:
        connection.writer.write(b"GET %b HTTP/1.1\r\n%b\r\n" % (UNKNOWN.encode(), hosts))
        response = await connection.head()
        assert (response.status, (await response.json())["error"]["param"]) == (400, "Host")


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_probes_may_ask_by_any_name(port: int, path: str) -> None:
    assert (await fetch(port, "GET", path, headers={"host": "10.1.2.3:8000"}))[0].status == 200


async def test_a_star_serves_every_host() -> None:
    async with running("http://127.0.0.1:9/v1", allowed_hosts=("*",)) as relay:
        served, _ = await fetch(relay.port, "GET", UNKNOWN, headers={"host": "any.example"})
        unnamed, _ = await fetch(relay.port, "GET", UNKNOWN, headers={"host": ""})
    assert (served.status, unnamed.status) == (404, 400)


async def test_an_anonymous_caller_is_given_a_secret_subject(port: int) -> None:
    given = [(await ask(port, chat()))[0].headers["set-cookie"] for _ in range(2)]
    for cookie in given:
        assert re.fullmatch(r"relay_subject=[0-9a-f]{32}; Path=/; HttpOnly; SameSite=Strict", cookie)
    assert given[0] != given[1]


async def test_behind_https_the_cookie_is_secure(port: int) -> None:
    response, _ = await ask(port, chat(), headers={"x-forwarded-proto": "https"})
    assert response.headers["set-cookie"].endswith("; HttpOnly; SameSite=Strict; Secure")


async def test_a_subject_is_not_set_again(port: int) -> None:
    response, _ = await ask(port, chat(), headers=subject("a"))
    assert (response.status, response.headers.get("set-cookie")) == (200, None)


@pytest.mark.parametrize(
    "value", ["", "a", "A" * 32, "a" * 31, "a" * 33, "g" * 32, "\u0661" * 32, '"' + "a" * 32 + '"x']
)
async def test_a_forged_subject_is_nobodys(port: int, value: str) -> None:
    cookie = {"cookie": f"relay_subject={value}"}
    response, _ = await ask(port, chat(), headers=cookie)
    assert "relay_subject=" in response.headers["set-cookie"]
    response, events = await ask(port, chat(), headers=cookie | {"idempotency-key": "k"})
    assert (response.status, events[0]["error"]["param"]) == (400, "Idempotency-Key")


OWN_PAGE = [
    {"sec-fetch-site": "same-origin"},
    {"origin": HERE},
    {"referer": f"{HERE}/page?x=y"},
    {"sec-fetch-site": "cross-site", "origin": FRIEND},
    {"origin": FRIEND},
    {"sec-fetch-site": "cross-site", "authorization": "Bearer x"},
    {"authorization": "Bearer x"},
]
OTHER_PAGE = [
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "none"},
    {"sec-fetch-site": "cross-site", "referer": f"{HERE}/"},
    {"origin": STRANGER},
    {"origin": "null"},
    {"origin": f"{HERE}:3000"},
    {"origin": f"{HERE}.evil.example"},
    {"origin": FRIEND.upper()},
    {"origin": f"{FRIEND}:444"},
    {"origin": f"{FRIEND}, {HERE}"},
    {"origin": STRANGER, "referer": f"{HERE}/"},
    {"referer": f"{STRANGER}/?{HERE}"},
]


@pytest.mark.parametrize("headers", OWN_PAGE, ids=str)
async def test_an_own_page_may_ask_by_get(port: int, headers: dict[str, str]) -> None:
    response, body = await fetch(port, "GET", "/chat/stream?message=hi&model=m", headers=headers)
    assert (response.status, b'"content":"ok"' in body) == (200, True)


@pytest.mark.parametrize("headers", [{}, *OTHER_PAGE], ids=str)
async def test_another_page_cannot_spend_by_get(headers: dict[str, str]) -> None:
    async with Upstream() as upstream, running(upstream.base_url, cors_origins=(FRIEND,)) as relay:
        response, body = await fetch(relay.port, "GET", "/chat/stream?message=hi&model=m", headers=headers)
    assert (response.status, json.loads(body)["error"]["code"], upstream.requests) == (403, "forbidden", [])


@pytest.mark.parametrize("headers", [{}, *OWN_PAGE], ids=str)
async def test_an_own_page_or_a_program_may_cancel(port: int, headers: dict[str, str]) -> None:
    for method, path in (("DELETE", UNKNOWN), ("POST", f"{UNKNOWN}/cancel")):
        assert (await fetch(port, method, path, headers=headers))[0].status == 404


@pytest.mark.parametrize("headers", OTHER_PAGE, ids=str)
async def test_another_page_may_not_cancel(port: int, headers: dict[str, str]) -> None:
    for method, path in (("DELETE", UNKNOWN), ("POST", f"{UNKNOWN}/cancel")):
        assert (await fetch(port, method, path, headers=headers))[0].status == 403


async def test_a_refused_cancel_ends_nothing() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as connection:
        upstream.script((head(), chunk("on and on"), hang()))
        response = await connection.request("POST", "/chat/stream", chat())
        path = f"/chat/stream/{response.headers['x-stream-id']}"
        refused, _ = await fetch(relay.port, "DELETE", path, headers={"origin": STRANGER})
        assert (refused.status, upstream.active, relay.streams.running) == (403, 1, 1)
        accepted, _ = await fetch(relay.port, "DELETE", path)
        await upstream.wait_for(lambda upstream: upstream.aborted == 1)
        assert accepted.status == 202


SIMPLE = {"accept", "accept-language", "content-language", "content-type"}
ASKED = [
    *("content-type", "authorization", "last-event-id", "idempotency-key", "x-request-id", "x-on-disconnect"),
    *("x-timeout-connect", "x-timeout-first-token", "x-timeout-idle", "x-timeout-total"),
    *("x-stainless-lang", "x-stainless-package-version", "x-stainless-os", "x-stainless-arch"),
    *("openai-organization", "openai-project", "x-stainless-raw-response"),
    *("x-stainless-runtime", "x-stainless-runtime-version", "x-stainless-retry-count", "x-stainless-timeout"),
]


def preflight(origin: str, method: str = "POST", headers: str = "content-type") -> dict[str, str]:
    return {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": headers,
    }


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_a_listed_page_may_send_what_our_clients_send(port: int, method: str) -> None:
    asked = preflight(FRIEND, method, ", ".join(ASKED))
    response, _ = await fetch(port, "OPTIONS", "/chat/stream", headers=asked)
    assert (response.status, response.headers["access-control-allow-origin"]) == (200, FRIEND)
    assert method in response.headers["access-control-allow-methods"].split(", ")
    assert set(response.headers["access-control-allow-headers"].lower().split(", ")) >= {*ASKED}
    assert "access-control-allow-credentials" not in response.headers


async def test_a_listed_page_may_read_what_it_needs(port: int) -> None:
    response, _ = await ask(port, chat(), headers={"origin": FRIEND})
    assert response.headers["access-control-allow-origin"] == FRIEND
    exposed = response.headers["access-control-expose-headers"].lower().split(", ")
    assert {*exposed} == {"x-stream-id", "x-request-id", "retry-after"}
    assert "Origin" in response.headers["vary"]


@pytest.mark.parametrize(
    "asked",
    [
        preflight(STRANGER),
        preflight("null"),
        preflight(f"{FRIEND}.evil.example"),
        preflight(FRIEND, method="PUT"),
        preflight(FRIEND, headers="x-unheard-of"),
    ],
    ids=str,
)
async def test_a_preflight_beyond_the_list_fails(port: int, asked: dict[str, str]) -> None:
    response, _ = await fetch(port, "OPTIONS", "/chat/stream", headers=asked)
    assert response.status == 400
    assert response.headers.get("access-control-allow-origin") in (None, FRIEND)
    assert (asked["origin"] == FRIEND) == ("access-control-allow-origin" in response.headers)


async def test_a_stranger_is_given_nothing_to_read(port: int) -> None:
    response, _ = await ask(port, chat(), headers={"origin": STRANGER})
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("answering", [(head(), chunk("on and on"), hang()), (hang(),)], ids=["streaming", "held"])
async def test_a_second_request_on_a_busy_connection_ends_both(answering: Answer) -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as connection:
        upstream.script(answering)
        connection.write("POST", "/chat/stream", chat())
        await upstream.wait_for(lambda upstream: upstream.active == 1)
        connection.write("POST", "/chat/stream", chat())
        assert (await connection.rest()).count(b"HTTP/1.1") <= 1
        await upstream.wait_for(lambda upstream: upstream.aborted == 1)
        assert (len(upstream.requests), upstream.active) == (1, 0)


@pytest.mark.parametrize("bad", [b"\0", b"\r", b"\n", b"\r\n "], ids=["NUL", "CR", "LF", "folded"])
@pytest.mark.parametrize("name", [b"x-request-id", b"origin", b"last-event-id", b"cookie"])
async def test_no_header_can_be_put_into_an_answer(port: int, name: bytes, bad: bytes) -> None:
    async with connect(port) as connection:
        connection.writer.write(b"GET %b HTTP/1.1\r\nhost: localhost\r\n" % UNKNOWN.encode())
        connection.writer.write(b"%b: a%bset-cookie: injected=1\r\n\r\n" % (name, bad))
        answered = await connection.rest()
    assert answered.startswith(b"HTTP/1.1 400 ")
    assert b"injected" not in answered


@pytest.mark.parametrize(
    ("host", "allow_anonymous", "may"),
    [
        *((host, False, True) for host in ("127.0.0.1", "127.0.0.2", "localhost", "::1")),
        *((host, False, False) for host in ("0.0.0.0", "::", "", "10.0.0.5", "relay.example.com", "fe80::1")),
        *((host, True, True) for host in ("0.0.0.0", "::", "10.0.0.5")),
    ],
)
def test_beyond_loopback_the_operator_has_to_say_so(host: str, allow_anonymous: bool, may: bool) -> None:
    assert may_listen(settings_for("http://127.0.0.1/v1", host=host, allow_anonymous=allow_anonymous)) is may


ROOT = Path(__file__).parents[1]
PROMPT, ANSWER = "canary-prompt-c0ffee", "canary-answer-c0ffee"
UPSTREAM_KEY, CLIENT_KEY = "sk-canary-upstream-key", "sk-canary-client-key"
SECRETS = (PROMPT, ANSWER, UPSTREAM_KEY, CLIENT_KEY)

FAULTY = """
import os
from app import cli
from app.request import native
from app.upstream.client import Upstream
from app.wire.native import Shape

for owner, name in ((native, "draft"), (Upstream, "open"), (Shape, "encode")):
    def faulty(*args, _works=getattr(owner, name), _name=name, **more):
        if f"fault in {_name}" in repr(args):
            raise RuntimeError(repr(args) + os.environ["OPENAI_API_KEY"])
        return _works(*args, **more)
    setattr(owner, name, faulty)
cli.main()
"""
"""The relay with faults of its own in three places, as talkative as faults can be."""

WORDS = json.dumps({"error": {"message": f"{ANSWER}: {UPSTREAM_KEY} said {PROMPT}", "code": "x"}}).encode()
SAID: dict[str, Answer] = {
    "good": answer(ANSWER),
    "fault in encode": answer(ANSWER),
    "no key": status(401, WORDS),
    "no money": status(402, WORDS),
    "no right": status(403, WORDS),
    "no more": status(429, WORDS, {"retry-after": "99"}),
    "no service": status(500, WORDS),
    "no answer": status(200, WORDS, {"content-type": "text/html"}),
    "no end": (head(), chunk(ANSWER)),
    "no JSON": (head(), chunk(ANSWER), send(f"data: {{{ANSWER}\n\n".encode())),
    "error inside": (head(), chunk(ANSWER), event({"error": {"message": ANSWER, "code": 500}})),
    "error at once": (head(), event({"error": {"message": ANSWER, "code": 500}})),
}


@contextlib.asynccontextmanager
async def served(folder: Path, written: bytearray, **variables: str) -> AsyncIterator[int]:
    """`sse-relay serve` with its faults, its port, and all that it writes to its end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", FAULTY, "serve", "--port", "0"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=folder,
        env=environment(folder, {**variables, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": UPSTREAM_KEY}),
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(4 * DEADLINE_SECONDS):
            while b"listens on" not in written:
                line = await process.stdout.readline()
                assert line, written
                written += line
            yield int(written.rpartition(b":")[2])
            process.send_signal(signal.SIGTERM)
            written += await process.stdout.read()
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def told(port: int, **fields: object) -> str:
    """All that a client with a key of its own is told, head and body."""
    headers = {"authorization": f"Bearer {CLIENT_KEY}", "connection": "close"}
    async with connect(port) as connection:
        connection.write("POST", "/chat/stream", chat(PROMPT) | fields, headers)
        return (await connection.rest()).decode()


@pytest.mark.parametrize("form", ["json", "console"])
async def test_prompts_answers_and_keys_are_told_to_nobody(tmp_path: Path, form: str) -> None:
    written = bytearray()
    variables = {
        "RELAY_LOG_LEVEL": "debug",
        "RELAY_LOG_FORMAT": form,
        "RELAY_ATTEMPTS": "2",
        "RELAY_BREAKER_FAILURES": "0",
    }
    async with (
        Upstream() as upstream,
        served(tmp_path, written, OPENAI_BASE_URL=upstream.base_url, **variables) as port,
    ):
        for model, said in SAID.items():
            upstream.script(said, model=model)
        bodies = {name: await told(port, model=name) for name in (*SAID, "fault in draft", "fault in open")}
        bodies["refused"] = await told(port, bogus=PROMPT)
    assert ANSWER in bodies.pop("good")
    assert bodies.pop("fault in encode").endswith("\r\n\r\n")
    for name, body in bodies.items():
        _, _, error = body.partition('"error":')
        assert error, name
        assert not [secret for secret in SECRETS if secret in error], name
    assert [name for name in bodies if '"code":"internal"' in bodies[name]] == ["fault in draft", "fault in open"]
    assert written.count(b"RuntimeError") >= 3
    assert not [secret for secret in SECRETS if secret.encode() in written]


@pytest.mark.parametrize("code", [401, 402, 403])
async def test_a_refused_key_is_loud_in_the_log_and_not_the_clients_business(
    code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Upstream() as upstream, running(upstream.base_url, log_format="json") as relay:
        upstream.script(status(code, WORDS))
        response, events = await ask(relay.port, chat())
    error = events[0]["error"]
    assert (response.status, error["code"], error["retryable"], len(upstream.requests)) == (
        502,
        "upstream_error",
        False,
        1,
    )
    assert error["message"] == "upstream does not serve this relay"
    [line] = [line for line in map(json.loads, capsys.readouterr().err.splitlines()) if line["level"] == "error"]
    assert (line["upstream_status"], line["request_id"]) == (code, response.headers["x-request-id"])
