"""Bytes → frames, after the WHATWG HTML standard, §9.2.5 "Parsing an event stream" and §9.2.6 "Interpreting".

The contract:

- Bytes may be cut anywhere: in a CRLF, in the BOM, in a character. The frames are the same.
- Frames are pulled one by one, so that a caller can stop after some and come back: nothing is decoded ahead of it.
- Of one frame at most `max_event_bytes` are held, an unfinished line included; beyond that `next_frame` raises, after
  the frames that were whole before.
- Lines are kept as bytes: UTF-8 is repaired where the payload is read, never here, because a line feed is one byte
  in UTF-8 and nothing else is.
- Two departures from the standard. A last block without its blank line counts at the end (§9.2.6 discards it, but
  llama.cpp ends with `data: [DONE]` and no blank line). A field `error`, unknown to the standard, is an error frame
  (llama.cpp writes its errors so, and to ignore it would turn a failure into a truncation).
"""

import msgspec

from app.errors import RelayError

BOM = b"\xef\xbb\xbf"


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One dispatched event: its `data` lines joined by LF, and its `event` name, empty where none was given."""

    data: bytes
    event: bytes = b""


class Frames:
    """The framing of one stream, pulled: give it bytes with `receive`, take `next_frame` until it is None."""

    def __init__(self, max_event_bytes: int) -> None:
        self._max_event_bytes = max_event_bytes
        self._begun = False
        self._opening = b""
        self._after_cr = False
        self._unfinished = bytearray()  # the last line so far; grown in place, since bytes would be copied per read
        self._lines = b""  # whole ones, of which those before `_at` are done with
        self._at = 0
        self._data: list[bytes] = []
        self._event = b""
        self._error: bytes | None = None
        self._block_bytes = 0

    def receive(self, data: bytes) -> None:
        """Takes the next bytes. Nothing is done with their lines until they are asked for."""
        if not self._begun:
            data = self._without_bom(data)
        if self._after_cr or b"\r" in data:
            data = self._with_lf(data)
        ends = data.rfind(b"\n") + 1
        if not ends:
            self._unfinished += data
            return
        lines = data[:ends]
        if self._unfinished or self._at < len(self._lines):
            lines = b"".join((self._lines[self._at :], self._unfinished, lines))
            self._unfinished.clear()
        self._unfinished += data[ends:]
        self._lines, self._at = lines, 0

    def receive_eof(self) -> None:
        """Ends the last line and the last block, if upstream did not."""
        self.receive(b"\n\n")

    def next_frame(self) -> Frame | None:
        """The next whole frame, or None when more bytes are needed.

        Raises `RelayError` (`upstream_protocol`) when a frame outgrows `max_event_bytes`.
        """
        lines, size = self._lines, len(self._lines)
        while (at := self._at) < size:
            end = lines.index(b"\n", at)
            self._at = end + 1
            if lines.startswith(b"data: ", at):
                if self._block_bytes + end - at > self._max_event_bytes:
                    raise self._too_large()
                data = lines[at + 6 : end]
                if not self._block_bytes and lines.startswith(b"\n", end + 1):  # the whole block, as nearly all are
                    self._at = end + 2
                    return Frame(data)
                self._block_bytes += end - at
                self._data.append(data)
            elif at < end:
                self._field(lines[at:end])
            elif (frame := self._dispatch()) is not None:
                return frame
        if self._block_bytes + len(self._unfinished) > self._max_event_bytes:
            raise self._too_large()
        return None

    def _without_bom(self, data: bytes) -> bytes:
        """ "The UTF-8 decode algorithm strips one leading UTF-8 Byte Order Mark (BOM), if any." """
        opening = self._opening + data
        if len(opening) < len(BOM) and BOM.startswith(opening):
            self._opening = opening
            return b""
        self._begun = True
        self._opening = b""
        return opening.removeprefix(BOM)

    def _with_lf(self, data: bytes) -> bytes:
        """One kind of line end: "a U+000D CARRIAGE RETURN U+000A LINE FEED pair, a single LF, or a single CR".

        A CR at the end of a read ends its line at once (the LF that would make it a pair may never come) and an LF
        that begins the next read is then its other half.
        """
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if data.endswith(b"\r"):
            self._after_cr = True
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if self._block_bytes + len(line) > self._max_event_bytes:
            raise self._too_large()
        if not name:
            # "If the line starts with a U+003A COLON character (:): ignore the line." It is held by nobody, so a
            # stream of heartbeat comments without a blank line is no growing frame; one endless comment is.
            return
        self._block_bytes += len(line)
        # "If value starts with a U+0020 SPACE character, remove it from value."
        value = value.removeprefix(b" ")
        match name:
            case b"data":
                self._data.append(value)
            case b"event":
                self._event = value
            case b"error":
                self._error = value
            case _:
                pass  # `id` and `retry` are for a client that reconnects; "Otherwise: the field is ignored."

    def _dispatch(self) -> Frame | None:
        """A blank line: "dispatch the event". Without data there is none, unless it is called an error."""
        data, self._data = self._data, []
        self._block_bytes = 0
        if self._event or self._error is not None:
            return self._dispatch_named(b"\n".join(data), has_data=bool(data))
        if not data:
            return None
        return Frame(data[0] if len(data) == 1 else b"\n".join(data))

    def _dispatch_named(self, data: bytes, *, has_data: bool) -> Frame | None:
        event, self._event = self._event, b""
        error, self._error = self._error, None
        if error is not None:
            return Frame(error, b"error")
        return Frame(data, event) if has_data or event == b"error" else None

    def _too_large(self) -> RelayError:
        return RelayError("upstream_protocol", f"upstream sent an event of more than {self._max_event_bytes} bytes")
