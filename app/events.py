"""The one vocabulary between upstream and client: frozen events, no bytes, no behaviour.

N shapes of upstream answers are translated into these, and these into M dialects: N + M translators, not N times M.
They are kept by the thousand in logs, so they are structs the garbage collector need not visit.
"""

from typing import Literal

import msgspec

from app.errors import Problem


class Start(msgspec.Struct, frozen=True, gc=False, tag="start"):
    """The first entry of every log, written in the step that creates it."""

    id: str
    model: str
    resumable: bool


class Delta(msgspec.Struct, frozen=True, gc=False, tag="delta"):
    """A piece of the answer's text; never empty, never ends in half a surrogate pair."""

    content: str


class Reasoning(msgspec.Struct, frozen=True, gc=False, tag="reasoning"):
    """A piece of what the model thinks before it answers."""

    reasoning: str


class Refusal(msgspec.Struct, frozen=True, gc=False, tag="refusal"):
    """A piece of the model's refusal."""

    refusal: str


class ToolCall(msgspec.Struct, frozen=True, gc=False, tag="tool_call"):
    """A piece of a tool call. `id` and `name` come with its first piece, `arguments` (JSON text) in any number."""

    index: int
    id: str | None
    name: str | None
    arguments: str


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens, as upstream reported them or, where it did not, as the relay estimates them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    source: Literal["reported", "estimated"]


class Done(msgspec.Struct, frozen=True, gc=False, tag="done"):
    """Terminal: the answer is whole, or the caller cancelled it (`finish_reason` is then "cancelled")."""

    finish_reason: str
    usage: Usage
    first_token_s: float | None
    total_s: float


class Failed(msgspec.Struct, frozen=True, gc=False, tag="error"):
    """Terminal: the answer is not whole, and why."""

    error: Problem


Piece = Delta | Reasoning | Refusal | ToolCall
"""What a decoder makes of upstream's bytes: each piece carries something."""


class Passing(msgspec.Struct, frozen=True, gc=False):
    """What a dialect passes on of upstream's own chunks, beside what they mean.

    `usage`: also the chunk that holds nothing but usage. `choices`: how many answers upstream was asked for; it has
    finished when all have. `model`: what the model is called to the client, where upstream calls it otherwise.
    """

    usage: bool
    choices: int = 1
    model: str | None = None


class Passed(msgspec.Struct, frozen=True, gc=False, tag="passed"):
    """A piece with the chunk that upstream said it in, for the dialect that passes chunks on as they are.

    `chunk` is one line of JSON; empty where an entry before said it already. A chunk may hold no piece: a role, another
    choice, usage.
    """

    chunk: bytes
    piece: Piece | None


Entry = Piece | Passed
"""What a decoder gives the log."""

Event = Start | Entry | Done | Failed
"""What a log keeps."""
