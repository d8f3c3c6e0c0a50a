"""The AI SDK dialect: the UI message stream, version 1, that `useChat` reads.

Its reader ends at a `type` it does not know, at a delta of a part that is not open, and at JSON with a key that touches
a prototype. It takes an end without `finish` for a whole answer: hence `error` and `abort`.
"""

import json
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii as quote
from typing import Any, Final

from app.events import Delta, Done, Event, Failed, Passed, Reasoning, Refusal, Start, ToolCall
from app.wire.dialect import batch
from app.wire.native import usage_json

END: Final = b"data: [DONE]\n\n"
PING: Final = b": ping\n\n"

FINISH_REASONS: Final = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content-filter",
    "tool_calls": "tool-calls",
    "function_call": "tool-calls",
}
"""OpenAI's words as the SDK's; all others are `other`."""

MAX_INPUT_CHARACTERS: Final = 1024 * 1024
"""Of the arguments of all calls, which a reader keeps until the end: the answers of today's models are half of it."""

UNNAMED: Final = "unknown"


class Message:
    """The stream of one reader, from its beginning: a message of parts, of which one holds the text at a time.

    `message_id` is of the assistant's message that the answer continues; without it the stream's id names a new one.
    """

    eof_means_lost = False

    def __init__(self, message_id: str | None = None) -> None:
        self._message_id = message_id
        self._start = Start("", "", False)
        self._open = self._delta_head = ""
        self._opened = 0
        self._calls: dict[int, _Call] = {}
        self._input_characters = 0

    def encode(self, _first_seq: int, events: Sequence[Event], _live_from: int | None) -> tuple[bytes, int]:
        return batch(events, self._block)

    def ping(self, _phase: str, _elapsed_s: float) -> bytes:
        return PING

    def end(self, _terminal: Done | Failed) -> bytes:
        return END

    def _block(self, event: Event) -> bytes:
        match event:
            case Delta(content=text) | Refusal(refusal=text):
                return self._said("text", text)
            case Reasoning(reasoning=text):
                return self._said("reasoning", text)
            case ToolCall():
                return self._called(event)
            case Passed(piece=piece):
                return b"" if piece is None else self._block(piece)
            case Start(id=stream_id):
                self._start = event
                return _part("start", messageId=self._message_id or stream_id) + _part("start-step")
            case Done(finish_reason="cancelled"):
                return self._close() + _part("abort")
            case Done():
                return self._close() + self._finish(event)
            case Failed(error=problem):
                # A call that is not whole stays as it is: the SDK forgets it when the conversation goes on.
                return self._close() + _part("error", errorText=f"{problem.code}: {problem.message}")

    def _said(self, kind: str, text: str) -> bytes:
        before = b"" if kind == self._open else self._close() + self._begin(kind)
        return before + f"{self._delta_head}{quote(text)}}}\n\n".encode("ascii")

    def _begin(self, kind: str) -> bytes:
        self._opened += 1
        self._open = kind
        self._delta_head = f'data: {{"type":"{kind}-delta","id":"{kind}-{self._opened}","delta":'
        return _part(f"{kind}-start", id=f"{kind}-{self._opened}")

    def _close(self) -> bytes:
        kind, self._open = self._open, ""
        return _part(f"{kind}-end", id=f"{kind}-{self._opened}") if kind else b""

    def _called(self, piece: ToolCall) -> bytes:
        before = self._close()
        call = self._calls.get(piece.index)
        if call is None:
            call = self._calls[piece.index] = _Call(self._call_id(piece))
            call.name = piece.name or ""
            before += _part("tool-input-start", **call.named())
        call.name = call.name or piece.name or ""
        if not piece.arguments:
            return before
        self._input_characters += len(piece.arguments)
        if self._input_characters <= MAX_INPUT_CHARACTERS:
            call.arguments.extend(piece.arguments.encode())
        else:
            call.cut = True
        return before + f"{call.delta_head}{quote(piece.arguments)}}}\n\n".encode("ascii")

    def _call_id(self, piece: ToolCall) -> str:
        """Upstream's, unless it gave none or one twice; ours has at most the 40 characters that OpenAI takes back."""
        taken = {call.id for call in self._calls.values()}
        return piece.id if piece.id and piece.id not in taken else f"{self._start.id}_{piece.index}"

    def _finish(self, done: Done) -> bytes:
        first = None if done.first_token_s is None else round(done.first_token_s, 3)
        metadata = {
            "model": self._start.model,
            "usage": usage_json(done.usage),
            "timings": {"first_token_s": first, "total_s": round(done.total_s, 3)},
        }
        inputs = b"".join(call.input() for call in self._calls.values())
        reason = FINISH_REASONS.get(done.finish_reason, "other")
        return inputs + _part("finish-step") + _part("finish", finishReason=reason, messageMetadata=metadata)


class _Call:
    """A tool call, which is whole when the answer is: calls may come interleaved."""

    def __init__(self, id: str) -> None:
        self.id: Final = id
        self.delta_head: Final = f'data: {{"type":"tool-input-delta","toolCallId":{quote(id)},"inputTextDelta":'
        self.name = ""
        self.arguments: Final = bytearray()  # UTF-8: a list of strings of one character is 60 times as much
        self.cut = False

    def named(self) -> dict[str, Any]:
        return {"toolCallId": self.id, "toolName": self.name or UNNAMED, "dynamic": True}

    def input(self) -> bytes:
        text = self.arguments.decode()
        words = f"the arguments of all calls have more than {MAX_INPUT_CHARACTERS} characters"
        if not self.cut:
            try:
                return _part("tool-input-available", **self.named(), input=_object(text))
            except (ValueError, RecursionError):
                words = "the arguments are no JSON object that can be passed on"
        return _part("tool-input-error", **self.named(), input=text, errorText=words)


def _object(text: str) -> dict[str, Any]:
    """The arguments, `{}` where a model sends nothing for it. Raises ValueError or RecursionError."""
    if not text.strip():
        return {}
    value = json.loads(text, object_pairs_hook=_harmless)
    if not isinstance(value, dict):
        raise ValueError(text)
    return value


def _harmless(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """What the SDK's JSON parser takes for an attack on prototypes would end the whole stream."""
    made = dict(pairs)
    constructor = made.get("constructor")
    if "__proto__" in made or (isinstance(constructor, dict) and "prototype" in constructor):
        raise ValueError
    return made


def _part(kind: str, **fields: object) -> bytes:
    text = json.dumps({"type": kind, **fields}, separators=(",", ":"), allow_nan=False)
    return f"data: {text}\n\n".encode("ascii")
