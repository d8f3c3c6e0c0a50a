"""One attempt at upstream: its answer's bytes become entries, a turn of the loop at a time.

A turn takes at most one read (16 KiB) or 64 frames; one that is heavy waits for its place among the others (turns.py).
What has been decoded is delivered before a failure that followed it is raised. An answer is closed whatever happens;
closing needs no await, so that cancelling an attempt leaves nothing behind.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec

from app import decode
from app.clocks import Clocks
from app.decode import Complete, Decoder
from app.errors import RelayError
from app.events import Entry
from app.log.memory import MemoryLog
from app.request.chat import Chat
from app.stream import Waiting
from app.turns import HEAVY_BYTES, Turns


class Answer(Protocol):
    """An upstream's answer whose head has come."""

    status: int
    content_type: str | None
    content_encoding: str | None

    async def read(self) -> bytes: ...
    async def finish(self) -> None: ...
    def close(self) -> None: ...


class Upstream(Protocol):
    """What can answer a chat."""

    def open(self, payload: dict[str, object], *, connect_s: float, sent: Callable[[], None]) -> Awaitable[Answer]: ...


class Terms(msgspec.Struct, frozen=True):
    """What an operator grants every generation."""

    attempts: int
    max_retry_wait_s: float
    usage_wait_s: float
    decode: decode.Limits


class Attempt:
    """`run` ends with `complete` called once, or raises `RelayError`."""

    def __init__(
        self,
        chat: Chat,
        log: MemoryLog,
        clocks: Clocks,
        turns: Turns,
        *,
        deliver: Callable[[Sequence[Entry], Decoder], None],
        complete: Callable[[Complete], None],
    ) -> None:
        self.waiting: Waiting = "connecting"
        self.decoder: Decoder | None = None
        self._chat = chat
        self._log = log
        self._clocks = clocks
        self._turns = turns
        self._deliver = deliver
        self._complete = complete

    async def run(self, upstream: Upstream, limits: decode.Limits) -> None:
        answer = await upstream.open(self._chat.payload, connect_s=self._chat.limits.connect, sent=self._sent)
        try:
            self.decoder = Decoder(
                limits,
                content_type=answer.content_type,
                content_encoding=answer.content_encoding,
                status=answer.status,
                passing=self._chat.passing,
            )
            await self._relay(answer, self.decoder)
        finally:
            answer.close()

    def _sent(self) -> None:
        self.waiting = "waiting"

    async def _relay(self, answer: Answer, decoder: Decoder) -> None:
        try:
            while decoder.end is None:
                await self._turn(answer, decoder)
        except RelayError:
            if not decoder.finished:
                raise
            self._deliver(decoder.receive_eof(), decoder)
        match decoder.end:
            case Complete():
                self._complete(decoder.end)
                await answer.finish()
            case RelayError():
                raise decoder.end

    async def _turn(self, answer: Answer, decoder: Decoder) -> None:
        if decoder.backlog:
            await self._turns.take()
            entries = decoder.receive_data(b"")
        else:
            data = await answer.read()
            if len(data) > HEAVY_BYTES:
                await self._turns.take()
            entries = decoder.receive_data(data) if data else decoder.receive_eof()
        self._deliver(entries, decoder)
        if self._log.crowded:
            await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        """The slowest reader is too far behind: upstream is not read, and its silence meanwhile is no fault of its."""
        self._clocks.pause()
        try:
            await self._log.room()
        finally:
            self._clocks.resume()
