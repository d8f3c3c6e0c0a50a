"""Upstreams' lists of their models, and one list of them all."""

import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from app.errors import RelayError
from app.values import too_many

MAX_MODELS_BYTES: Final = 8 * 1024 * 1024
NO_LIST: Final = {404, 405, 501}
"""What services answer that have no list of their models."""

Model = dict[str, Any]
"""OpenAI's model object, as it goes to clients: upstreams put into it what they like."""


def described(name: str) -> Model:
    """A model that is known by its name alone."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "upstream"}


async def read_models(read: Callable[[], Awaitable[bytes]]) -> list[Model]:
    kept = bytearray()
    while piece := await read():
        kept += piece
        if len(kept) > MAX_MODELS_BYTES:
            raise RelayError("upstream_protocol", "upstream sent a list of models that is too long")
    return _models(bytes(kept))


def _models(body: bytes) -> list[Model]:
    """OpenAI's list, or the bare array that some services send."""
    try:
        if too_many(body):
            raise ValueError("more values than a list of models has")
        document: Any = json.loads(body, parse_constant=lambda _: None)
        models = document["data"] if isinstance(document, dict) else document
        if not isinstance(models, list):
            raise TypeError(models)
        return [model for model in models if isinstance(model, dict) and isinstance(model.get("id"), str)]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise RelayError("upstream_protocol", "upstream sent no list of models") from None


def union(lists: Iterable[list[Model] | RelayError]) -> list[Model]:
    """Each model once, as the first that lists it describes it.

    Raises what the first of them raised where there is no model at all; that upstreams have no list comes last.
    """
    found: dict[str, Model] = {}
    failures: list[RelayError] = []
    for listed in lists:
        if isinstance(listed, RelayError):
            failures.append(listed)
            continue
        for model in listed:
            found.setdefault(model["id"], model)
    if failures and not found:
        raise min(failures, key=lambda error: error.problem.upstream_status in NO_LIST)
    return list(found.values())
