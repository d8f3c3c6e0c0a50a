"""What a client may ask: pydantic at the door, a frozen value inside."""

import difflib
import json
import math
import re
from typing import Annotated, Any, Final, Literal

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.errors import RelayError, invalid_request
from app.settings import Settings

OnDisconnect = Literal["cancel", "wait", "continue"]

Number = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=256)]


def _sendable(value: object) -> object:
    """pydantic reads NaN, and 1e999 as infinity, but neither can be sent on: JSON has no such thing."""
    json.dumps(value, allow_nan=False)
    return value


Value = Annotated[Any, AfterValidator(_sendable)]
Object = dict[str, Value]

RELAY_FIELDS: Final = {"message", "messages", "system", "timeouts", "on_disconnect"}
"""Fields that are the relay's own; all others go upstream as they are."""

MAX_FAULTS: Final = 1000
"""Beyond it no field is named: pydantic tells all its errors or none, and 3 million of them took 13 s of the loop."""

MAX_PARAM_CHARACTERS: Final = 128
_BRANCH: Final = re.compile(r"str|(list|dict)\[.*", re.DOTALL)
"""How pydantic names, inside a path, the branch of a union that it was trying."""


class Limits(msgspec.Struct, frozen=True, gc=False):
    """Seconds. `connect` is for each attempt and is kept by whoever connects; the others by the relay's clocks."""

    connect: float
    first_token: float
    idle: float
    total: float


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


class ChatRequest(BaseModel):
    """The body of `POST /chat/stream`: `message` or `messages`, and the parameters of chat completions."""

    model_config = ConfigDict(extra="forbid", strict=True)

    message: Annotated[str, Field(min_length=1)] | None = Field(None, description="one user message")
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)] | None = Field(
        None, description="OpenAI's message list"
    )
    system: str | None = Field(None, description="a system message, put first")
    model: Name | None = Field(None, description="else the relay's default model")
    timeouts: Timeouts | None = None
    on_disconnect: OnDisconnect | None = Field(None, description="what becomes of the generation when nobody reads it")
    temperature: Number | None = None
    top_p: Number | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    n: Literal[1] | None = None
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    seed: int | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    tools: Annotated[list[Object], Field(fail_fast=True)] | None = None
    tool_choice: str | Object | None = None
    parallel_tool_calls: bool | None = None
    response_format: Object | None = None
    reasoning_effort: str | None = None
    logit_bias: dict[str, Number] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None

    @model_validator(mode="after")
    def _one_kind_of_message(self) -> "ChatRequest":
        if (self.message is None) == (self.messages is None):
            raise ValueError("send either `message` or `messages`")
        return self


class Chat(msgspec.Struct, frozen=True):
    """A request that was found good. `payload` is what upstream gets, without the fields that are the relay's."""

    model: str
    payload: dict[str, object]
    limits: Limits
    prompt_bytes: int
    body_bytes: int


def parse(body: bytes) -> ChatRequest:
    """The body as a `ChatRequest`; raises `invalid_request`, 400 when it is no JSON and 422 naming the field."""
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from None


def parse_fields(fields: dict[str, object]) -> ChatRequest:
    """The same for fields that came one by one, as in a query string."""
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as error:
        raise _refusal(error) from None


def admit(request: ChatRequest, settings: Settings, *, body_bytes: int) -> Chat:
    """What the operator makes of a request: its model and limits; raises 422 without a model or above a cap."""
    model = request.model or settings.default_model
    if model is None:
        raise invalid_request("name a `model`: this relay has no default model", param="model")
    payload = request.model_dump(exclude=RELAY_FIELDS, exclude_unset=True, exclude_none=True)
    messages = _messages(request)
    return Chat(
        model=model,
        payload=payload | {"model": model, "messages": messages},
        limits=_limits(request.timeouts or Timeouts(), settings),
        prompt_bytes=sum(_text_bytes(message) for message in messages),
        body_bytes=body_bytes,
    )


def linger_s(chosen: OnDisconnect | None, settings: Settings, *, default: OnDisconnect) -> float:
    """The policy as the number it is: how long a generation runs on unread.

    Raises `forbidden` for `continue` without the operator's permission.
    """
    match chosen or default:
        case "cancel":
            return 0.0
        case "wait":
            return settings.wait_seconds
        case "continue" if settings.allow_continue:
            return math.inf
        case _:
            message = "on_disconnect `continue` is not permitted here; `wait` and `cancel` are"
            raise RelayError("forbidden", message, param="on_disconnect", phase="admission")


def _messages(request: ChatRequest) -> list[Object]:
    system: list[Object] = [] if request.system is None else [{"role": "system", "content": request.system}]
    if request.messages is None:
        return [*system, {"role": "user", "content": request.message}]
    return system + [message.model_dump(exclude_unset=True) for message in request.messages]


def _text_bytes(message: Object) -> int:
    content = message.get("content")
    if isinstance(content, str):
        return len(content.encode())
    parts = content if isinstance(content, list) else []
    return sum(len(part["text"].encode()) for part in parts if isinstance(part.get("text"), str))


def _limits(asked: Timeouts, settings: Settings) -> Limits:
    return Limits(**{name: _limit(name, getattr(asked, name), settings) for name in Timeouts.model_fields})


def _limit(name: str, asked: float | None, settings: Settings) -> float:
    if asked is None:
        return float(getattr(settings, f"timeout_{name}_seconds"))
    cap = float(getattr(settings, f"max_timeout_{name}_seconds"))
    if asked > cap:
        raise invalid_request(f"timeouts.{name} may be at most {cap:g} s here", param=f"timeouts.{name}")
    return asked


def _refusal(error: ValidationError) -> RelayError:
    if error.error_count() > MAX_FAULTS:
        return invalid_request(f"the body has {error.error_count()} faults", param="body")
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    first = max(faults, key=lambda fault: len(fault["loc"]))  # of a union's branches the one that got furthest
    loc = [str(part) for part in first["loc"] if not _BRANCH.fullmatch(str(part))]
    param = ".".join(loc)[:MAX_PARAM_CHARACTERS] or "body"
    match first["type"]:
        case "json_invalid":
            words = first["msg"].removeprefix("Invalid JSON: ")
            return invalid_request(f"the body is not JSON: {words}", param=param, status=400)
        case "extra_forbidden":
            return invalid_request(_unknown(loc), param=param)
        case "value_error" if not loc:
            return invalid_request(first["msg"].removeprefix("Value error, "), param="message")
        case _:
            words = _lower(first["msg"].removeprefix("Value error, "))
            return invalid_request(f"{param}: {words}", param=param)


def _unknown(loc: list[str]) -> str:
    *outer, name = loc
    if name in ("stream", "stream_options") and not outer:
        return f"`{name}` is the relay's to set: leave it out"
    name = name[:64]  # looking for what is near takes its time on a name of 9 MB
    known = Timeouts.model_fields if outer == ["timeouts"] else ChatRequest.model_fields
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"unknown field `{name}`" + (f"; did you mean `{near[0]}`?" if near else "")


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
