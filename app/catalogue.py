"""The models that can be asked for: the list of all upstreams, kept for a while and asked for once at a time."""

import asyncio
from typing import Any, Final, Protocol

from app.errors import RelayError

KEPT_SECONDS: Final = 60.0
NO_LIST: Final = {404, 405, 501}
"""What services answer that have no list of their models."""

Model = dict[str, Any]


class Lister(Protocol):
    """Upstreams, which may know their models."""

    async def models(self) -> list[Model]: ...


class Catalogue:
    """OpenAI's model objects, as upstreams describe them."""

    def __init__(self, upstreams: Lister, default_model: str | None) -> None:
        self._upstreams = upstreams
        self._default_model = default_model
        self._models: list[Model] = []
        self._fresh_until = 0.0
        self._asking = asyncio.Lock()

    async def models(self) -> list[Model]:
        """Raises `RelayError` where no upstream can be asked; one without a list serves the default model."""
        loop = asyncio.get_running_loop()
        async with self._asking:
            if loop.time() >= self._fresh_until:
                self._models = await self._asked()
                self._fresh_until = loop.time() + KEPT_SECONDS
            return self._models

    async def _asked(self) -> list[Model]:
        """With the default model, whoever serves it: a request that names none is given it."""
        try:
            models = await self._upstreams.models()
        except RelayError as error:
            if error.problem.upstream_status not in NO_LIST or self._default_model is None:
                raise
            models = []
        if self._default_model is None or any(model["id"] == self._default_model for model in models):
            return models
        return [*models, named(self._default_model)]


def named(name: str) -> Model:
    """A model that is known by its name alone."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "upstream"}


def no_model(name: str) -> RelayError:
    return RelayError("not_found", f"there is no model `{name[:128]}`", param="model", phase="admission")
