"""The native dialect: entries of the log as JSON server-sent events.

`data: ` and one line of ASCII JSON, LF only, no `event:` and no comments, so that the shortest line-splitting reader
works. `id:` follows its `data:` line, since a client that is cut inside a block with the id first skips the event;
`retry:` stands inside the `start` block, since a block of its own breaks httpx-sse.
"""

import json
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii as quote
from typing import Final

from app.errors import Problem
from app.events import Delta, Done, Event, Failed, Passed, Reasoning, Refusal, Start, ToolCall, Usage
from app.wire.dialect import MAX_WRITE_BYTES

PROTOCOL: Final = 1
RETRY_MS: Final = 2000
END: Final = b"data: [DONE]\n\n"
LIVE_ONLY: Final = 'data: {"type":"live_only","content":""}\n\n'

_compact: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class Shape:
    """How one reader wants its stream: plain or with ids. Pure; the same entries always give the same bytes."""

    eof_means_lost = True

    def __init__(self, stream_id: str, *, ids: bool, padding_bytes: int = 0) -> None:
        self._id_line: Final = f"id: {stream_id}." if ids else ""
        self._padding: Final = f',"padding":"{"0" * padding_bytes}"' if padding_bytes else ""

    def encode(self, first_seq: int, events: Sequence[Event], live_from: int | None) -> tuple[bytes, int]:
        """As every encoder; from `live_from` on entries carry neither `seq` nor `id`."""
        blocks: list[str] = []
        size = 0
        seq = first_seq
        for event in events:
            block = (
                self._block(event, seq) if live_from is None or seq < live_from else self._live(event, seq, live_from)
            )
            size += len(block)
            if size > MAX_WRITE_BYTES and blocks:
                break
            blocks.append(block)
            seq += 1
        return "".join(blocks).encode("ascii"), len(blocks)

    def ping(self, phase: str, elapsed_s: float) -> bytes:
        """Says what the stream waits for."""
        return f'data: {{"type":"ping","content":"","phase":"{phase}","elapsed_s":{elapsed_s:.1f}}}\n\n'.encode("ascii")

    def end(self, _terminal: Done | Failed) -> bytes:
        return END

    def _live(self, event: Event, seq: int, live_from: int) -> str:
        notice = LIVE_ONLY if seq == live_from else ""
        return f"{notice}data: {{{_body(event)}}}\n\n"

    def _block(self, event: Event, seq: int) -> str:
        padding = retry = ""
        if seq == 0:
            padding = self._padding
            retry = f"retry: {RETRY_MS}\n" if self._id_line else ""
        if not self._id_line:
            return f'data: {{{_body(event)}{padding},"seq":{seq}}}\n\n'
        return f'data: {{{_body(event)}{padding},"seq":{seq}}}\n{self._id_line}{seq}\n{retry}\n'


def failure(problem: Problem) -> bytes:
    """A whole stream for a request that failed before it had one."""
    return f"data: {{{_body(Failed(problem))}}}\n\n".encode("ascii") + END


def usage_json(usage: Usage) -> dict[str, object]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "source": usage.source,
    }


def _body(event: Event) -> str:
    match event:
        case Delta(content=text):
            return f'"type":"delta","content":{quote(text)}'
        case Reasoning(reasoning=text):
            return f'"type":"reasoning","content":"","reasoning":{quote(text)}'
        case Refusal(refusal=text):
            return f'"type":"refusal","content":"","refusal":{quote(text)}'
        case ToolCall():
            return f'"type":"tool_call","content":"","tool_call":{_tool_call(event)}'
        case Passed(piece=piece):
            return '"type":"chunk","content":""' if piece is None else _body(piece)
        case Start(id=stream_id, model=model, resumable=resumable):
            flag = "true" if resumable else "false"
            head = f'"type":"start","content":"","protocol":{PROTOCOL},"id":"{stream_id}"'
            return f'{head},"model":{quote(model)},"resumable":{flag}'
        case Done():
            return f'"type":"done","content":"",{_done(event)}'
        case Failed(error=problem):
            return f'"type":"error","content":"","error":{_compact(problem.as_json())}'


def _tool_call(call: ToolCall) -> str:
    fields: dict[str, object] = {"index": call.index}
    if call.id is not None:
        fields["id"] = call.id
    if call.name is not None:
        fields["name"] = call.name
    return _compact(fields | {"arguments": call.arguments})


def _done(done: Done) -> str:
    first = None if done.first_token_s is None else round(done.first_token_s, 3)
    timings = {"first_token_s": first, "total_s": round(done.total_s, 3)}
    return _compact({"finish_reason": done.finish_reason, "usage": usage_json(done.usage), "timings": timings})[1:-1]
