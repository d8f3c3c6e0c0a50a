"""The OpenAI dialect: upstream's own chunks, `data:` lines and nothing else (no `id:`, `retry:`, `event:`).

A failure is `data: {"error": …}` and the end. Never `[DONE]` after it, and never a silent end: OpenAI's clients take
both for success.
"""

import json
from collections.abc import Sequence
from typing import Final

from app.errors import Problem
from app.events import Done, Event, Failed, Passed
from app.wire.dialect import batch, failure_of

END: Final = b"data: [DONE]\n\n"
PING: Final = b": ping\n"
"""Without a blank line, which would end an event that has no data: openai-python and openai-go stumble over one."""


class Chunks:
    """The stream of one reader, from its beginning."""

    eof_means_lost = False

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._partial = False

    def encode(self, _first_seq: int, events: Sequence[Event], _live_from: int | None) -> tuple[bytes, int]:
        return batch(events, self._block)

    def ping(self, _phase: str, _elapsed_s: float) -> bytes:
        return PING

    def end(self, terminal: Done | Failed) -> bytes:
        return b"" if failure_of(terminal) else END

    def _block(self, event: Event) -> bytes:
        match event:
            case Passed(chunk=chunk):
                self._partial = True
                return b"data: " + chunk + b"\n\n" if chunk else b""
            case Done() | Failed():
                problem = failure_of(event)
                return b"data: " + self._error(problem) + b"\n\n" if problem else b""
            case _:
                return b""

    def _error(self, problem: Problem) -> bytes:
        told = problem.as_json() | {"request_id": self._request_id, "partial": self._partial}
        return json.dumps({"error": told}, separators=(",", ":")).encode("ascii")
