"""From a model and a question to the bytes of the answer, and when each of them leaves."""

import secrets
import time
from collections.abc import Iterator
from itertools import repeat
from typing import Final

import msgspec

from app.demo.models import Model
from app.demo.question import Question
from app.demo.refusals import refused
from app.events import Delta, Piece, Reasoning, Refusal, ToolCall

FEW_TOKENS: Final = 5
"""What a model says before it misbehaves."""

KEEP_ALIVE_SECONDS: Final = 0.5


class Beat(msgspec.Struct, frozen=True):
    """`data` leaves `pause_seconds` after the beat before it; None is never."""

    pause_seconds: float | None
    data: bytes = b""


class Said(msgspec.Struct, frozen=True):
    """A whole answer and why it ends there."""

    pieces: tuple[Piece, ...]
    finish_reason: str

    @classmethod
    def by(cls, model: Model, question: Question) -> "Said":
        pieces = _before_stop(model.says(question), question.stops)
        if question.limit is not None and len(pieces) > question.limit:
            return cls(pieces[: question.limit], "length")
        return cls(pieces, "tool_calls" if any(isinstance(piece, ToolCall) for piece in pieces) else "stop")


def beats(model: Model, question: Question) -> Iterator[Beat]:
    said = Said.by(model, question)
    completion = Completion(question, said)
    if model.end == "hang":
        return iter([Beat(None)])
    return _streamed(model, completion) if question.stream else _whole(model, completion)


def _streamed(model: Model, completion: "Completion") -> Iterator[Beat]:
    yield Beat(0, completion.chunks({"role": "assistant", "content": "", "refusal": None}))
    pieces = completion.said.pieces
    for piece in pieces if model.end == "finish" else pieces[:FEW_TOKENS]:
        yield Beat(model.token_seconds, completion.chunks(_delta(piece)))
    match model.end:
        case "finish":
            yield Beat(0, completion.last_chunks())
        case "comments":
            yield from repeat(Beat(KEEP_ALIVE_SECONDS, b": keep-alive\n\n"))
        case "error":
            yield Beat(0, _event(refused(500).as_json()))
        case "stall" | "hang":
            yield Beat(None)
        case "cut":
            return


def _whole(model: Model, completion: "Completion") -> Iterator[Beat]:
    body = completion.whole()
    match model.end:
        case "finish":
            yield Beat(model.token_seconds * len(completion.said.pieces), body)
        case "cut":
            yield Beat(0, body[: len(body) // 2])
        case "comments" | "stall" | "hang" | "error":  # `error` was refused at the door, with its status
            yield Beat(None)


class Completion:
    """The JSON of one answer, as chunks or as a whole; every choice says the same."""

    def __init__(self, question: Question, said: Said) -> None:
        self.said = said
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model = question.model
        self._choices = range(question.n or 1)
        self._prompt_tokens = question.prompt_tokens
        self._include_usage = question.include_usage

    def chunks(self, delta: dict[str, object], finish_reason: str | None = None) -> bytes:
        """One chunk for each choice."""
        return b"".join(self._chunk([_choice(index, finish_reason, delta=delta)]) for index in self._choices)

    def last_chunks(self) -> bytes:
        usage = self._chunk([], self._usage()) if self._include_usage else b""
        return self.chunks({}, self.said.finish_reason) + usage + b"data: [DONE]\n\n"

    def whole(self) -> bytes:
        message = _message(self.said.pieces)
        choices = [_choice(index, self.said.finish_reason, message=message) for index in self._choices]
        return msgspec.json.encode(self._object("chat.completion", choices) | {"usage": self._usage()})

    def _chunk(self, choices: list[dict[str, object]], usage: dict[str, int] | None = None) -> bytes:
        counted = {"usage": usage} if self._include_usage else {}
        return _event(self._object("chat.completion.chunk", choices) | counted)

    def _object(self, kind: str, choices: list[dict[str, object]]) -> dict[str, object]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": "fp_demo",
            "choices": choices,
        }

    def _usage(self) -> dict[str, int]:
        said = len(self.said.pieces) * len(self._choices)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": said,
            "total_tokens": self._prompt_tokens + said,
        }


def _event(payload: dict[str, object]) -> bytes:
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"


def _choice(index: int, finish_reason: str | None, **said: dict[str, object]) -> dict[str, object]:
    return {"index": index, **said, "logprobs": None, "finish_reason": finish_reason}


def _delta(piece: Piece) -> dict[str, object]:
    match piece:
        case Delta(content=text):
            return {"content": text}
        case Reasoning(reasoning=text):
            return {"reasoning_content": text}
        case Refusal(refusal=text):
            return {"refusal": text}
        case ToolCall(index=index, id=str(call_id), name=name, arguments=arguments):
            function = {"name": name, "arguments": arguments}
            return {"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]}
        case ToolCall(index=index, arguments=arguments):
            return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}


def _message(pieces: tuple[Piece, ...]) -> dict[str, object]:
    content = "".join(piece.content for piece in pieces if isinstance(piece, Delta))
    refusal = "".join(piece.refusal for piece in pieces if isinstance(piece, Refusal))
    message: dict[str, object] = {"role": "assistant", "content": content or None, "refusal": refusal or None}
    if reasoning := "".join(piece.reasoning for piece in pieces if isinstance(piece, Reasoning)):
        message["reasoning_content"] = reasoning
    if calls := [piece for piece in pieces if isinstance(piece, ToolCall)]:
        function = {"name": calls[0].name, "arguments": "".join(call.arguments for call in calls)}
        message["tool_calls"] = [{"id": calls[0].id, "type": "function", "function": function}]
    return message


def _before_stop(pieces: tuple[Piece, ...], stops: list[str]) -> tuple[Piece, ...]:
    """The pieces up to the first stop sequence in the text, which may begin inside a piece and span several."""
    text = "".join(piece.content for piece in pieces if isinstance(piece, Delta))
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return tuple(_first_characters(pieces, min(ends))) if ends else pieces


def _first_characters(pieces: tuple[Piece, ...], left: int) -> Iterator[Piece]:
    for piece in pieces:
        if not isinstance(piece, Delta):
            yield piece
        elif left > 0:
            yield Delta(piece.content[:left])
            left -= len(piece.content)
