"""Names that would write the log themselves: line ends, colours, JSON's quotes, and what turns a line round.

Whatever a client or an upstream is called or says, an event is one line, and the line is the relay's.
"""

import json
import logging
import re
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pytest
import structlog

from app.telemetry.logs import Formatter, Seldom, configure, printable
from tests.credentials import AUDIENCE, ISSUER, KEYS, RSA, bearer, handmade, hashes, key_set, token
from tests.hostile import HOST, Operated, exchanged, operated, told
from tests.relay import chat, connect, fetch, settings_for
from tests.upstream import Upstream, chunk, finish, head

CONTROLS: Final = [
    *("\n", "\r", "\r\n", "\0", "\t", "\b", "\a", "\x1b[31m", "\x1b]0;", "\x7f", "\x85", "\x9b31m", "\xa0"),
    *(
        "\u2028",
        "\u2029",
        "\u202e",
        "\u2066",
        "\u200b",
        "\ufeff",
        '"}',
        '", "level": "critical", "a": "',
        "' level=critical ",
    ),
]
EVILS: Final = [f"{control}EVIL" for control in CONTROLS]
FORGED: Final = '{"event": "EVIL", "level": "critical"}'
COLOURS: Final = re.compile(rb"\x1b\[[0-9;]*m")
LINE: Final = re.compile(r"20\d\d-\d\d-\d\dT\S+Z \[\w+ *\] .+|(WARNING|ERROR) \S+ .+")

TABLES: Final = """
allow_anonymous = true
[keys.web]
sha256 = "{sha256}"
mint = true
[issuers.idp]
issuer = "{ISSUER}"
audience = "{AUDIENCE}"
jwks_file = "keys"
"""


async def written(folder: Path, form: str) -> Operated:
    """All that a relay wrote while evil names were used wherever a name can be given."""
    (folder / "keys").write_bytes(key_set(RSA))
    tables = TABLES.format(sha256=hashes(KEYS[0])["sha256"][0], ISSUER=ISSUER, AUDIENCE=AUDIENCE)
    (folder / "relay.toml").write_text(tables)
    async with (
        Upstream() as upstream,
        operated(folder, upstream, RELAY_LOG_FORMAT=form, RELAY_LOG_LEVEL="debug", RELAY_ATTEMPTS="1") as relay,
    ):
        for evil in EVILS:
            await use(upstream, relay.port, evil)
        await use_in_headers(relay.port)
        await relay.end()
        return relay


async def use(upstream: Upstream, port: int, evil: str) -> None:
    upstream.script((head(), chunk("ok"), finish(evil)))
    await fetch(port, "POST", "/chat/stream", chat(model=evil, user=evil))
    await fetch(port, "POST", "/chat/stream", chat(profile=evil))
    await fetch(port, "POST", "/v1/chat/completions", chat(model=evil) | {"messages": [{"role": evil}], evil: evil})
    await fetch(port, "GET", f"/chat/stream/{quote(evil, safe='')}")
    await fetch(port, "GET", f"/{quote(evil, safe='')}?{quote(evil, safe='')}")
    await fetch(port, "POST", "/tokens", {"subject": evil, "profile": evil}, bearer(KEYS[0]))
    claims = {"iss": evil, "sub": evil, "aud": evil, "jti": evil, "exp": time.time() + 60}
    unsigned = handmade({"alg": evil, "kid": evil, "typ": evil, "jku": evil}, claims)
    for credential in (unsigned, token(now=time.time(), sub=evil), token(header={"kid": evil}, now=time.time())):
        await fetch(port, "POST", "/chat/stream", chat(model=evil), bearer(credential))


async def use_in_headers(port: int) -> None:
    """Bytes from 128 on are no control characters to HTTP; as Latin-1 they are."""
    names = ("x-forwarded-for", "x-request-id", "user-agent", "referer", "authorization", "cookie", "idempotency-key")
    for evil in (
        b"\x85EVIL",
        b"\x9b31mEVIL",
        b"\xc2\x9b31mEVIL",
        b"\xe2\x80\xa8EVIL",
        FORGED.encode(),
        b"1.2.3.4\tEVIL",
    ):
        for credential in (b"Bearer rk_EVIL", b"Bearer " + evil, b"Bearer a.b.c"):
            lines = [name.encode() + b": " + evil for name in names if name != "authorization"]
            lines += [b"authorization: " + credential, b"connection: close", b"content-length: 0"]
            await exchanged(port, b"POST /chat/stream HTTP/1.1\r\n" + HOST + b"\r\n".join(lines) + b"\r\n\r\n")
    for noise in (b"EVIL\x1b[31m / \0\r\n\r\n", FORGED.encode() + b"\r\n", b"GET /\x9bEVIL HTTP/1.1\r\n\r\n") * 50:
        async with connect(port) as connection:
            connection.writer.write(noise)
            await told(connection)


@pytest.fixture(scope="module")
async def as_json(tmp_path_factory: pytest.TempPathFactory) -> Operated:
    return await written(tmp_path_factory.mktemp("json"), "json")


