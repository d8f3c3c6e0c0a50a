"""The AG-UI dialect, protocol 1.0: one run a stream, `data:` lines and comments, LF only, and no `[DONE]`.

Text, reasoning and tool calls are opened and closed, and may overlap. All text and all calls of an answer are one
message, which is opened again where text goes on behind something else: sent back as several, with a call's result
between them, it would be refused by most models. A call is closed when the whole answer is there: closing says that
its arguments are complete, upstream may come back to any call until then, and a client may act on what is closed.
"""

import json
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring_ascii as quote
from typing import Final, Literal

import msgspec

from app.events import Delta, Done, Event, Failed, Passed, Reasoning, Refusal, Start, ToolCall, Usage
from app.wire.dialect import batch, failure_of
from app.wire.native import usage_json

PROTOCOL_VERSION: Final = "1.0"
PING: Final = b": ping\n\n"
METADATA: Final = "sse-relay"
"""The key of ours in `metadata`, where the specification leaves room for what it has no field for."""

MAX_COUNT: Final = 2**53 - 1
"""Of tokens: one more, and clients fail the run whose answer they have whole."""

_TAIL: Final = "}\n\n"


class Run(msgspec.Struct, frozen=True):
    """What the client called its run. `call_ids`: those of tool calls that its messages hold already. `skipped`: the
    paths of what was left out of its messages.
    """

    thread_id: str
    run_id: str
    parent_run_id: str | None = None
    call_ids: frozenset[str] = frozenset()
    skipped: tuple[str, ...] = ()


