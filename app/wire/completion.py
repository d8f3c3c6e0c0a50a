"""Chunks → the one completion that they add up to, for a client of the OpenAI dialect that asked for no stream.

What a `delta` or its logprobs say is added to what was said: text to text, list to list, entries with an `index` to the
one of that index. Of anything else the last word counts, but for the completion's own name. So fields that nobody told
us of arrive too.
"""

import json
import math
from collections.abc import Sequence
from typing import Any, Final

from app.errors import RelayError
from app.events import Event, Passed, Usage

Object = dict[str, Any]

SAID_ONCE: Final = {"id", "type", "role", "name", "format", "signature"}
"""Text that some upstreams repeat with every chunk."""


FIRST: Final = ("id", "created", "model")
"""What the first chunk that says it says for all."""


class Text:
    """A text that grows: joined once, since adding to a string copies it."""

    def __init__(self, *parts: str) -> None:
        self.parts: Final = list(parts)


class Completion:
    """`receive` entries as they come, then ask for the `document`."""

    def __init__(self) -> None:
        self._head: Object = {}
        self._choices: dict[int, Object] = {}
        self._usage: object = None

    def receive(self, events: Sequence[Event]) -> None:
        """Raises `RelayError` (`upstream_protocol`) for a chunk nested too deeply or with too long a number."""
        try:
            for event in events:
                if isinstance(event, Passed) and event.chunk:
                    self._add(json.loads(event.chunk, parse_float=_finite))
        except RecursionError:
            raise RelayError("upstream_protocol", "upstream sent a chunk that is nested too deeply") from None
        except ValueError:  # a number of 5,000 digits is JSON, and Python reads none
            raise RelayError("upstream_protocol", "upstream sent a chunk that cannot be read") from None

    def document(self, usage: Usage) -> bytes:
        """`usage` is what the relay knows, for an upstream that reported none in OpenAI's way."""
        counted = {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
            "source": usage.source,
        }
        choices = [_choice(self._choices[index]) for index in sorted(self._choices)]
        whole = self._head | {"object": "chat.completion", "choices": choices, "usage": self._usage or counted}
        return json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode()

    def _add(self, chunk: Object) -> None:
        self._usage = chunk.pop("usage", None) or self._usage
        chunk.pop("obfuscation", None)
        for choice in chunk.pop("choices", None) or ():
            known = self._choices.setdefault(choice["index"], {})
            known["delta"] = _grown(known.get("delta"), choice.pop("delta", None), "")
            if logprobs := choice.pop("logprobs", None):
                known["logprobs"] = _grown(known.get("logprobs"), logprobs, "")
            known |= {name: value for name, value in choice.items() if value is not None}
        told = {name: value for name, value in chunk.items() if value}  # Azure's first chunk has an empty id and model
        self._head |= told | {name: self._head[name] for name in FIRST if name in self._head}


def _finite(digits: str) -> float | None:
    """1e999 is JSON, and infinity to Python, which no JSON can say."""
    number = float(digits)
    return None if math.isinf(number) else number


def _grown(old: Any, new: Any, name: str) -> Any:
    match old, new:
        case None, str() if name not in SAID_ONCE and name != "finish_reason":
            return Text(new)
        case None, dict():
            return {key: _grown(None, value, key) for key, value in new.items()}
        case None, list():
            return _extended([], new)
        case None, _:
            return new
        case _, None:
            return old
        case Text(), str():
            old.parts.append(new)
        case dict(), dict():
            old |= {key: _grown(old.get(key), value, key) for key, value in new.items()}
        case list(), list():
            _extended(old, new)
        case _:
            return (old or new) if name in SAID_ONCE else new
    return old


def _extended(items: list[Any], new: list[Any]) -> list[Any]:
    for item in new:
        if not _numbered(item):
            items.append(item)
            continue
        index = item["index"]
        place = next((at for at, known in enumerate(items) if _numbered(known) and known["index"] == index), None)
        if place is None:
            items.append(_grown(None, item, ""))
        else:
            items[place] = _grown(items[place], item, "")
    return items


def _numbered(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("index"), int)


def _choice(grown: Object) -> Object:
    choice: Object = _joined(grown)
    repeated = choice.pop("message", None)  # by Perplexity, in every chunk, what was said so far
    message = {"role": "assistant", "content": None} | (choice.pop("delta", None) or repeated or {})
    if isinstance(calls := message.get("tool_calls"), list):
        told = [call for call in calls if isinstance(call, dict)]
        message["tool_calls"] = [{name: item for name, item in call.items() if name != "index"} for call in told]
    return {"index": choice.pop("index"), "message": message, "finish_reason": None} | choice


def _joined(value: Any) -> Any:
    match value:
        case Text():
            return "".join(value.parts)
        case dict():
            return {name: _joined(item) for name, item in value.items()}
        case list():
            return [_joined(item) if _numbered(item) else item for item in value]
        case _:
            return value
