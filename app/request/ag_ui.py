"""The body of `POST /ag-ui`: AG-UI's RunAgentInput, made a chat completion.

Unknown fields are passed over, as the protocol has it, so that newer clients are served; a known one that is wrong is
refused. `state` and `resume` are for agents that keep a state and interrupt runs: they are taken and not used.
"""

from collections.abc import Mapping
from itertools import takewhile
from typing import Annotated, Final

import msgspec
from pydantic import BeforeValidator, ConfigDict, Field, ValidationError

from app.errors import invalid_request
from app.request.ag_ui_messages import AnyMessage, Known, call_ids, conversation
from app.request.chat import INSTRUCTING
from app.request.draft import Draft
from app.request.faults import refusal, unknown_among
from app.request.fields import Object, Parameters

CONTEXT: Final = "Context from the application:"

MAX_SKIPPED_TOLD: Final = 20
"""Paths of skipped content that a client is told of: they are all in one event."""

Identifier = Annotated[str, Field(max_length=1024)]


class Tool(Known):
    """A tool that the application runs."""

    name: str
    description: str | None = None
    parameters: Object | None = None

    def sent(self) -> Object:
        return {"type": "function", "function": self.model_dump(exclude_none=True)}


class Context(Known):
    """Something that the application wants the model to know."""

    description: str
    value: str


class Properties(Parameters):
    """`forwardedProps`: our parameters, among what else applications put there, which is passed over."""

    model_config = ConfigDict(extra="ignore")


def _object(value: object) -> object:
    return value if isinstance(value, dict) else None


class RunInput(Known):
    """The body of `POST /ag-ui`."""

    thread_id: Identifier
    run_id: Identifier
    parent_run_id: Identifier | None = None
    messages: Annotated[list[AnyMessage], Field(fail_fast=True)]
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    context: Annotated[list[Context], Field(fail_fast=True)] | None = None
    forwarded_props: Annotated[Properties | None, BeforeValidator(_object)] = None

    @property
    def properties(self) -> Properties:
        return self.forwarded_props or Properties()


class Drafted(msgspec.Struct, frozen=True):
    """The request; the ids of the tool calls in its messages; the paths of what was left out of them, or the first."""

    draft: Draft
    call_ids: frozenset[str]
    skipped: tuple[str, ...]


def parse(body: bytes) -> RunInput:
    """Raises `invalid_request`, 400 when it is no JSON and 422 naming the field."""
    try:
        return RunInput.model_validate_json(body)
    except ValidationError as error:
        raise refusal(error, lambda loc: unknown_among(RunInput.model_fields, loc[-1])) from None


def draft(request: RunInput, timeouts: Mapping[str, float], names: Mapping[str, str], *, body_bytes: int) -> Drafted:
    """`timeouts` came as headers, whose `names` errors use; raises 422 without a message."""
    properties = request.properties
    said, skipped = conversation(request.messages)
    messages = _with_context(said, request.context or [])
    if not messages and properties.system is None:
        raise invalid_request("messages: there is none for a model", param="messages")
    tools = [*(tool.sent() for tool in request.tools or []), *(properties.tools or [])]
    made = Draft(
        messages=messages,
        parameters=properties.payload() | ({"tools": tools} if tools else {}),
        system=properties.system,
        model=properties.model,
        profile=properties.profile,
        limits=timeouts,
        limit_names=names,
        body_bytes=body_bytes,
        prefix="forwardedProps.",
    )
    return Drafted(made, call_ids(request.messages), tuple(skipped[:MAX_SKIPPED_TOLD]))


def _with_context(messages: list[Object], context: list[Context]) -> list[Object]:
    """One system message for the whole context, behind the instructions: these change less, and are cached upstream."""
    if not context:
        return messages
    entries = (f"{entry.description}:\n{entry.value}" for entry in context)
    told: Object = {"role": "system", "content": "\n\n".join([CONTEXT, *entries])}
    leading = len([*takewhile(lambda message: message["role"] in INSTRUCTING, messages)])
    return [*messages[:leading], told, *messages[leading:]]
