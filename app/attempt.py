"""One attempt at one upstream: its answer's bytes become entries, a turn of the loop at a time.

A turn takes at most one read (16 KiB) or 64 frames; one that is heavy waits for its place among the others (turns.py).
What has been decoded is delivered before a failure that followed it is raised. An answer is closed whatever happens;
closing needs no await, so that cancelling an attempt leaves nothing behind.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from app import decode
from app.clocks import Clocks
from app.decode import Complete, Decoder
from app.errors import RelayError
from app.events import Entry, Passing
from app.log.memory import MemoryLog
from app.places import Answer, Place
from app.request.chat import Chat
from app.stream import Waiting
from app.turns import HEAVY_BYTES, Turns

Deliver = Callable[[Sequence[Entry], Decoder], None]


class _Sent:
    """When a request had left. No method of the attempt: a connection that is kept would keep it, prompt and all."""

    def __init__(self) -> None:
        self.after_s: float | None = None
        self._began = time.monotonic()

    def __call__(self) -> None:
        if self.after_s is None:
            self.after_s = time.monotonic() - self._began


class Attempt:
    """`run` ends with `complete` called once, or raises `RelayError`. It gives its place back."""

    def __init__(
        self,
        place: Place,
        chat: Chat,
        log: MemoryLog,
        clocks: Clocks,
        turns: Turns,
        *,
        deliver: Deliver,
        complete: Callable[[Complete], None],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.place: Final = place
        self._sent: Final = _Sent()
        self.decoder: Decoder | None = None
        self._chat = chat
        self._log = log
        self._clocks = clocks
        self._turns = turns
        self._deliver = deliver
        self._complete = complete
        self._headers = headers
        self._limit: asyncio.Timeout | None = None

    async def run(self, limits: decode.Limits) -> None:
        """Within the upstream's own limit to the first content, where it has one."""
        try:
            if (first_token_s := self.place.manner.first_token_s) is None:
                await self._ask(limits)
            else:
                await self._ask_within(first_token_s, limits)
        except RelayError as error:
            if not self._asked_for(error):
                self.place.failed(error.problem)
            raise
        finally:
            self.place.release()

    async def _ask_within(self, first_token_s: float, limits: decode.Limits) -> None:
        try:
            async with asyncio.timeout(first_token_s) as self._limit:
                await self._ask(limits)
        except TimeoutError:
            words = f"upstream brought nothing within {first_token_s:g} s"
            raise RelayError("upstream_timeout", words, phase="first_token") from None
        finally:
            self._limit = None  # it knows the task, which knows us

    @property
    def waiting(self) -> Waiting:
        return "connecting" if self.connect_s is None else "waiting"

    @property
    def connect_s(self) -> float | None:
        """Until the request had left."""
        return self._sent.after_s

    def carried(self) -> None:
        """Content has come: the limit to the first of it is kept."""
        self.place.carried()
        if self._limit is not None:
            self._limit.reschedule(None)

    def _asked_for(self, error: RelayError) -> bool:
        """Whether the failure may be the request's own doing, and so says nothing about upstream."""
        chat = self._chat
        match error.problem.code:
            case "upstream_protocol":
                too_long = self.decoder is not None and self.decoder.answer.too_long
                return too_long and chat.grant.max_answer_bytes is not None
            case "upstream_truncated":
                return chat.passing is not None and chat.passing.choices > 1
            case _:
                return False

    async def _ask(self, limits: decode.Limits) -> None:
        manner, asked_s = self.place.manner, self._chat.limits.connect
        connect_s = asked_s if manner.connect_s is None else min(asked_s, manner.connect_s)
        asked = self.place.open(self._chat.payload, connect_s=connect_s, sent=self._sent, headers=self._headers)
        answer = await asked
        try:
            self.decoder = Decoder(
                msgspec.structs.replace(limits, finish_optional=manner.finish_optional),
                content_type=answer.content_type,
                content_encoding=answer.content_encoding,
                status=answer.status,
                passing=self._passing(),
            )
            await self._relay(answer, self.decoder)
        finally:
            answer.close()

    def _passing(self) -> Passing | None:
        """A client that asked by an alias is told the alias."""
        passing = self._chat.passing
        if passing is None or self.place.model == self._chat.model:
            return passing
        return msgspec.structs.replace(passing, model=self._chat.model)

    async def _relay(self, answer: Answer, decoder: Decoder) -> None:
        try:
            while decoder.answer.end is None:
                await self._turn(answer, decoder)
        except RelayError:
            if not decoder.answer.finished:
                raise
            self._deliver(decoder.receive_eof(), decoder)
        match decoder.answer.end:
            case Complete():
                self._complete(decoder.answer.end)
                await answer.finish()
            case RelayError():
                raise decoder.answer.end

    async def _turn(self, answer: Answer, decoder: Decoder) -> None:
        """What is light is worked on where it arrives (`_at_once`); here is what has to wait for something."""
        if self._log.crowded:
            await self._wait_for_room()
        elif decoder.backlog:
            await self._turns.take()
            self._deliver(decoder.receive_data(b""), decoder)
        else:
            await answer.pour(self._at_once, HEAVY_BYTES)
            if self._flows(decoder):
                await self._read(answer, decoder)

    async def _read(self, answer: Answer, decoder: Decoder) -> None:
        data = await answer.read()
        if len(data) > HEAVY_BYTES:
            await self._turns.take()
        self._deliver(decoder.receive_data(data) if data else decoder.receive_eof(), decoder)

    def _at_once(self, data: bytes) -> bool:
        decoder = self.decoder
        assert decoder is not None
        self._deliver(decoder.receive_data(data), decoder)
        return self._flows(decoder)

    def _flows(self, decoder: Decoder) -> bool:
        """Whether upstream is to be read on at once."""
        return decoder.answer.end is None and not decoder.backlog and not self._log.crowded

    async def _wait_for_room(self) -> None:
        """The slowest reader is too far behind: upstream is not read, and its silence meanwhile is no fault of its."""
        self._clocks.pause()
        try:
            await self._log.room()
        finally:
            self._clocks.resume()
