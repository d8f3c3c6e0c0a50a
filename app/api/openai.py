"""The OpenAI dialect's endpoints, for every SDK that is told another base URL."""

import json

from starlette.requests import Request
from starlette.responses import Response

from app.admission.callers import Grant
from app.api import callers, intake, opening, routing
from app.api.collected import CollectedResponse
from app.api.opening import NO_STORE, parts
from app.api.response import StreamResponse
from app.catalogue import Model, named, no_model
from app.request import openai as requests
from app.wire.openai import Chunks

router = routing.router("/v1")


@router.post("/chat/completions", summary="A chat completion as OpenAI has it, streamed or not")
async def post_completion(request: Request) -> Response:
    settings = parts(request).settings
    visitor = await callers.visitor(request)
    intake.require_json(request)
    body = await intake.read_body(request, settings)
    asked = requests.parse(body)
    draft = requests.draft(asked, intake.timeouts(request), intake.TIMEOUT_HEADERS, body_bytes=len(body))
    opened = await opening.begin(request, visitor, draft, body, chosen=None, waits=False)
    encoder = Chunks(opened.stream.request_id)
    kind = StreamResponse if asked.stream else CollectedResponse
    return opening.stream(request, opened, encoder, hold_s=settings.hold_status_seconds, kind=kind)


@router.get("/models", summary="The models that can be asked for")
async def get_models(request: Request) -> Response:
    callers.guard(request, parts(request).settings.cors_origins, proof=False)
    grant = (await callers.visitor(request)).grant
    return _json({"object": "list", "data": await _mine(request, grant)})


@router.get("/models/{model:path}", summary="One of them")
async def get_model(request: Request, model: str) -> Response:
    callers.guard(request, parts(request).settings.cors_origins, proof=False)
    grant = (await callers.visitor(request)).grant
    for known in await _mine(request, grant):
        if known["id"] == model:
            return _json(known)
    raise no_model(model)


async def _mine(request: Request, grant: Grant) -> list[Model]:
    """Who is bound to profiles asks for these, by their names."""
    if grant.profiles:
        return [named(profile) for profile in sorted(grant.profiles)]
    models = await parts(request).catalogue.models()
    return [model for model in models if not grant.models or model["id"] in grant.models]


def _json(document: object) -> Response:
    """In ASCII: half a surrogate pair in upstream's words is no fault of ours."""
    return Response(json.dumps(document, separators=(",", ":")), headers=NO_STORE, media_type="application/json")
