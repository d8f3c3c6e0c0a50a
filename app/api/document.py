"""The OpenAPI document. Bodies are read by hand (bounded, cancellable), so it is told here what they are."""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from app.request import ChatRequest

_REF: Final = "#/components/schemas/{model}"
_PROBLEM: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "type", "retryable", "partial", "request_id"],
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "phase": {"type": ["string", "null"]},
                "retryable": {"type": "boolean"},
                "partial": {"type": "boolean"},
                "upstream_status": {"type": ["integer", "null"]},
                "request_id": {"type": ["string", "null"]},
            },
        }
    },
}


def describe(app: FastAPI) -> None:
    """Completes the generated document with the request's schema and the one shape of every failure."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    schemas: dict[str, Any] = document.setdefault("components", {}).setdefault("schemas", {})
    _, models = models_json_schema([(ChatRequest, "validation")], ref_template=_REF)
    schemas.update(models["$defs"])
    schemas["Problem"] = _PROBLEM
    body = {"application/json": {"schema": {"$ref": _REF.format(model="ChatRequest")}}}
    document["paths"]["/chat/stream"]["post"]["requestBody"] = {"required": True, "content": body}
    document["paths"]["/chat/stream"]["get"]["parameters"] = _query_parameters(schemas)
    for path in document["paths"].values():
        for operation in path.values():
            _answers(operation["responses"])
    return document


def _query_parameters(schemas: dict[str, Any]) -> list[dict[str, Any]]:
    fields = schemas["ChatRequest"]["properties"]
    names = ("message", "model", "system", "temperature", "max_tokens", "on_disconnect")
    return [{"name": name, "in": "query", "required": name == "message", "schema": fields[name]} for name in names]


def _answers(responses: dict[str, Any]) -> None:
    responses.pop("422", None)
    content = {"application/json": {"schema": {"$ref": _REF.format(model="Problem")}}}
    responses["4XX"] = {"description": "refused; nothing was started upstream", "content": content}
    responses["5XX"] = {"description": "failed before the first event", "content": content}
