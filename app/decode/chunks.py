"""Upstream's own chunks, kept beside what they mean, for the dialect that passes them on (contract §5).

A chunk goes on as the bytes that came: unknown fields, several choices, logprobs, audio, obfuscation. It is written
anew only where a client of OpenAI's could not read it: no strict JSON, more than one line, half a character, content as
a list of parts, arguments as an object, tool calls that are numbered twice or not at all, a choice without a delta.

An error is never passed on as it came: how the answer ends, its terminal event says. Chunks before the first that
carries something are held back until it comes: an attempt that fails before it may be repeated, and leaves no trace.
"""

import json
import math
from collections.abc import Sequence

import msgspec

from app.decode import tolerant
from app.decode.fields import Chunk, ToolPart
from app.decode.text import without_lone_surrogates
from app.errors import RelayError
from app.events import Delta, Passed, Piece, Reasoning, Refusal, ToolCall

Object = dict[str, object]

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])

UNREADABLE = "upstream sent a chunk that cannot be passed on"

MAX_HELD_BACK = 64
"""Chunks before the first that carries something: one with the role; what comes beyond keeps a line alive."""


class Passage:
    """`usage`: whether the client asked for the chunk that holds nothing but usage. `model`: its name to the client."""

    def __init__(self, *, usage: bool, model: str | None = None) -> None:
        self._usage = usage
        self._model = None if model is None else msgspec.Raw(msgspec.json.encode(model))
        self._held_back: list[Passed] = []
        self._last = b"{}"

    def receive(self, payload: bytes, chunk: Chunk, pieces: Sequence[Piece], *, as_is: bool) -> list[Passed]:
        """The entries of one chunk; `as_is` when its JSON is strict and its pieces hold all that it says."""
        as_is = as_is and b"\n" not in payload and _is_utf8(payload)
        if as_is and _is_plain(chunk):
            return self._entries(payload, pieces)
        if not self._is_wanted(chunk):
            return self.made_up(pieces)
        if not as_is or not _is_readable(chunk, pieces):
            payload = _written(_read(payload), pieces)
        return self._entries(payload, pieces)

    def receive_completion(self, body: bytes, pieces: Sequence[Piece]) -> list[Passed]:
        """A whole completion, not streamed, as the one chunk that says it all."""
        document = _read(body)
        if not self._usage:
            document.pop("usage", None)
        for choice in _choices(document):
            message = choice.pop("message", None)
            choice["delta"] = message if isinstance(message, dict) else {}
        return self._entries(_written(document | {"object": "chat.completion.chunk"}, pieces), pieces)

    def made_up(self, pieces: Sequence[Piece]) -> list[Passed]:
        """Pieces that came in a chunk which cannot be passed on, in one that looks like its neighbours."""
        if not pieces:
            return []
        last = self._last_read()
        kept = {name: last[name] for name in ("id", "created", "model") if name in last}
        choice: Object = {"index": 0, "delta": {}, "finish_reason": None}
        return self._entries(_written(kept | {"object": "chat.completion.chunk", "choices": [choice]}, pieces), pieces)

    def release(self, entries: Sequence[Passed], *, carrying: bool) -> list[Passed]:
        """What may go on: everything as soon as something was carried, and nothing before."""
        if not carrying:
            self._held_back += entries[: MAX_HELD_BACK - len(self._held_back)]
            return []
        self._held_back += entries
        released, self._held_back = self._held_back, []
        return released

    def _last_read(self) -> Object:
        try:
            return _read(self._last)
        except RelayError:
            return {}

    def _is_wanted(self, chunk: Chunk) -> bool:
        if chunk.error is not None or any(choice is not None and choice.error for choice in chunk.choices or ()):
            return False
        if chunk.usage is not None and not chunk.choices:
            return self._usage
        return chunk.choices is not None

    def _entries(self, payload: bytes, pieces: Sequence[Piece]) -> list[Passed]:
        if self._model is not None:
            payload = _renamed(payload, self._model)
        self._last = payload
        if not pieces:
            return [Passed(payload, None)]
        first, *more = pieces
        return [Passed(payload, first), *(Passed(b"", piece) for piece in more)]


def _renamed(payload: bytes, model: msgspec.Raw) -> bytes:
    """All other values stay the bytes that they were."""
    fields = _FIELDS.decode(payload)
    return msgspec.json.encode(fields | {"model": model}) if "model" in fields else payload


def _is_utf8(payload: bytes) -> bool:
    """Strings that nobody asks for are skipped unread: what they hold has not been looked at."""
    try:
        return payload.isascii() or bool(payload.decode())
    except UnicodeDecodeError:
        return False


