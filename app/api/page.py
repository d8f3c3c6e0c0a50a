"""The chat page: a few files, read once and listed here, under a policy that lets the page run these and no others."""

import hashlib
from pathlib import Path
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from app.api import callers, routing
from app.errors import RelayError

FOLDER: Final = Path(__file__).parents[1] / "static"
PAGE: Final = "index.html"
FILES: Final = (
    *("page.css", "icon.svg"),
    *("page.js", "answer-view.js", "composer.js", "conversation.js", "copy.js", "markdown.js"),
    *("scroller.js", "session.js", "status-line.js", "texts.js", "texts/en.js", "texts/zh-CN.js"),
    *("relay-client.js", "relay-client.d.ts", "relay-wire.js"),
    *("vendor/marked.js", "vendor/marked.LICENSE", "vendor/purify.js", "vendor/purify.LICENSE"),
    "vendor/manifest.json",
)
"""What is served below /static/. A list, so that a file left in the folder is not published by being there."""

MEDIA_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".ts": "text/plain; charset=utf-8",
    ".LICENSE": "text/plain; charset=utf-8",
}

POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

router = routing.router(shown=False)


class File(msgspec.Struct, frozen=True):
    """A file as it is served; the headers are those of every answer about it, 304 included (RFC 9110 §15.4.5)."""

    content: bytes
    headers: dict[str, str]

    @property
    def etag(self) -> str:
        return self.headers["etag"]


def read(name: str) -> File:
    content = (FOLDER / name).read_bytes()
    headers = {
        "content-type": MEDIA_TYPES[Path(name).suffix],
        "etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
        "cache-control": "no-cache",  # kept, and asked about each time: modules of two versions do not fit together
        "content-security-policy": POLICY,
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
    }
    return File(content, headers)


_FILES: Final = {name: read(name) for name in (PAGE, *FILES)}


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    """Makes the browser's subject known: streams that a page begins at once would each be given another cookie."""
    response = _answer(request, PAGE)
    if cookie := callers.cookie_of_stranger(request):
        response.headers["set-cookie"] = cookie
    return response


@router.api_route("/static/{name:path}", methods=["GET", "HEAD"])
async def static(request: Request, name: str) -> Response:
    if name not in FILES:
        raise RelayError("not_found", "no such path", phase="admission")
    return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    file = _FILES[name]
    if _has_it(request.headers.get("if-none-match", ""), file.etag):
        return Response(status_code=304, headers=file.headers)
    return Response(file.content, headers=file.headers)


def _has_it(known: str, etag: str) -> bool:
    """A proxy that compresses makes the tag a weak one; they are compared weakly here (RFC 9110 §13.1.2)."""
    return any(tag.strip().removeprefix("W/") in (etag, "*") for tag in known.split(","))
