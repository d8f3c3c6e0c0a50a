"""The fields of a chat completion chunk that mean something to the relay, for whoever reads it, strictly or not."""

import msgspec

from app.events import Usage

MAX_TOKENS = 2**53
"""Beyond it JavaScript clients miscount, and no model counts."""


class Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class Custom(msgspec.Struct, gc=False):
    name: str | None = None
    input: str | None = None


class ToolPart(msgspec.Struct, gc=False):
    """A part of one tool call; which call, `tools` finds out."""

    index: int | None = None
    id: str | None = None
    function: Function | None = None
    custom: Custom | None = None

    @property
    def name(self) -> str:
        return (self.function and self.function.name) or (self.custom and self.custom.name) or ""

    @property
    def arguments(self) -> str:
        return (self.function and self.function.arguments) or (self.custom and self.custom.input) or ""


class Says(msgspec.Struct, gc=False):
    """A `delta`, or the `message` of a whole completion: what the model says."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolPart | None] | None = None
    function_call: Function | None = None
    audio: object = None
    images: object = None  # OpenRouter

    @property
    def carries(self) -> bool:
        texts = self.content or self.reasoning_content or self.reasoning or self.refusal
        return bool(texts or self.tool_calls or self.function_call or self.shows)

    @property
    def shows(self) -> bool:
        """Whether it holds what no piece is made of, and a client waits for as for text."""
        return bool(self.audio or self.images)


class Tokens(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None

    def as_usage(self) -> Usage | None:
        """None when nothing was counted, or nonsense: an older report is then worth more."""
        counts = [
            count for count in (self.prompt_tokens, self.completion_tokens, self.total_tokens) if count is not None
        ]
        if not counts or min(counts) < 0 or max(counts) > MAX_TOKENS:
            return None
        prompt, completion = self.prompt_tokens or 0, self.completion_tokens or 0
        total = prompt + completion if self.total_tokens is None else self.total_tokens
        return Usage(prompt, completion, total, "reported")


class Choice(msgspec.Struct, gc=False):
    index: int | None = None
    delta: Says | None = None
    finish_reason: str | None = None
    usage: Tokens | None = None  # Moonshot reports here
    error: object = None  # OpenRouter tells a provider's failure here


class Groq(msgspec.Struct, gc=False):
    usage: Tokens | None = None


class Chunk(msgspec.Struct, gc=False):
    """`error` is set by `tolerant` alone and is then the whole document: its parts may say what went wrong."""

    choices: list[Choice | None] | None = None
    usage: Tokens | None = None
    x_groq: Groq | None = None
    error: object = None
    object: str | None = None
    type: str | None = None
