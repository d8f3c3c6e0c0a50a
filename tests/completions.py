"""Asks in the OpenAI dialect, and reads it as the strictest of its clients do."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from tests.relay import Response, fetch

PATH: Final = "/v1/chat/completions"


def asked(stream: Any = True, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": stream, **fields}


async def post(port: int, body: object, headers: Mapping[str, str] | None = None) -> tuple[Response, bytes]:
    return await fetch(port, "POST", PATH, body, headers)


class Read(msgspec.Struct):
    """What the chunks of the first choice add up to."""

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    calls: dict[int, dict[str, str]] = {}
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None


def payloads(body: bytes) -> list[str]:
    """The `data` of each block; no block has anything else beside comments."""
    lines = [line for line in body.decode().split("\n") if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines), lines
    return [line.removeprefix("data: ") for line in lines]


def strictly(payload: str | bytes) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    document = json.loads(payload, parse_constant=refuse)
    json.dumps(document, ensure_ascii=False).encode()  # no half of a surrogate pair
    return document


def read(chunks: Iterable[str | bytes]) -> Read:
    """What a client that indexes without looking makes of them; raises where it would crash."""
    result = Read()
    for chunk in map(strictly, chunks):
        result.usage = chunk.get("usage") or result.usage
        for choice in chunk["choices"]:
            delta = choice["delta"]
            if choice["index"]:
                continue
            result.text += delta.get("content") or ""
            result.reasoning += delta.get("reasoning_content") or delta.get("reasoning") or ""
            result.refusal += delta.get("refusal") or ""
            result.finish_reason = choice.get("finish_reason") or result.finish_reason
            for call in delta.get("tool_calls") or ():
                known = result.calls.setdefault(call["index"], {"name": "", "arguments": ""})
                known["name"] += call["function"].get("name") or ""
                known["arguments"] += call["function"].get("arguments") or ""
    return result
