"""What all dialects do alike: begin a generation, or find the one that lives under the same key, and answer with it."""

import hashlib
from collections.abc import Mapping
from typing import Final, cast

import msgspec
from starlette.requests import Request

from app.api import intake
from app.api.callers import Visitor
from app.api.response import StreamResponse, manners
from app.catalogue import Catalogue
from app.errors import invalid_request
from app.log.memory import Reader
from app.relay import Generation
from app.request import chat as requests
from app.request.chat import Chat, OnDisconnect
from app.settings import Settings
from app.streams import Key, Streams
from app.wire.dialect import CONTENT_TYPE, Encoder

NO_STORE: Final = {"cache-control": "no-store"}


class Parts(msgspec.Struct, frozen=True):
    """What the handlers work with."""

    settings: Settings
    streams: Streams
    catalogue: Catalogue


class Opened(msgspec.Struct, frozen=True):
    """A reader of a generation. `known`: its client can find it again. `cookie`: what makes its subject known."""

    generation: Generation
    reader: Reader
    known: bool
    cookie: str | None = None


def parts(request: Request) -> Parts:
    return cast(Parts, request.app.state.parts)


def begin(
    request: Request, visitor: Visitor, chat: Chat, body: bytes, *, chosen: OnDisconnect | None, waits: bool
) -> Opened:
    """Raises what `Streams.begin` and `linger_s` raise. `waits`: a generation without a reader is not stopped at once,
    unless the client has chosen otherwise.
    """
    app = parts(request)
    key = _key(request, visitor, body)
    linger_s = requests.linger_s(
        chosen or intake.on_disconnect(request), app.settings, default="wait" if waits or key else "cancel"
    )
    request_id = request.scope["state"]["request_id"]
    generation, reader = app.streams.begin(chat, visitor.caller, request_id=request_id, linger_s=linger_s, key=key)
    return Opened(generation, reader, key is not None, visitor.set_cookie)


def attach(request: Request, generation: Generation, after: int) -> Opened:
    """Raises what `Streams.attach` raises."""
    return Opened(generation, parts(request).streams.attach(generation, after), known=True)


def stream(
    request: Request,
    opened: Opened,
    encoder: Encoder,
    *,
    hold_s: float,
    headers: Mapping[str, str] | None = None,
    kind: type[StreamResponse] = StreamResponse,
) -> StreamResponse:
    app = parts(request)
    cookie = {"set-cookie": opened.cookie} if opened.cookie else {}
    own = {
        "content-type": CONTENT_TYPE,
        "cache-control": "no-store, no-transform",
        "x-stream-id": opened.generation.id,
    }
    return kind(
        opened.generation,
        opened.reader,
        encoder,
        manners(app.settings),
        app.streams.turns,
        hold_s=hold_s,
        known=opened.known,
        headers=own | cookie | dict(headers or {}),
    )


def _key(request: Request, visitor: Visitor, body: bytes) -> Key | None:
    value = intake.idempotency_key(request)
    if value is None:
        return None
    if visitor.caller.subject is None:
        message = "an Idempotency-Key needs a caller that can be told from others: send the relay's cookie"
        raise invalid_request(message, param="Idempotency-Key", status=400)
    asked = request.scope["path"].encode() + b"\n" + body  # the same body in another dialect is another request
    return Key(visitor.caller, value, hashlib.sha256(asked).digest())
