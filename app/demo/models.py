"""The demo models: each name is a behaviour of an upstream, good or bad, to be seen through the relay."""

from collections.abc import Callable
from typing import Final, Literal

import msgspec

from app.demo.answers import (
    about_the_relay,
    long_answer,
    markdown,
    nothing,
    refusal,
    thought_and_answer,
    tool_call,
)
from app.demo.question import Question
from app.events import Piece

End = Literal["finish", "comments", "hang", "stall", "error", "cut"]
"""`finish`: as it should. `comments`: keep-alives for ever. `hang`: not even a status line. `stall`: silence.
`error`: an error object. `cut`: the connection closes. All but `finish` come after a few tokens at most."""


class Model(msgspec.Struct, frozen=True):
    """A row of the table. `status` refuses the request; `once` only the first of two with the same messages."""

    name: str
    does: str
    says: Callable[[Question], tuple[Piece, ...]] = nothing
    token_seconds: float = 0
    end: End = "finish"
    status: int | None = None
    once: bool = False


MODELS: Final = (
    Model("demo", "a paragraph about the relay that echoes the last message", about_the_relay, token_seconds=0.02),
    Model("demo-fast", "the same without a delay", about_the_relay),
    Model("demo-slow", "the same, five tokens a second", about_the_relay, token_seconds=0.2),
    Model("demo-long", "about 2,000 tokens without a delay", long_answer),
    Model("demo-markdown", "a heading, a list, a table and fenced code", markdown, token_seconds=0.005),
    Model("demo-reasoning", "reasoning first, then the answer", thought_and_answer, token_seconds=0.02),
    Model("demo-tool", "calls the request's first tool, or get_weather, in pieces", tool_call, token_seconds=0.02),
    Model("demo-refusal", "a refusal", refusal, token_seconds=0.02),
    Model("demo-silent", "the role chunk, then comments for ever and no content", end="comments"),
    Model("demo-hang", "never answers, not even with a status line", end="hang"),
    Model("demo-stall", "a few tokens, then silence", about_the_relay, token_seconds=0.02, end="stall"),
    Model("demo-error", "HTTP 500", status=500),
    Model("demo-error-400", "HTTP 400", status=400),
    Model("demo-error-401", "HTTP 401", status=401),
    Model("demo-error-429", "HTTP 429 with Retry-After: 1", status=429),
    Model("demo-error-503", "HTTP 503", status=503),
    Model("demo-error-mid", "a few tokens, then an error object", about_the_relay, token_seconds=0.02, end="error"),
    Model("demo-cut", "a few tokens, then the connection closes", about_the_relay, token_seconds=0.02, end="cut"),
    Model(
        "demo-flaky", "503 first, an answer to the same messages asked again", about_the_relay, status=503, once=True
    ),
)

BY_NAME: Final = {model.name: model for model in MODELS}
