"""The AI SDK dialect's endpoints: `useChat` asks, comes back and stops by the chat's id."""

from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.api import callers, intake, opening, routing
from app.api.opening import NO_STORE, Opened, parts
from app.request import ai_sdk as requests
from app.wire.ai_sdk import Message

HEADERS: Final = {"x-vercel-ai-ui-message-stream": "v1"}

router = routing.router("/api/chat")


@router.post("", summary="A chat's next answer, as the AI SDK's UI message stream")
async def post_chat(request: Request) -> Response:
    app = parts(request)
    visitor = await callers.visitor(request)
    intake.require_json(request)
    body = await intake.read_body(request, app.settings)
    asked = requests.parse(body)
    draft = requests.draft(asked, intake.timeouts(request), intake.TIMEOUT_HEADERS, body_bytes=len(body))
    # A first visitor comes back with the cookie of this very answer; but a key must have an owner before it.
    owner = visitor if intake.idempotency_key(request) else visitor.settled()
    opened = await opening.begin(request, owner, draft, body, chosen=asked.on_disconnect, waits=True)
    message_id = asked.continued_id or opened.stream.id
    app.fleet.chat_begun(asked.id, opened.stream, message_id)
    # Who has the cookie finds the answer by the chat's id, also when the page is loaded again before the head has left.
    opened = msgspec.structs.replace(opened, known=visitor.set_cookie is None)
    return _response(request, opened, message_id, hold_s=app.settings.hold_status_seconds)


@router.get("/{chat_id}/stream", summary="The answer that a chat waits for, from its beginning")
async def get_stream(request: Request, chat_id: str) -> Response:
    callers.guard(request, parts(request).settings.cors_origins, proof=False)
    waiting = await parts(request).fleet.chat(chat_id, await callers.caller(request))
    if waiting is None or not waiting[0].resumable:
        return Response(status_code=204, headers=NO_STORE)  # the SDK takes all else but a stream for a failure
    return _response(request, await opening.attach(request, waiting[0], -1), waiting[1], hold_s=0)


@router.delete("/{chat_id}/stream", summary="Stop the answer that a chat waits for", status_code=202)
async def delete_stream(request: Request, chat_id: str) -> Response:
    app = parts(request)
    callers.guard(request, app.settings.cors_origins, proof=False)
    if waiting := await app.fleet.chat(chat_id, await callers.caller(request)):
        await app.fleet.cancel_found(waiting[0])
    return JSONResponse({"id": chat_id}, 202, NO_STORE)


def _response(request: Request, opened: Opened, message_id: str, *, hold_s: float) -> Response:
    return opening.stream(request, opened, Message(message_id), hold_s=hold_s, headers=HEADERS)
