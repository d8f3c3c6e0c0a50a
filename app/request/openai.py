"""The body of `POST /v1/chat/completions`: checked where the relay acts on it, passed upstream as it is."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.events import Passing
from app.request import chat
from app.request.chat import Chat
from app.request.faults import refusal, unknown_among
from app.request.fields import Name, Object, Value
from app.settings import Settings

MAX_CHOICES = 128
"""OpenAI's own limit of `n`."""


class StreamOptions(BaseModel):
    """`include_usage` the relay always asks for, and passes on where the client did; the rest is upstream's."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, Value]

    include_usage: bool | None = None


class CompletionRequest(BaseModel):
    """What OpenAI calls a chat completion request. Fields that are not named here go upstream unread."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, Value]

    messages: Annotated[list[Object], Field(min_length=1, fail_fast=True)]
    model: Name | None = Field(None, description="else the relay's default model")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None


def parse(body: bytes) -> CompletionRequest:
    """Raises `invalid_request`, 400 when it is no JSON and 422 naming the field."""
    try:
        return CompletionRequest.model_validate_json(body)
    except ValidationError as error:
        raise refusal(error, lambda loc: unknown_among(CompletionRequest.model_fields, loc[-1])) from None


def admit(
    request: CompletionRequest,
    settings: Settings,
    timeouts: Mapping[str, float],
    names: Mapping[str, str],
    *,
    body_bytes: int,
) -> Chat:
    """`timeouts` came as headers, whose `names` errors use; raises 422 without a model or above a cap."""
    model = chat.chosen_model(request.model, settings)
    options = request.stream_options
    # A whole completion has always said what it used.
    usage = not request.stream or (options is not None and bool(options.include_usage))
    return Chat(
        model=model,
        payload=request.model_dump(exclude={"stream"}, exclude_unset=True) | {"model": model},
        limits=chat.limits(timeouts, settings, names),
        prompt_bytes=chat.text_bytes(request.messages),
        body_bytes=body_bytes,
        passing=Passing(usage=usage, choices=request.n or 1),
    )
