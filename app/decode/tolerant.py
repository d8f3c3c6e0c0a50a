"""JSON that is not strict, or not shaped as documented → the same structs (contract §4, rules 6 and 7).

Here come NaN and Infinity, half surrogates, bad UTF-8, Mistral's lists of parts, arguments as objects, indexes as
strings. A field of a shape that means nothing is passed over; only what is no JSON at all is refused.
"""

import json
from typing import Final, Literal

from app.decode.fields import Choice, Chunk, Custom, Function, Groq, Says, Tokens, ToolPart
from app.decode.text import EACH_BAD_BYTE, without_lone_surrogates
from app.values import too_many

MAX_VALUES: Final = 500_000
"""A whole completion of 1,600 tokens, with all twenty alternatives of each. Of 4 MiB of `{},{}…` each took 3 µs."""

Object = dict[str, object]


def read(payload: bytes) -> object:
    """The document. Raises `ValueError` for what is no JSON, or JSON too deep or too full to be an answer."""
    if too_many(payload, MAX_VALUES):
        raise ValueError("more values than an answer has")
    try:
        return json.loads(payload.decode("utf-8", EACH_BAD_BYTE), strict=False)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def chunk(document: Object, says: Literal["delta", "message"] = "delta") -> Chunk:
    """The chunk. Text is read from `says` alone: Perplexity repeats the whole answer as `message` in every chunk."""
    groq = _object(document.get("x_groq"))
    return Chunk(
        choices=[_choice(choice, says) for choice in _objects(document.get("choices"))],
        usage=_tokens(document.get("usage")),
        x_groq=Groq(_tokens(groq.get("usage"))),
        error=document if _is_error(document) else None,
    )


def _is_error(document: Object) -> bool:
    return bool(document.get("error")) or document.get("object") == "error" or document.get("type") == "error"


def _choice(choice: Object, says: str) -> Choice:
    finish_reason = choice.get("finish_reason")
    said = choice.get(says)
    return Choice(
        index=integer(choice.get("index")),
        delta=_says(said) if isinstance(said, dict) else None,
        finish_reason=without_lone_surrogates(finish_reason) if isinstance(finish_reason, str) else None,
        usage=_tokens(choice.get("usage")),
        error=choice.get("error") or None,
    )


def _says(says: Object) -> Says:
    content, thinking = _content(says.get("content"))
    function_call = says.get("function_call")
    return Says(
        content=content,
        reasoning_content=_text(says.get("reasoning_content")),
        reasoning=_text(says.get("reasoning")) or thinking,
        refusal=_text(says.get("refusal")),
        tool_calls=[_tool_part(part) for part in _objects(says.get("tool_calls"))],
        function_call=_function(function_call) if isinstance(function_call, dict) else None,
        audio=says.get("audio"),
        images=says.get("images"),
    )


def _content(content: object) -> tuple[str, str]:
    """Text and thinking of a string, or of Mistral's list of parts."""
    if not isinstance(content, list):
        return _text(content), ""
    text, thinking = "", ""
    for part in content:
        match part:
            case str():
                text += part
            case {"type": "thinking", "thinking": thought}:
                thinking += _content(thought)[0]
            case {"type": "text", "text": str(said)}:
                text += said
    return text, thinking


def _tool_part(part: Object) -> ToolPart:
    custom = _object(part.get("custom"))
    return ToolPart(
        index=integer(part.get("index")),
        id=without_lone_surrogates(_text(part.get("id"))),
        function=_function(_object(part.get("function"))),
        custom=Custom(without_lone_surrogates(_text(custom.get("name"))), _json_text(custom.get("input"))),
    )


def _function(function: Object) -> Function:
    name = without_lone_surrogates(_text(function.get("name")))
    return Function(name, _json_text(function.get("arguments")))


def _json_text(value: object) -> str:
    """Arguments are JSON text; Ollama and others send the object itself."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _tokens(usage: object) -> Tokens | None:
    if not isinstance(usage, dict):
        return None
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")]
    numbers = [_whole(count) for count in counts]
    if any(number is None and count is not None for number, count in zip(numbers, counts, strict=True)):
        return None
    return Tokens(*numbers)


def _whole(value: object) -> int | None:
    """A whole number, also as 12.0; a boolean is none, although Python counts it among the integers."""
    match value:
        case bool():
            return None
        case int():
            return value
        case float() if value.is_integer():
            return int(value)
        case _:
            return None


def integer(value: object) -> int | None:
    """An index, also as "1"."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        return int(value)
    return _whole(value)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _object(value: object) -> Object:
    return value if isinstance(value, dict) else {}


def _objects(value: object) -> list[Object]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
