"""Fields that several dialects share, and the parameters of chat completions."""

import json
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from app.request.chat import OnDisconnect


def _sendable(value: object) -> object:
    """pydantic reads NaN, and 1e999 as infinity, but neither can be sent on: JSON has no such thing."""
    json.dumps(value, allow_nan=False)
    return value


Number = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
Value = Annotated[Any, AfterValidator(_sendable)]
Object = dict[str, Value]


class Parameters(BaseModel):
    """What a client may set beside its messages; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)

    system: str | None = Field(None, description="a system message, put first")
    model: Name | None = Field(None, description="else the relay's default model")
    on_disconnect: OnDisconnect | None = Field(None, description="what becomes of the generation when nobody reads it")
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

    def payload(self) -> Object:
        """The parameters as upstream gets them."""
        return self.model_dump(include=SENT_ON, exclude_unset=True, exclude_none=True)

    def with_system(self, messages: list[Object]) -> list[Object]:
        return messages if self.system is None else [{"role": "system", "content": self.system}, *messages]


SENT_ON = set(Parameters.model_fields) - {"system", "model", "on_disconnect"}
