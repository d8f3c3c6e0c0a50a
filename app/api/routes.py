"""The native dialect's endpoints: each reads what it is asked, asks the streams, and answers."""

from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.api import callers, intake, opening, problems, routing
from app.api.opening import NO_STORE, Opened, parts
from app.api.result import result
from app.errors import invalid_request
from app.request import native as requests
from app.request.native import ChatRequest
from app.wire import native

QUERY_FIELDS: Final = ("message", "profile", "model", "system", "temperature", "max_tokens")

router = routing.router()


@router.post("/chat/stream", summary="Start a generation and stream it, or attach to one")
async def post_stream(request: Request) -> Response:
    app = parts(request)
    visitor = await callers.visitor(request)
    intake.require_json(request)
    if cursor := intake.last_event_id(request):
        found = await app.fleet.find(cursor.stream_id, visitor.caller)
        return _response(request, await opening.attach(request, found, cursor.seq), ids=_ids(request))
    body = await intake.read_body(request, app.settings)
    return await _begin(request, visitor, requests.parse(body), body, hold_s=app.settings.hold_status_seconds)


@router.get("/chat/stream", summary="The same for a native EventSource: one user message as a query")
async def get_stream(request: Request) -> Response:
    app = parts(request)
    callers.guard(request, app.settings.cors_origins, proof=True)
    if cursor := intake.last_event_id(request):
        return await _replay(request, cursor.stream_id, cursor.seq)
    return await _begin(
        request, await callers.visitor(request), _query(request), request.scope["query_string"], hold_s=0
    )


@router.get("/chat/stream/{stream_id}", summary="Attach to a stream, from a cursor on")
async def get_stream_by_id(request: Request, stream_id: str) -> Response:
    return await _replay(request, stream_id, intake.after(request, stream_id))


@router.get("/chat/stream/{stream_id}/result", summary="What there is of an answer by now")
async def get_result(request: Request, stream_id: str) -> Response:
    fleet = parts(request).fleet
    found = await fleet.find(stream_id, await callers.caller(request))
    return JSONResponse(result(await fleet.account(found)), headers=NO_STORE)


@router.delete("/chat/stream/{stream_id}", summary="Stop a generation", status_code=202)
@router.post("/chat/stream/{stream_id}/cancel", summary="Stop a generation", status_code=202)
async def cancel(request: Request, stream_id: str) -> Response:
    app = parts(request)
    callers.guard(request, app.settings.cors_origins, proof=False)
    await app.fleet.cancel(stream_id, await callers.caller(request))
    return JSONResponse({"id": stream_id}, 202, NO_STORE)


@router.get("/healthz", summary="Whether the process answers")
async def healthz(_request: Request) -> Response:
    return JSONResponse({"status": "ok"})


@router.get("/readyz", summary="Whether new streams may come")
async def readyz(request: Request) -> Response:
    app = parts(request)
    shared_log = app.fleet.shared_log
    said = {} if shared_log is None else {"shared_log": shared_log}
    if app.streams.draining:
        return JSONResponse({"status": "draining"} | said, 503, {"retry-after": "1"})
    if shared_log == "away" and app.settings.redis_away == "refuse":
        return JSONResponse({"status": "not ready"} | said, 503, {"retry-after": "1"})
    return JSONResponse({"status": "ready"} | said)


async def _begin(
    request: Request, visitor: callers.Visitor, asked: ChatRequest, body: bytes, *, hold_s: float
) -> Response:
    draft = requests.draft(asked, body_bytes=len(body))
    ids = _ids(request)
    waits = ids or request.method == "GET"
    opened = await opening.begin(request, visitor, draft, body, chosen=asked.on_disconnect, waits=waits)
    return _response(request, opened, ids=ids, hold_s=hold_s)


async def _replay(request: Request, stream_id: str, after: int) -> Response:
    fleet = parts(request).fleet
    found = await fleet.find(stream_id, await callers.caller(request))
    if fleet.over(found, after):
        return Response(status_code=204, headers=NO_STORE)
    return _response(request, await opening.attach(request, found, after), ids=_ids(request))


def _response(request: Request, opened: Opened, *, ids: bool, hold_s: float = 0) -> Response:
    settings = parts(request).settings
    # An EventSource without an id would ask anew when it reconnects, and pay again: with one it is told that it cannot.
    ids = ids and (opened.stream.log.resumable or request.method == "GET")
    shape = native.Shape(opened.stream.id, ids=ids, padding_bytes=settings.first_frame_padding_bytes)
    return opening.stream(request, opened, shape, hold_s=hold_s, headers={"vary": "Accept"})


def _ids(request: Request) -> bool:
    match parts(request).settings.sse_ids:
        case "always":
            return True
        case "never":
            return False
        case "auto":
            return request.method == "GET" or problems.accepts_events(request)


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
