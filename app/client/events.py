"""The native dialect as a reader sees it: frozen events, and the answer that they make."""

from typing import Literal

import msgspec

from app.client.problems import ErrorObject
from app.events import Usage


class Timings(msgspec.Struct, frozen=True):
    total_s: float
    first_token_s: float | None = None


class ToolCallPiece(msgspec.Struct, frozen=True):
    """`id` and `name` come with a call's first piece; `arguments` (JSON text) are to be joined."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


class ClientEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event of any type; `content` is text of the answer in every one, so that joining it gives the answer.

    Types: start, delta, reasoning, refusal, tool_call, ping, live_only, done, error; ignore those you do not know.
    `json` is the event as it was received.
    """

    type: str
    content: str = ""
    seq: int | None = None
    id: str | None = None
    model: str | None = None
    resumable: bool = False
    reasoning: str = ""
    refusal: str = ""
    tool_call: ToolCallPiece | None = None
    phase: str | None = None
    elapsed_s: float | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    error: ErrorObject | None = None
    json: str = ""


class ToolCall(msgspec.Struct, frozen=True):
    """A whole tool call; `arguments` is the model's JSON text, which may be invalid."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What there is of an answer; "done" is one that is whole, or was stopped (`finish_reason` "cancelled")."""

    id: str | None = None
    status: Literal["running", "done", "error"]
    model: str | None = None
    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    error: ErrorObject | None = None
