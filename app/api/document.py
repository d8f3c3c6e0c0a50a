"""The OpenAPI document. Bodies are read and streams written by hand, so it is told here what they are."""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from app.api import schema
from app.request.ag_ui import RunInput
from app.request.ai_sdk import ChatBody
from app.request.native import ChatRequest
from app.request.openai import CompletionRequest
from app.request.tokens import SessionRequest, TokenRequest
from app.wire.schema import FRAMING, TEXT, Schema, definitions, object_of, or_null

_REF: Final = "#/components/schemas/{model}"
_BODIES: Final[dict[str, type[BaseModel]]] = {
    "/chat/stream": ChatRequest,
    "/v1/chat/completions": CompletionRequest,
    "/api/chat": ChatBody,
    "/ag-ui": RunInput,
    "/tokens": TokenRequest,
    "/session": SessionRequest,
}
"""What is posted where."""

_HEADERS: Final = {
    "X-Stream-Id": "the stream's id: to attach to it, and to stop it",
    "X-Request-Id": "the request's own, if it is sane, else the relay's; an error object has it as well",
    "Retry-After": "seconds; where a retry helps and the time is known",
}


def describe(app: FastAPI) -> None:
    """Completes the generated document with the request's schema and with all that may be answered."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    components: dict[str, Any] = document.setdefault("components", {})
    components["headers"] = {
        name: {"description": words, "schema": {"type": "string"}} for name, words in _HEADERS.items()
    }
    schemas: Schema = components.setdefault("schemas", {})
    _, models = models_json_schema([(body, "validation") for body in _BODIES.values()], ref_template=_REF)
    schemas.update(models["$defs"])
    schemas.update(definitions(_REF.replace("model", "name")))
    schemas.update(_schemas())
    for path, body in _BODIES.items():
        document["paths"][path]["post"]["requestBody"] = {"required": True, "content": _content(body.__name__)}
    document["paths"]["/chat/stream"]["get"]["parameters"] = _query_parameters(schemas)
    known = _answers() | _answers_of_others()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            operation["responses"].pop("422", None)
            operation["responses"].update(_refusals(path) | known.get(f"{method.upper()} {path}", {}))
    return document


def _query_parameters(schemas: dict[str, Any]) -> list[dict[str, Any]]:
    fields = schemas["ChatRequest"]["properties"]
    names = ("message", "profile", "model", "system", "temperature", "max_tokens", "on_disconnect")
    return [{"name": name, "in": "query", "required": name == "message", "schema": fields[name]} for name in names]


def _schemas() -> dict[str, Schema]:
    """The JSON that is answered beside streams."""
    call = {"index": {"type": "integer", "minimum": 0}, "id": or_null(TEXT), "name": or_null(TEXT), "arguments": TEXT}
    result = {
        "id": TEXT,
        "status": {"enum": ["running", "done", "error"]},
        "model": TEXT,
        "text": TEXT,
        "reasoning": TEXT,
        "refusal": TEXT,
        "tool_calls": {"type": "array", "items": object_of(call, "A whole tool call, or what has come of it.")},
        "finish_reason": or_null(TEXT),
        "usage": _to("Usage"),
        "error": {"oneOf": [_to("Problem"), {"type": "null"}]},
    }
    return {
        "Result": object_of(result, "What there is of an answer by now."),
        "Failure": object_of({"error": _to("Problem")}, "Every failure that is no stream."),
        "Token": object_of(
            {"token": TEXT, "expires_at": TEXT, "seconds": {"type": "number"}}, "A browser token, and until when."
        ),
        "Stopped": object_of({"id": TEXT}, "The stream that was to be stopped."),
        "Anything": {"type": "object", "description": "As the dialect's own documentation has it."},
        "Health": object_of(
            {"status": {"enum": ["ok", "ready", "not ready", "draining"]}},
            "How the process is.",
            optional={"shared_log": {"enum": ["ready", "away"]}},
        ),
    }


def _answers() -> dict[str, Schema]:
    """What each operation answers when all is well, and the refusals that mean something of their own there."""
    stream = _answer(FRAMING, _events(), "X-Stream-Id")
    over = _answer("the stream is over, and nothing of it is left after the cursor: an EventSource stops asking")
    unknown = {"404": _answer("no such stream, or somebody else's", _failure())}
    missing = unknown | {"410": _answer("the stream is gone, or can only be read live", _failure())}
    stopped = {"202": _answer("the generation ends, or had ended", _content("Stopped"))} | unknown
    health = _content("Health")
    return {
        "POST /chat/stream": {"200": stream} | missing,
        "GET /chat/stream": {"200": stream, "204": over} | missing,
        "GET /chat/stream/{stream_id}": {"200": stream, "204": over} | missing,
        "GET /chat/stream/{stream_id}/result": {"200": _answer("what there is by now", _content("Result"))} | missing,
        "DELETE /chat/stream/{stream_id}": stopped,
        "POST /chat/stream/{stream_id}/cancel": stopped,
        "GET /chat/events.schema.json": {"200": _answer("JSON Schema 2020-12", {schema.MEDIA_TYPE: {"schema": True}})},
        "GET /healthz": {"200": _answer("it answers", health)},
        "GET /readyz": {
            "200": _answer("new streams may come", health),
            "503": _answer("it is shutting down", health, "Retry-After"),
        },
    }


def _answers_of_others() -> dict[str, Schema]:
    """The same of the dialects that others have described."""
    message = _answer("a UI message stream, version 1", _stream_of("Anything"), "X-Stream-Id")
    idle = _answer("the chat waits for no answer")
    completion = _content("Anything") | _stream_of("Anything")
    unknown = _answer("no such model", _content("Failure"))
    return {
        "POST /v1/chat/completions": {"200": _answer("as OpenAI documents it", completion, "X-Stream-Id")},
        "GET /v1/models": {"200": _answer("upstream's own list", _content("Anything"))},
        "GET /v1/models/{model}": {"200": _answer("one of them", _content("Anything")), "404": unknown},
        "POST /api/chat": {"200": message},
        "GET /api/chat/{chat_id}/stream": {"200": message, "204": idle},
        "DELETE /api/chat/{chat_id}/stream": {"202": _answer("the answer ends, or had ended", _content("Stopped"))},
        "POST /tokens": {"201": _answer("a token for a browser", _content("Token"))},
        "POST /session": {"204": _answer("the cookie is set")},
        "POST /ag-ui": {"200": _answer("AG-UI 1.0 events", _stream_of("Anything"), "X-Stream-Id")},
    }


def _refusals(path: str) -> Schema:
    content = _failure() if path.startswith("/chat/") else _content("Failure")
    return {
        "4XX": _answer("refused; nothing was started upstream", content, "Retry-After"),
        "5XX": _answer("failed before the first event", content, "Retry-After"),
    }


def _failure() -> Schema:
    """The same object, in an `error` event for a client that accepts events."""
    return _content("Failure") | _events()


def _events() -> Schema:
    return _stream_of("Event")


def _stream_of(name: str) -> Schema:
    return {"text/event-stream": {"schema": _to(name)}}


def _content(name: str) -> Schema:
    return {"application/json": {"schema": _to(name)}}


def _answer(description: str, content: Schema | None = None, *headers: str) -> Schema:
    named = {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-Id", *headers)}
    return {"description": description, "headers": named} | ({"content": content} if content else {})


def _to(name: str) -> Schema:
    return {"$ref": _REF.format(model=name)}
