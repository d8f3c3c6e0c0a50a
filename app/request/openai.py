"""The body of `POST /v1/chat/completions`: checked where the relay acts on it, passed upstream as it is."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.events import Passing
from app.request.draft import Draft
from app.request.faults import refusal, unknown_among
from app.request.fields import Name, Object, Value

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
    profile: Name | None = Field(None, description="what the server has decided about chats of this name")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None


def parse(body: bytes) -> CompletionRequest:
    """Raises `invalid_request`, 400 when it is no JSON and 422 naming the field."""
    try:
        return CompletionRequest.model_validate_json(body)
    except ValidationError as error:
        raise refusal(error, lambda loc: unknown_among(CompletionRequest.model_fields, loc[-1])) from None


def draft(
    request: CompletionRequest, timeouts: Mapping[str, float], names: Mapping[str, str], *, body_bytes: int
) -> Draft:
    """`timeouts` came as headers, whose `names` errors use."""
    options = request.stream_options
    # A whole completion has always said what it used.
    usage = not request.stream or (options is not None and bool(options.include_usage))
    return Draft(
        messages=request.messages,
        parameters=request.model_dump(exclude={"stream", "messages", "model", "profile"}, exclude_unset=True),
        system=None,
        model=request.model,
        profile=request.profile,
        limits=timeouts,
        limit_names=names,
        body_bytes=body_bytes,
        passing=Passing(usage=usage, choices=request.n or 1),
    )