def _is_plain(chunk: Chunk) -> bool:
    """Whether this is what nearly all chunks are: one choice, with text."""
    if chunk.error is not None or chunk.choices is None or len(chunk.choices) != 1:
        return False
    choice = chunk.choices[0]
    if choice is None or choice.index != 0 or choice.error is not None:
        return False
    return choice.delta is not None and choice.delta.tool_calls is None


def _is_readable(chunk: Chunk, pieces: Sequence[Piece]) -> bool:
    """Whether a client of OpenAI's finds choices, each with a delta, and the number of every tool call."""
    if chunk.choices is None:
        return False
    for choice in chunk.choices:
        if choice is None or choice.delta is None or choice.index is None:
            return False
        if choice.delta.tool_calls and None in choice.delta.tool_calls:
            return False
        if choice.delta.tool_calls and not choice.index:
            return _is_numbered(choice.delta.tool_calls, [piece for piece in pieces if isinstance(piece, ToolCall)])
    return True


def _is_numbered(parts: Sequence[ToolPart | None], calls: Sequence[ToolCall]) -> bool:
    """Whether each call has its number, and its id and name once: the SDKs' helpers would say them twice."""
    told = [part for part in parts if part is not None]
    numbers = {part.index for part in told}
    named = sum(bool(part.id) + bool(part.name) for part in told)
    news = sum(bool(call.id) + bool(call.name) for call in calls)
    return None not in numbers and {call.index for call in calls} <= numbers and named == news


def _read(payload: bytes) -> Object:
    try:
        document = tolerant.read(payload)
    except ValueError:  # a number of 5,000 digits is JSON, and Python reads none
        raise RelayError("upstream_protocol", UNREADABLE) from None
    return document if isinstance(document, dict) else {}


def _written(document: Object, pieces: Sequence[Piece]) -> bytes:
    """The chunk anew; its first choice says what the pieces say, everything else what it said.

    Raises `RelayError` for one that is nested too deeply.
    """
    choices = _choices(document)
    for choice in choices:
        delta = choice.get("delta")
        said: Object = delta if isinstance(delta, dict) else {}
        choice["index"] = tolerant.integer(choice.get("index")) or 0
        choice["delta"] = said if choice["index"] else _said(said, pieces)
    document = {name: value for name, value in document.items() if name != "error"}
    try:
        written = json.dumps(_sendable(document | {"choices": choices}), ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        raise RelayError("upstream_protocol", UNREADABLE) from None
    return written.encode()


def _said(delta: Object, pieces: Sequence[Piece]) -> Object:
    content = "".join(piece.content for piece in pieces if isinstance(piece, Delta))
    thought = "".join(piece.reasoning for piece in pieces if isinstance(piece, Reasoning))
    refusal = "".join(piece.refusal for piece in pieces if isinstance(piece, Refusal))
    named = next((name for name in ("reasoning_content", "reasoning") if name in delta), "reasoning_content")
    said: Object = {name: value for name, value in delta.items() if name != "tool_calls"}
    for name, text in (("content", content), (named, thought), ("refusal", refusal)):
        if text or delta.get(name):
            said[name] = text
    if calls := [piece for piece in pieces if isinstance(piece, ToolCall)]:
        parts = delta.get("tool_calls")
        by_id = {part.get("id"): part for part in (parts if isinstance(parts, list) else ()) if isinstance(part, dict)}
        said["tool_calls"] = [_tool_call(call, by_id.get(call.id, {}) if call.id else {}) for call in calls]
    return said


def _tool_call(call: ToolCall, part: Object) -> Object:
    """Beside the call itself a part may hold more: Gemini wants its signature back, or refuses the next request."""
    if isinstance(part.get("custom"), dict):
        return part | {"index": call.index}
    more = {name: value for name, value in part.items() if name not in ("index", "id", "type", "function")}
    known: Object = {} if call.id is None else {"id": call.id, "type": "function"}
    named: Object = {} if call.name is None else {"name": call.name}
    return {"index": call.index} | known | {"function": named | {"arguments": call.arguments}} | more


def _choices(document: Object) -> list[Object]:
    choices = document.get("choices")
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def _sendable(value: object) -> object:
    """Strict JSON has neither NaN nor half a surrogate pair."""
    match value:
        case str():
            return without_lone_surrogates(value)
        case float() if not math.isfinite(value):
            return None
        case dict():
            return {without_lone_surrogates(name): _sendable(item) for name, item in value.items()}
        case list():
            return [_sendable(item) for item in value]
        case _:
            return value
