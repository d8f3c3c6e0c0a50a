"""What the demo models say: whole answers, in pieces of about a token, the same for the same question."""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from app.demo.question import Function, Question, tokens
from app.events import Delta, Piece, Reasoning, Refusal, ToolCall

ECHO_CHARACTERS: Final = 300
"""How much of the last message is echoed: enough to be recognised, and an answer stays a paragraph."""

LONG_LINES: Final = 111

MARKDOWN: Final = """\
# What a relay does

It stands between *your page* and **an upstream** and keeps three promises:

- every stream ends, and says how
- whoever leaves stops paying
- whoever comes back misses nothing

| promise | kept by |
|---|---|
| an end | exactly one terminal event |
| no waste | closing the upstream at once |
| nothing missed | a log, read by cursor |

```python
with httpx.stream("POST", url, json={"message": "Hello"}) as response:
    for line in response.iter_lines():
        print(line)  # data: {"type": "delta", ...}
```

> That was a heading, a list, a table and a fence.
"""


def about_the_relay(question: Question) -> tuple[Piece, ...]:
    return _spoken(
        f"You said: “{_echo(question)}” 👋 Nobody thought about it: I am the relay's built-in demo model, and I need "
        "no key and no network. The relay asked me as it would ask any OpenAI-compatible server, and sends you each "
        "token as a server-sent event while I am still talking. Press Stop and I fall silent at once; reload, and you "
        "read on where you were. 你好世界 · こんにちは · 안녕하세요 🎉 Even these arrive whole."
    )


def long_answer(question: Question) -> tuple[Piece, ...]:
    """About 2,000 tokens."""
    lines = (
        f"{n}. This is line {n} of a long answer, told without a pause in between.\n" for n in range(1, LONG_LINES + 1)
    )
    return _spoken("".join(lines))


def markdown(question: Question) -> tuple[Piece, ...]:
    return _spoken(MARKDOWN)


def thought_and_answer(question: Question) -> tuple[Piece, ...]:
    thoughts = f"The user wrote “{_echo(question)}”. A demo need not think, but it can show how thinking looks. 🤔"
    return *(Reasoning(token) for token in tokens(thoughts)), *_spoken("I have thought about it. The answer is 42.")


def tool_call(question: Question) -> tuple[Piece, ...]:
    """The first tool of the request, called once: after its result there is text, so that an agent's loop ends."""
    if question.messages[-1].role == "tool":
        return _spoken(f"The tool answered: {question.messages[-1].text[:ECHO_CHARACTERS]}")
    function = question.function or Function("get_weather", {"properties": {"city": {"default": "Paris"}}})
    arguments = msgspec.json.encode(_arguments(function.parameters)).decode()
    opening = ToolCall(0, f"call_demo_{len(question.messages)}", function.name, "")
    return opening, *(ToolCall(0, None, None, token) for token in tokens(arguments))


def refusal(question: Question) -> tuple[Piece, ...]:
    return tuple(Refusal(token) for token in tokens("I'm sorry, but I can't help with that."))


def nothing(question: Question) -> tuple[Piece, ...]:
    return ()


def _spoken(text: str) -> tuple[Delta, ...]:
    return tuple(Delta(token) for token in tokens(text))


def _echo(question: Question) -> str:
    text = question.last_user_text
    return text if len(text) <= ECHO_CHARACTERS else text[:ECHO_CHARACTERS] + "…"


def _arguments(schema: dict[str, Any] | None) -> dict[str, object]:
    """Arguments that a tool's JSON schema accepts, in the simple cases."""
    return dict(_properties((schema or {}).get("properties")))


def _properties(properties: object) -> Iterator[tuple[str, object]]:
    if not isinstance(properties, dict):
        return
    for name, schema in properties.items():
        yield name, _example(schema if isinstance(schema, dict) else {})


def _example(schema: dict[str, Any]) -> object:
    match schema:
        case {"default": value} | {"const": value} | {"enum": [value, *_]}:
            return value
        case {"type": "integer" | "number"}:
            return 1
        case {"type": "boolean"}:
            return True
        case {"type": "array"}:
            return []
        case {"type": "object"}:
            return _arguments(schema)
        case _:
            return "demo"
