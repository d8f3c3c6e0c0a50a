"""The parameters of a chat completion that the relay knows: what clients may send and profiles may pin."""

import json
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _sendable(value: object) -> object:
    """pydantic reads NaN, and 1e999 as infinity, but neither can be sent on: JSON has no such thing."""
    json.dumps(value, allow_nan=False)
    return value


Number = Annotated[float, Field(allow_inf_nan=False)]
Value = Annotated[Any, AfterValidator(_sendable)]
Object = dict[str, Value]


class ChatParameters(BaseModel):
    """What goes upstream beside model and messages, under OpenAI's names."""

    model_config = ConfigDict(extra="forbid", strict=True)

    temperature: Number | None = None
    top_p: Number | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
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
