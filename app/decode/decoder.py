"""One upstream answer, from its bytes to pieces and one end: the only door of this package for bytes.

The bytes pass through at most four parts, each pulled by the next, so that a turn does a bounded amount of work: the
content encoding (`inflate`), the framing (`sse`), the payload (`chunk`), the answer (`answer`). A body that is no event
stream skips the framing: it is collected, and read when it is whole.
"""

import zlib
from collections.abc import Sequence
from typing import Final

from app.decode.answer import Answer, Limits
from app.decode.chunk import read_chunk, read_completion
from app.decode.chunks import Passage
from app.decode.failure import loosely
from app.decode.fields import Chunk
from app.decode.inflate import ContentDecoder, Identity, content_decoder
from app.decode.sse import BOM, Frame, Frames
from app.errors import RelayError
from app.events import Entry, Passed, Passing

MAX_FRAMES_PER_CALL: Final = 64
"""What one turn of the loop may handle of a stream, so that a flood upstream starves nobody."""

KEEP_ALIVES = frozenset({b"ping", b"keepalive", b"keep-alive", b"keep_alive", b"heartbeat"})
NO_CONTENT_STATUSES = frozenset({204, 205})


class Decoder:
    """Decodes one upstream answer (one attempt). Nothing is raised: a failure is an `answer.end`, and pieces before it
    stay. Bytes after the end are ignored.

    With `passing`, each piece comes with upstream's own chunk, and chunks without a piece come as well.
    `content_type` and `content_encoding` are the headers' values, None where missing. A missing content type is taken
    for an event stream.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        content_type: str | None,
        content_encoding: str | None,
        status: int = 200,
        passing: Passing | None = None,
    ) -> None:
        self._max_event_bytes = limits.max_event_bytes
        self.answer: Final = Answer(limits, choices=passing.choices if passing else 1)
        self._chunks = Passage(usage=passing.usage, model=passing.model) if passing else None
        self._passed: list[Passed] = []
        self._encoded: ContentDecoder = Identity()
        media_type = (content_type or "").partition(";")[0].strip().lower()
        self._frames = Frames(limits.max_event_bytes) if media_type in ("", "text/event-stream") else None
        self._frames_wait = False
        self._body = bytearray()
        self.backlog = False
        """More waits to be decoded: call `receive_data(b"")` before giving more, and before `receive_eof`."""
        try:
            self._encoded = content_decoder(content_encoding)
            if status in NO_CONTENT_STATUSES:
                raise RelayError("upstream_protocol", "upstream sent no content", upstream_status=status)
        except RelayError as error:
            self.answer.fail(error)

    def receive_data(self, data: bytes) -> Sequence[Entry]:
        """What is in these bytes, of at most 64 frames; the rest waits (`backlog`)."""
        if self.answer.end is None:
            try:
                self._receive(data)
            except (RelayError, zlib.error) as fault:
                self._fail(fault)
        return self._take()

    def receive_eof(self) -> Sequence[Entry]:
        """What waited for the end of the body; `end` is set afterwards."""
        entries: list[Entry] = []
        while self.backlog:
            entries += self.receive_data(b"")
        if self.answer.end is None:
            try:
                self._receive_eof()
            except (RelayError, zlib.error) as fault:
                self._fail(fault)
        return [*entries, *self._take()]

    def _take(self) -> Sequence[Entry]:
        pieces = self.answer.take()
        if self._chunks is None:
            return pieces
        passed, self._passed = self._passed, []
        return self._chunks.release([*passed, *self._chunks.made_up(pieces)], carrying=self.answer.carrying)

    def _fail(self, fault: RelayError | zlib.error) -> None:
        if not isinstance(fault, RelayError):
            fault = RelayError("upstream_protocol", "upstream sent a broken compressed answer")
        self.answer.fail(fault)
        self.backlog = False

    def _receive(self, data: bytes) -> None:
        self._encoded.receive(data)
        if self._frames is None:
            self._collect(self._encoded.take())
        else:
            if not self._frames_wait:
                self._frames.receive(self._encoded.take())
            self._take_frames(self._frames)
        self.backlog = self.answer.end is None and (self._frames_wait or self._encoded.waiting)

    def _receive_eof(self) -> None:
        if self._frames is None:
            self._read_body()
        else:
            self._frames.receive_eof()
            self._take_frames(self._frames)
        if self.answer.end is None:
            self.answer.receive_eof(cut=not self._encoded.whole)

    def _take_frames(self, frames: Frames) -> None:
        self._frames_wait = True
        for _ in range(MAX_FRAMES_PER_CALL):
            frame = frames.next_frame()
            if frame is None:
                self._frames_wait = False
                return
            self._receive_frame(frame)
            if self.answer.end is not None:
                return

    def _receive_frame(self, frame: Frame) -> None:
        payload = frame.data
        if frame.event:
            event = frame.event.strip().lower()
            if event in KEEP_ALIVES:
                return
            if event == b"error":
                self.answer.receive_error(loosely(payload))
                return
        if not payload.startswith(b"{"):
            payload = payload.strip()
            if payload == b"[DONE]":
                self.answer.receive_eof()
                return
            if not payload or payload.startswith(b":"):
                return
        self._receive_payload(payload)

    def _receive_payload(self, payload: bytes) -> None:
        try:
            chunk, strict = read_chunk(payload)
        except ValueError:
            if not self.answer.finished:
                raise RelayError("upstream_protocol", "upstream sent an event that is no JSON") from None
            return
        if chunk is None:
            return
        if self._chunks is None:
            self.answer.receive(chunk)
        else:
            self._pass_on(self._chunks, payload, chunk, strict=strict)

    def _pass_on(self, chunks: Passage, payload: bytes, chunk: Chunk, *, strict: bool) -> None:
        as_is = strict and not self.answer.joining
        self.answer.receive(chunk)
        pieces = self.answer.take()
        self.answer.spend(len(payload))
        self._passed += chunks.receive(payload, chunk, pieces, as_is=as_is)

    def _collect(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > self._max_event_bytes:
            raise RelayError("upstream_protocol", "upstream sent a large body that is no event stream")

    def _read_body(self) -> None:
        body = bytes(self._body).removeprefix(BOM)
        try:
            chunk = read_completion(body)
        except ValueError:
            chunk = None
        if chunk is None or not (chunk.error or _is_whole(chunk)):
            raise RelayError("upstream_protocol", "upstream sent neither an event stream nor a completion")
        self.answer.receive(chunk)
        if self._chunks is not None:
            self._passed += self._chunks.receive_completion(body, self.answer.take())


def _is_whole(completion: Chunk) -> bool:
    """Is there a message of choice 0?"""
    return any(choice and choice.delta and not choice.index for choice in completion.choices or ())