@pytest.fixture(scope="module")
async def on_a_console(tmp_path_factory: pytest.TempPathFactory) -> Operated:
    return await written(tmp_path_factory.mktemp("console"), "console")


async def test_every_line_of_a_log_in_json_is_an_object_of_ours(as_json: Operated) -> None:
    lines: list[dict[str, Any]] = [json.loads(line) for line in as_json.lines]
    events = {line["event"] for line in lines}
    assert {"stream", "a credential was refused", "Invalid HTTP request received."} <= events
    assert {line["level"] for line in lines} <= {"debug", "info", "warning", "error"}
    assert {line.get("model") for line in lines} >= {*EVILS}
    assert {line.get("finish_reason") for line in lines} == {None, "other"}
    assert all(line.keys() >= {"event", "level", "timestamp"} for line in lines)
    assert bytes(as_json.written).isascii()


async def test_on_a_console_no_line_is_ended_coloured_or_turned_by_a_client(on_a_console: Operated) -> None:
    text = bytes(on_a_console.written)
    assert [evil for evil in EVILS if not evil.isprintable() and evil.encode() in text] == []
    plain = COLOURS.sub(b"", text).decode().splitlines(keepends=True)
    strange = {each for line in plain for each in line.removesuffix("\n") if not each.isprintable()}
    assert strange == set()
    assert [line for line in plain if "EVIL" in line and not LINE.fullmatch(line.removesuffix("\n"))] == []
    assert sum("EVIL" in line for line in plain) > len(EVILS)


async def test_nobody_fills_a_disk_with_what_is_no_http(as_json: Operated, on_a_console: Operated) -> None:
    """150 were sent within a second or two."""
    for relay in (as_json, on_a_console):
        assert 0 < relay.written.count(b"Invalid HTTP request received.") < 20


# What libraries say.


def record(
    name: str, words: str, level: int = logging.WARNING, fault: BaseException | None = None
) -> logging.LogRecord:
    where = None if fault is None else (type(fault), fault, fault.__traceback__)
    return logging.LogRecord(name, level, "", 0, words, (), where)


def faulted(words: str = "a prompt") -> RuntimeError:
    try:
        raise RuntimeError(words)
    except RuntimeError as fault:
        return fault


@pytest.mark.parametrize("human", [True, False])
@pytest.mark.parametrize(
    "words",
    [
        "Exception in callback functools.partial(<bound method Webhook._over>, Call(body=b'a prompt'))",
        "Task exception was never retrieved\nfuture: <Task exception=RuntimeError('a prompt')>",
        "<Handle a prompt>",
    ],
)
def test_what_asyncio_had_in_hands_is_not_told(human: bool, words: str) -> None:
    line = Formatter(human=human).format(record("asyncio", words, logging.ERROR, faulted()))
    assert "prompt" not in line
    assert "in faulted" in line
    assert "RuntimeError" in line
    assert human or json.loads(line)["level"] == "error"


def test_a_warning_is_told_once_a_second_and_every_error() -> None:
    now = [0.0]
    seldom = Seldom(lambda: now[0])
    assert [seldom.filter(record("uvicorn.error", "no HTTP")) for _ in range(3)] == [True, False, False]
    assert seldom.filter(record("uvicorn.error", "something else"))
    assert all(seldom.filter(record("uvicorn.error", "a fault", logging.ERROR)) for _ in range(3))
    now[0] = 1.0
    assert seldom.filter(record("uvicorn.error", "no HTTP"))


def test_words_without_number_cost_no_memory() -> None:
    seldom = Seldom(lambda: 0.0)
    for number in range(10_000):
        seldom.filter(record("a library", f"words {number}"))
    assert len(seldom._told_at) <= 100


@pytest.mark.parametrize("evil", [evil for evil in EVILS if not evil.isprintable()], ids=ascii)
def test_what_cannot_be_printed_is_written_by_its_name(evil: str) -> None:
    assert printable(evil).isprintable()
    assert printable(evil).endswith("EVIL")
    assert printable("\ud800") == "\\ud800"
    assert printable("模型 é") == "模型 é"


@pytest.mark.parametrize("value", ["plain", *EVILS, "\ud800", "模型 é", 2**70, [{"nested": "\u202e"}]], ids=ascii)
def test_a_line_of_json_is_ascii_and_says_what_it_was_given(value: object, capsys: pytest.CaptureFixture[str]) -> None:
    configure(settings_for("http://127.0.0.1:9/v1", log_format="json"))
    structlog.get_logger().warning("words", value=value)
    line = capsys.readouterr().err
    assert line.isascii()
    assert (line.count("\n"), json.loads(line)["value"]) == (1, value)


def test_a_line_of_json_may_hold_what_json_has_no_word_for(capsys: pytest.CaptureFixture[str]) -> None:
    configure(settings_for("http://127.0.0.1:9/v1", log_format="json"))
    structlog.get_logger().warning("words", value=range(3))
    assert json.loads(capsys.readouterr().err)["value"] == "range(0, 3)"
