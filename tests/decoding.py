"""Runs bytes through a `Decoder` as the relay does, and tells what came out."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from app.decode import Complete, Decoder, Limits
from app.errors import Problem, RelayError
from app.events import Delta, Entry, Passed, Passing, Piece, Reasoning, Refusal, ToolCall

LIMITS = Limits(max_event_bytes=4 * 1024 * 1024, max_answer_bytes=64 * 1024 * 1024)
EVENT_STREAM = "text/event-stream"


class Decoded(NamedTuple):
    """What a decoder made of an answer. Two of them are equal when clients could not tell them apart."""

    pieces: list[Piece]
    end: Complete | Problem
    chunks: tuple[bytes, ...] = ()
    """What is passed on of upstream's own, one by one."""

    @property
    def text(self) -> str:
        return "".join(piece.content for piece in self.pieces if isinstance(piece, Delta))

    @property
    def reasoning(self) -> str:
        return "".join(piece.reasoning for piece in self.pieces if isinstance(piece, Reasoning))

    @property
    def refusal(self) -> str:
        return "".join(piece.refusal for piece in self.pieces if isinstance(piece, Refusal))

    @property
    def tool_calls(self) -> dict[int, tuple[str | None, str | None, str]]:
        """By index: id, name, and all arguments joined."""
        calls: dict[int, tuple[str | None, str | None, str]] = {}
        for piece in self.pieces:
            if isinstance(piece, ToolCall):
                call_id, name, arguments = calls.get(piece.index, (None, None, ""))
                calls[piece.index] = (piece.id or call_id, piece.name or name, arguments + piece.arguments)
        return calls

    @property
    def complete(self) -> Complete:
        assert isinstance(self.end, Complete), self.end
        return self.end

    @property
    def problem(self) -> Problem:
        assert isinstance(self.end, Problem), self.end
        return self.end


def feed(decoder: Decoder, reads: Iterable[bytes]) -> list[Entry]:
    """All entries of these reads, each followed by what it left waiting."""
    entries: list[Entry] = []
    for read in reads:
        entries += decoder.receive_data(read)
        while decoder.backlog:
            entries += decoder.receive_data(b"")
    return entries


def piece_of(entry: Entry) -> Piece | None:
    return entry.piece if isinstance(entry, Passed) else entry


def decode(
    *reads: bytes,
    limits: Limits = LIMITS,
    content_type: str | None = EVENT_STREAM,
    content_encoding: str | None = None,
    status: int = 200,
    passing: Passing | None = None,
) -> Decoded:
    decoder = Decoder(
        limits, content_type=content_type, content_encoding=content_encoding, status=status, passing=passing
    )
    entries = [*feed(decoder, reads), *decoder.receive_eof()]
    end = decoder.answer.end
    assert end is not None
    pieces = [piece for piece in map(piece_of, entries) if piece is not None]
    chunks = tuple(entry.chunk for entry in entries if isinstance(entry, Passed) and entry.chunk)
    return Decoded(pieces, end.problem if isinstance(end, RelayError) else end, chunks)


def event(payload: object) -> bytes:
    """One event of a stream: bytes as they are, anything else as JSON."""
    return b"data: " + (payload if isinstance(payload, bytes) else json.dumps(payload).encode()) + b"\n\n"


def chunk(finish_reason: object = None, **delta: Any) -> dict[str, Any]:
    return {
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    }


def stream(*payloads: object, done: bool = True) -> bytes:
    """The payloads as events, ended as OpenAI ends an answer, or not."""
    ending = event(chunk("stop")) + event(b"[DONE]") if done else b""
    return b"".join(map(event, payloads)) + ending


def single_bytes(data: bytes) -> Sequence[bytes]:
    return [data[at : at + 1] for at in range(len(data))]
