"""What a request brings: its body, bounded in bytes and time, and the headers that the relay reads."""

import asyncio
import re
from typing import Final

import msgspec
from starlette.requests import Request

from app.errors import invalid_request
from app.request.chat import LIMITS
from app.settings import Settings
from app.settings.tables import OnDisconnect
from app.values import MAX_VALUES, too_many

_CURSOR: Final = re.compile(r"(s_[0-9a-f]{32})\.(0|[1-9][0-9]{0,9})", re.ASCII)
_SEQ: Final = re.compile(r"-1|0|[1-9][0-9]{0,9}", re.ASCII)
_SECONDS: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}", re.ASCII)

TIMEOUT_HEADERS: Final = {limit: f"X-Timeout-{limit.replace('_', '-').title()}" for limit in LIMITS}
"""Where dialects whose body has no room for them take their limits from."""


class Cursor(msgspec.Struct, frozen=True):
    """Where a reader left off: the last `seq` it has of a stream."""

    stream_id: str
    seq: int


async def read_body(request: Request, settings: Settings) -> bytes:
    """The body; raises `invalid_request`, 413 above the caps and 400 when it is late, and `ClientDisconnect`."""
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > settings.max_body_bytes:
        raise _too_large(settings)
    try:
        async with asyncio.timeout(settings.body_timeout_seconds):
            body = await _read(request, settings)
    except TimeoutError:
        message = f"the body did not arrive within {settings.body_timeout_seconds:g} s"
        raise invalid_request(message, param="body", status=400) from None
    if too_many(body):
        raise invalid_request(f"the body may have at most {MAX_VALUES} values", param="body", status=413)
    return body


def require_json(request: Request) -> None:
    """A page elsewhere can post forms and text without asking first, but not JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise invalid_request("send `Content-Type: application/json`", param="Content-Type", status=415)


def last_event_id(request: Request) -> Cursor | None:
    """The `Last-Event-ID` of a client that comes back; raises 400 where it is none of ours."""
    value = request.headers.get("last-event-id")
    if value is None or value == "":
        return None
    found = _CURSOR.fullmatch(value)
    if found is None:
        raise invalid_request("Last-Event-ID is no id of this relay", param="Last-Event-ID", status=400)
    return Cursor(found[1], int(found[2]))


def after(request: Request, stream_id: str) -> int:
    """The cursor of a GET on one stream: the header wins over `?after=`; -1 is the beginning."""
    cursor = last_event_id(request)
    if cursor is not None:
        if cursor.stream_id != stream_id:
            raise invalid_request("Last-Event-ID is of another stream", param="Last-Event-ID", status=400)
        return cursor.seq
    value = request.query_params.get("after", "-1")
    if not _SEQ.fullmatch(value):
        raise invalid_request("`after` is a seq: -1, 0, 1 …", param="after", status=400)
    return int(value)


def idempotency_key(request: Request) -> str | None:
    value = request.headers.get("idempotency-key")
    if value is not None and not _KEY.fullmatch(value):
        message = "an Idempotency-Key has 1 to 255 visible ASCII characters"
        raise invalid_request(message, param="Idempotency-Key", status=400)
    return value


def on_disconnect(request: Request) -> OnDisconnect | None:
    """The policy from the query or from the header `X-On-Disconnect`; a body's own goes before both."""
    for where, value in (
        ("on_disconnect", request.query_params.get("on_disconnect") if request.scope["query_string"] else None),
        ("X-On-Disconnect", request.headers.get("x-on-disconnect")),
    ):
        match value:
            case None:
                continue
            case "cancel" | "wait" | "continue":
                return value
            case _:
                raise invalid_request(f"{where} is `cancel`, `wait` or `continue`", param=where)
    return None


def timeouts(request: Request) -> dict[str, float]:
    """The limits asked for in headers, in seconds; raises 422 for what is no positive number."""
    asked: dict[str, float] = {}
    for limit, name in TIMEOUT_HEADERS.items():
        value = request.headers.get(name)
        if value is None:
            continue
        if not _SECONDS.fullmatch(value) or not float(value):
            raise invalid_request(f"{name} is a positive number of seconds", param=name)
        asked[limit] = float(value)
    return asked


async def _read(request: Request, settings: Settings) -> bytes:
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > settings.max_body_bytes:
            raise _too_large(settings)
        pieces.append(piece)
    return b"".join(pieces)


def _too_large(settings: Settings) -> Exception:
    message = f"the body may have at most {settings.max_body_bytes} bytes"
    return invalid_request(message, param="body", status=413)
