"""The native dialect's endpoints: each reads what it is asked, asks the streams, and answers."""

import hashlib
from typing import Final, cast

import msgspec
from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from app import request as requests
from app.admission.permits import Caller
from app.api import callers, intake, problems
from app.api.response import StreamResponse, manners
from app.api.result import result
from app.errors import invalid_request
from app.log.memory import Reader
from app.relay import Generation
from app.request import ChatRequest
from app.settings import Settings
from app.streams import Key, Streams
from app.wire import native

QUERY_FIELDS: Final = ("message", "model", "system", "temperature", "max_tokens")

router = APIRouter()


class Parts(msgspec.Struct, frozen=True):
    """What the handlers work with."""

    settings: Settings
    streams: Streams


def parts(request: Request) -> Parts:
    return cast(Parts, request.app.state.parts)


@router.post("/chat/stream", summary="Start a generation and stream it, or attach to one")
async def post_stream(request: Request) -> Response:
    app = parts(request)
    visitor = callers.visitor(request)
    intake.require_json(request)
    if cursor := intake.last_event_id(request):
        generation = app.streams.find(cursor.stream_id, visitor.caller)
        return _attached(request, generation, app.streams.attach(generation, cursor.seq), ids=_ids(request))
    try:
        body = await intake.read_body(request, app.settings)
    except ClientDisconnect:
        return Response(status_code=499)  # nobody is there to read it
    return _begin(request, visitor, requests.parse(body), body, hold_s=app.settings.hold_status_seconds)


@router.get("/chat/stream", summary="The same for a native EventSource: one user message as a query")
async def get_stream(request: Request) -> Response:
    app = parts(request)
    callers.guard(request, app.settings.cors_origins, proof=True)
    if cursor := intake.last_event_id(request):
        return _replay(request, cursor.stream_id, cursor.seq)
    return _begin(request, callers.visitor(request), _query(request), request.scope["query_string"], hold_s=0)


@router.get("/chat/stream/{stream_id}", summary="Attach to a stream, from a cursor on")
async def get_stream_by_id(request: Request, stream_id: str) -> Response:
    return _replay(request, stream_id, intake.after(request, stream_id))


@router.get("/chat/stream/{stream_id}/result", summary="What there is of an answer by now")
async def get_result(request: Request, stream_id: str) -> Response:
    generation = parts(request).streams.find(stream_id, callers.visitor(request).caller)
    return JSONResponse(result(generation), headers={"cache-control": "no-store"})


@router.delete("/chat/stream/{stream_id}", summary="Stop a generation", status_code=202)
@router.post("/chat/stream/{stream_id}/cancel", summary="Stop a generation", status_code=202)
async def cancel(request: Request, stream_id: str) -> Response:
    app = parts(request)
    callers.guard(request, app.settings.cors_origins, proof=False)
    app.streams.cancel(stream_id, callers.visitor(request).caller)
    return JSONResponse({"id": stream_id}, 202, {"cache-control": "no-store"})


@router.get("/healthz", summary="Whether the process answers")
async def healthz() -> Response:
    return JSONResponse({"status": "ok"})


@router.get("/readyz", summary="Whether new streams may come")
async def readyz(request: Request) -> Response:
    if parts(request).streams.draining:
        return JSONResponse({"status": "draining"}, 503, {"retry-after": "1"})
    return JSONResponse({"status": "ready"})


def _begin(request: Request, visitor: callers.Visitor, asked: ChatRequest, body: bytes, *, hold_s: float) -> Response:
    app = parts(request)
    ids = _ids(request)
    key = _key(request, visitor.caller, body)
    chosen = asked.on_disconnect or intake.on_disconnect(request)
    linger_s = requests.linger_s(
        chosen, app.settings, default="wait" if ids or key or request.method == "GET" else "cancel"
    )
    chat = requests.admit(asked, app.settings, body_bytes=len(body))
    generation, reader = app.streams.begin(
        chat,
        visitor.caller,
        request_id=request.scope["state"]["request_id"],
        linger_s=linger_s,
        key=key,
    )
    return _response(
        request, generation, reader, ids=ids, hold_s=hold_s, known=key is not None, cookie=visitor.set_cookie
    )


def _replay(request: Request, stream_id: str, after: int) -> Response:
    app = parts(request)
    generation = app.streams.find(stream_id, callers.visitor(request).caller)
    if generation.log.closed is not None and after == generation.log.next_seq - 1:
        return Response(status_code=204, headers={"cache-control": "no-store"})
    return _attached(request, generation, app.streams.attach(generation, after), ids=_ids(request))


def _attached(request: Request, generation: Generation, reader: Reader, *, ids: bool) -> Response:
    return _response(request, generation, reader, ids=ids, hold_s=0, known=True, cookie=None)


def _response(
    request: Request,
    generation: Generation,
    reader: Reader,
    *,
    ids: bool,
    hold_s: float,
    known: bool,
    cookie: str | None,
) -> Response:
    settings = parts(request).settings
    headers = {
        "content-type": native.CONTENT_TYPE,
        "cache-control": "no-store, no-transform",
        "vary": "Accept",
        "x-stream-id": generation.id,
    } | ({"set-cookie": cookie} if cookie else {})
    # An EventSource without an id would ask anew when it reconnects, and pay again: with one it is told that it cannot.
    ids = ids and (generation.log.resumable or request.method == "GET")
    shape = native.Shape(generation.id, ids=ids, padding_bytes=settings.first_frame_padding_bytes)
    turns = parts(request).streams.turns
    return StreamResponse(
        generation, reader, shape, manners(settings), turns, hold_s=hold_s, known=known, headers=headers
    )


def _ids(request: Request) -> bool:
    match parts(request).settings.sse_ids:
        case "always":
            return True
        case "never":
            return False
        case "auto":
            return request.method == "GET" or problems.accepts_events(request)


def _key(request: Request, caller: Caller, body: bytes) -> Key | None:
    value = intake.idempotency_key(request)
    if value is None:
        return None
    if caller.subject is None:
        message = "an Idempotency-Key needs a caller that can be told from others: send the relay's cookie"
        raise invalid_request(message, param="Idempotency-Key", status=400)
    return Key(caller, value, hashlib.sha256(body).digest())


def _query(request: Request) -> ChatRequest:
    fields: dict[str, object] = {}
    for name, value in request.query_params.items():
        if name not in (*QUERY_FIELDS, "on_disconnect"):
            known = ", ".join(QUERY_FIELDS)
            raise invalid_request(
                f"unknown query parameter `{name[:64]}`; there are {known}, on_disconnect", param=name[:64]
            )
        if name in QUERY_FIELDS:
            fields[name] = _number(value) if name in ("temperature", "max_tokens") else value
    return requests.parse_fields(fields)


def _number(value: str) -> object:
    try:
        return msgspec.convert(value, int | float, strict=False)
    except msgspec.ValidationError:
        return value
