"""What is served of the page: the files that are listed, under a strict policy; and vendored code is what it says."""

import hashlib
import json
import re
from collections.abc import AsyncIterator, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Final

import pytest

from app.api.page import FILES, FOLDER, MEDIA_TYPES, POLICY
from tests.relay import Relay, connect, fetch, running

MAX_LINES: Final = 250
OURS: Final = [name for name in FILES if name.endswith(".js") and not name.startswith("vendor/")]
IMPORT: Final = re.compile(r'^(?:import|export)\b[^;]*?from "(\.[^"]+)"', re.MULTILINE)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def relay() -> AsyncIterator[Relay]:
    async with running("http://127.0.0.1:9/v1") as relay:
        yield relay


@pytest.mark.parametrize("path", ["/", *(f"/static/{name}" for name in FILES)])
async def test_every_file_is_served_under_the_policy(relay: Relay, path: str) -> None:
    response, body = await fetch(relay.port, "GET", path)
    name = path.removeprefix("/static/") if path != "/" else "index.html"
    assert (response.status, body) == (200, (FOLDER / name).read_bytes())
    assert response.headers["content-type"] == MEDIA_TYPES[Path(name).suffix]
    assert response.headers["content-security-policy"] == POLICY
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["cache-control"] == "no-cache"


def test_the_policy_lets_nothing_in_from_elsewhere() -> None:
    assert POLICY == (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


@pytest.mark.parametrize("weakened", ["", "W/"])
async def test_a_file_that_is_known_is_not_sent_again(relay: Relay, weakened: str) -> None:
    first, _ = await fetch(relay.port, "GET", "/static/page.js")
    known = {"if-none-match": f'"other", {weakened}{first.headers["etag"]}'}
    second, body = await fetch(relay.port, "GET", "/static/page.js", headers=known | {"connection": "close"})
    assert (second.status, body, second.headers["etag"]) == (304, b"", first.headers["etag"])
    changed, _ = await fetch(relay.port, "GET", "/static/page.css", headers=known)
    assert changed.status == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/static/", "/static", "/static/index.html", "/static/nope.js", "/static/vendor", "/static/PAGE.JS"),
        *("/static/../main.py", "/static/%2e%2e/main.py", "/static/..%2fmain.py", "/static//etc/passwd"),
        *("/static/page.js/", "/static/./page.js", "/static/page.js%00", "/index.html"),
    ],
)
async def test_nothing_else_is_served(relay: Relay, path: str) -> None:
    assert (await fetch(relay.port, "GET", path))[0].status == 404


async def test_the_page_is_only_to_be_read(relay: Relay) -> None:
    response, _ = await fetch(relay.port, "POST", "/", {})
    assert (response.status, response.headers["allow"]) == (405, "GET, HEAD")
    async with connect(relay.port) as connection:
        response = await connection.request("HEAD", "/")
    assert (response.status, response.headers["content-length"]) == (200, str((FOLDER / "index.html").stat().st_size))


def test_what_is_listed_is_what_is_there() -> None:
    there = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file()}
    assert there == {"index.html", *FILES}


def test_vendored_code_is_what_the_manifest_says() -> None:
    manifest = json.loads((FOLDER / "vendor" / "manifest.json").read_text())
    code = {path.name for path in (FOLDER / "vendor").glob("*.js")}
    assert set(manifest) == code
    for name, entry in manifest.items():
        content = (FOLDER / "vendor" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"], name
        assert entry["version"].encode() in content[:300], name
        assert (FOLDER / "vendor" / entry["licence_file"]).stat().st_size > 500, name
    major, minor, patch = map(int, manifest["purify.js"]["version"].split("."))
    assert (major, minor, patch) >= (3, 4, 18)  # older ones have known holes


def test_every_module_that_is_imported_is_served() -> None:
    for name in OURS:
        for imported in IMPORT.findall((FOLDER / name).read_text()):
            path = (FOLDER / name).parent / imported
            assert str(path.resolve().relative_to(FOLDER)) in FILES, f"{name} imports {imported}"


def test_modules_are_short() -> None:
    assert {name: lines for name in OURS if (lines := (FOLDER / name).read_text().count("\n")) > MAX_LINES} == {}


class Inline(HTMLParser):
    """Collects what the policy would refuse: scripts and styles in the document, and handlers and styles in tags."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        if tag == "style" or (tag == "script" and "src" not in names):
            self.found.append(tag)
        self.found += [name for name in names if name == "style" or name.startswith("on")]


def test_the_document_has_nothing_inline() -> None:
    parser = Inline()
    parser.feed((FOLDER / "index.html").read_text())
    assert parser.found == []


def test_both_languages_have_the_same_texts_with_the_same_gaps() -> None:
    english, chinese = (dict(texts(f"texts/{name}.js")) for name in ("en", "zh-CN"))
    assert english == chinese
    assert len(english) > 50


def texts(name: str) -> Iterator[tuple[str, list[str]]]:
    """The keys of a language's texts, with the names in braces that each of them fills in."""
    key = re.compile(r"^ +(\w+):", re.MULTILINE)
    found = key.split((FOLDER / name).read_text())[1:]
    for at in range(0, len(found), 2):
        yield found[at], sorted(re.findall(r"\{(\w+)\}", found[at + 1]))


def test_every_text_that_is_asked_for_is_there() -> None:
    known = dict(texts("texts/en.js"))
    document = (FOLDER / "index.html").read_text()
    asked = set(re.findall(r'data-(?:text|placeholder|label)="(\w+)"', document))
    for name in OURS:
        asked |= set(re.findall(r'\b(?:text|copyButton)\("(\w+)"', (FOLDER / name).read_text()))
    assert asked - set(known) == set()
