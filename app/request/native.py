"""The body of `POST /chat/stream`."""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.request.chat import LIMITS
from app.request.draft import Draft
from app.request.faults import refusal, unknown_among
from app.request.fields import Object, Parameters, Value

LIMIT_NAMES: Final = {limit: f"timeouts.{limit}" for limit in LIMITS}


class Timeouts(BaseModel):
    """Limits in seconds; what is absent is the operator's default, what is above the operator's cap is refused."""

    model_config = ConfigDict(extra="forbid", strict=True)

    connect: float | None = Field(None, gt=0, allow_inf_nan=False)
    first_token: float | None = Field(None, gt=0, allow_inf_nan=False)
    idle: float | None = Field(None, gt=0, allow_inf_nan=False)
    total: float | None = Field(None, gt=0, allow_inf_nan=False)


class Message(BaseModel):
    """One message of OpenAI's list; fields that only some roles have pass as they are."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, Value]

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[Object], Field(fail_fast=True)] | None = None


class ChatRequest(Parameters):
    """The body of `POST /chat/stream`: `message` or `messages`, and the parameters of chat completions."""

    message: Annotated[str, Field(min_length=1)] | None = Field(None, description="one user message")
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)] | None = Field(
        None, description="OpenAI's message list"
    )
    timeouts: Timeouts | None = None
    n: Literal[1] | None = None

    @model_validator(mode="after")
    def _one_kind_of_message(self) -> "ChatRequest":
        if (self.message is None) == (self.messages is None):
            raise ValueError("send either `message` or `messages`")
        return self


def parse(body: bytes) -> ChatRequest:
    """The body as a `ChatRequest`; raises `invalid_request`, 400 when it is no JSON and 422 naming the field."""
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise refusal(error, _unknown) from None


def parse_fields(fields: dict[str, object]) -> ChatRequest:
    """The same for fields that came one by one, as in a query string."""
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as error:
        raise refusal(error, _unknown) from None


def draft(request: ChatRequest, *, body_bytes: int) -> Draft:
    return Draft(
        messages=_messages(request),
        parameters=request.payload(),
        system=request.system,
        model=request.model,
        profile=request.profile,
        limits={} if request.timeouts is None else request.timeouts.model_dump(exclude_none=True),
        limit_names=LIMIT_NAMES,
        body_bytes=body_bytes,
    )


def _messages(request: ChatRequest) -> list[Object]:
    if request.messages is None:
        return [{"role": "user", "content": request.message}]
    return [message.model_dump(exclude_unset=True) for message in request.messages]


def _unknown(loc: list[str]) -> str:
    *outer, name = loc
    if name in ("stream", "stream_options") and not outer:
        return f"`{name}` is the relay's to set: leave it out"
    return unknown_among(Timeouts.model_fields if outer == ["timeouts"] else ChatRequest.model_fields, name)
