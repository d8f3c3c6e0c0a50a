"""What all dialects do alike: begin a generation, or find the one that lives under the same key, and answer with it."""

import hashlib
from collections.abc import Mapping
from typing import Final, cast

import msgspec
from starlette.requests import Request

from app.api import intake
from app.api.callers import Visitor
from app.api.manners import manners
from app.api.response import StreamResponse
from app.catalogue import Catalogue
from app.door.doorkeeper import Doorkeeper
from app.errors import invalid_request
from app.fleet import Fleet, Found
from app.log.reader import Reader
from app.order import Key, Order
from app.request import chat as requests
from app.request.draft import Draft, admit
from app.settings import Settings
from app.settings.tables import OnDisconnect
from app.stream import Stream
from app.streams import Streams
from app.trace_context import received
from app.wire.dialect import Encoder

NO_STORE: Final = {"cache-control": "no-store"}


class Parts(msgspec.Struct, frozen=True):
    """What the handlers work with."""

    settings: Settings
    streams: Streams
    fleet: Fleet
    catalogue: Catalogue
    doorkeeper: Doorkeeper


class Opened(msgspec.Struct, frozen=True):
    """A reader of a stream. `known`: its client can find it again. `cookie`: what makes its subject known.

    `headers`: what its caller has left.
    """

    stream: Stream
    reader: Reader
    known: bool
    cookie: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


def parts(request: Request) -> Parts:
    return cast(Parts, request.app.state.parts)


async def begin(
    request: Request, visitor: Visitor, draft: Draft, body: bytes, *, chosen: OnDisconnect | None, waits: bool
) -> Opened:
    """Raises what `admit`, `linger_s` and `Fleet.begin` raise. `waits`: a generation without a reader is not stopped at
    once, unless the client or the profile has chosen otherwise.
    """
    app = parts(request)
    chat = admit(draft, app.settings, visitor.grant)
    key = _key(request, visitor, body)
    linger_s = requests.linger_s(
        chosen or intake.on_disconnect(request),
        app.settings,
        default="wait" if waits or key else "cancel",
        pinned=chat.on_disconnect,
    )
    request_id = request.scope["state"]["request_id"]
    parent = received(request.headers.getlist("traceparent"), request.headers.getlist("tracestate"))
    begun, reader = await app.fleet.begin(Order(chat, visitor.caller, request_id, linger_s, key, parent))
    standing = await app.fleet.standing(chat.grant.quotas)
    return Opened(begun, reader, key is not None, visitor.set_cookie, standing)


async def attach(request: Request, found: Found, after: int) -> Opened:
    """Raises what `Fleet.attach` raises."""
    fleet = parts(request).fleet
    attached, reader = await fleet.attach(found, after)
    fleet.counts.attached(after)
    return Opened(attached, reader, known=True)


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
    own = {"x-stream-id": opened.stream.id}
    return kind(
        opened.stream,
        opened.reader,
        encoder,
        manners(app.settings),
        app.streams.means.turns,
        hold_s=hold_s,
        known=opened.known,
        headers=own | cookie | dict(opened.headers) | dict(headers or {}),
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