class Events:
    """The stream of one reader, from its beginning."""

    eof_means_lost = True  # a run that was not finished is not whole; and a cut brings down a Node process of HttpAgent

    def __init__(self, run: Run) -> None:
        self._run: Final = run
        self._stream_id = self._model = self._text = self._reasoning = ""
        self._open: Literal["text", "reasoning"] | None = None
        self._spans = 0
        self._ids = set(run.call_ids)
        self._calls: dict[int, str] = {}
        self._arguments: dict[int, str] = {}

    def encode(self, _first_seq: int, events: Sequence[Event], _live_from: int | None) -> tuple[bytes, int]:
        return batch(events, self._block)

    def ping(self, _phase: str, _elapsed_s: float) -> bytes:
        return PING

    def end(self, _terminal: Done | Failed) -> bytes:
        return b""

    def _block(self, event: Event) -> bytes:
        return self._lines(event.piece if isinstance(event, Passed) else event).encode("ascii")

    def _lines(self, event: Event | None) -> str:
        match event:
            case Delta(content=text) | Refusal(refusal=text):
                return self._turn_to("text") + self._text + quote(text) + _TAIL
            case Reasoning(reasoning=text):
                return self._turn_to("reasoning") + self._reasoning + quote(text) + _TAIL
            case ToolCall():
                return self._call(event)
            case Start():
                return self._started(event)
            case Done() | Failed():
                return self._ended(event)
            case None | Passed():
                return ""

    def _started(self, start: Start) -> str:
        self._stream_id, self._model = start.id, start.model
        self._text = _head("TEXT_MESSAGE_CONTENT", "messageId", start.id)
        ours: dict[str, object] = {"id": start.id, "model": start.model, "resumable": start.resumable}
        if self._run.skipped:
            ours["skipped"] = self._run.skipped
        fields = self._identity() | {"protocolVersion": PROTOCOL_VERSION}
        if self._run.parent_run_id is not None:
            fields["parentRunId"] = self._run.parent_run_id
        return _line("RUN_STARTED", fields | {"metadata": {METADATA: ours}})

    def _turn_to(self, part: Literal["text", "reasoning"] | None) -> str:
        """Opens a part, unless it is open; the one that was is closed, since readers show one after the other."""
        if part == self._open:
            return ""
        closing, self._open = self._closing(), part
        match part:
            case None:
                return closing
            case "text":
                return closing + _line("TEXT_MESSAGE_START", {"messageId": self._stream_id, "role": "assistant"})
            case "reasoning":
                message = {"messageId": f"{self._stream_id}.r{self._spans}"}
                self._spans += 1
                self._reasoning = _head("REASONING_MESSAGE_CONTENT", "messageId", message["messageId"])
                opening = _line("REASONING_START", message)
                return closing + opening + _line("REASONING_MESSAGE_START", message | {"role": "reasoning"})

    def _closing(self) -> str:
        match self._open:
            case None:
                return ""
            case "text":
                return _line("TEXT_MESSAGE_END", {"messageId": self._stream_id})
            case "reasoning":
                message = {"messageId": f"{self._stream_id}.r{self._spans - 1}"}
                return _line("REASONING_MESSAGE_END", message) + _line("REASONING_END", message)

    def _call(self, piece: ToolCall) -> str:
        opening = "" if piece.index in self._calls else self._open_call(piece)
        arguments = self._arguments[piece.index] + quote(piece.arguments) + _TAIL if piece.arguments else ""
        return opening + arguments

    def _open_call(self, piece: ToolCall) -> str:
        # Clients add the arguments of a call to the one whose id they know: upstreams that count their calls anew in
        # each answer (`call_0`, `call_1`) would have them spoil the history.
        call_id = piece.id or ""
        if not call_id or call_id in self._ids:
            call_id = f"{self._stream_id}.t{piece.index}"
        self._ids.add(call_id)
        self._calls[piece.index] = call_id
        self._arguments[piece.index] = _head("TOOL_CALL_ARGS", "toolCallId", call_id)
        named = {"toolCallId": call_id, "toolCallName": piece.name or "", "parentMessageId": self._stream_id}
        return self._turn_to(None) + _line("TOOL_CALL_START", named)

    def _ended(self, terminal: Done | Failed) -> str:
        closing = self._turn_to(None)
        if problem := failure_of(terminal):
            told = {"message": problem.message, "code": problem.code}
            return closing + _line("RUN_ERROR", told | self._accounts(terminal))
        calls = [*self._calls.values()]
        closing += "".join(_line("TOOL_CALL_END", {"toolCallId": call_id}) for call_id in calls)
        outcome = {"outcome": {"type": "success", "pendingToolCallIds": calls}} if calls else {}
        return closing + _line("RUN_FINISHED", self._identity() | outcome | self._accounts(terminal))

    def _accounts(self, terminal: Done | Failed) -> dict[str, object]:
        """`usage` is for what a provider reported; our own estimates are in the metadata."""
        if isinstance(terminal, Failed):
            return {"metadata": {METADATA: terminal.error.as_json()}}
        first = None if terminal.first_token_s is None else round(terminal.first_token_s, 3)
        timings = {"first_token_s": first, "total_s": round(terminal.total_s, 3)}
        ours = {"finish_reason": terminal.finish_reason, "usage": usage_json(terminal.usage), "timings": timings}
        reported = terminal.usage.source == "reported"
        usage = {"usage": [{"model": self._model} | _counts(terminal.usage)]} if reported else {}
        return usage | {"metadata": {METADATA: ours}}

    def _identity(self) -> dict[str, object]:
        return {"threadId": self._run.thread_id, "runId": self._run.run_id}


def _counts(usage: Usage) -> dict[str, int]:
    """The total is the protocol's own, the sum of the two: a provider's may count otherwise."""
    counts = {
        "inputTokens": usage.prompt_tokens,
        "outputTokens": usage.completion_tokens,
        "totalTokens": usage.prompt_tokens + usage.completion_tokens,
    }
    return {name: count for name, count in counts.items() if count <= MAX_COUNT}


def _head(kind: str, key: str, value: str) -> str:
    """The line of a delta up to the delta itself."""
    return f'data: {{"type":"{kind}","{key}":{quote(value)},"delta":'


def _line(kind: str, fields: Mapping[str, object]) -> str:
    return f"data: {json.dumps({'type': kind, **fields}, separators=(',', ':'), allow_nan=False)}\n\n"
