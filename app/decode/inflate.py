"""Content-Encoding, undone a little at a time (RFC 9110 §8.4).

A compressed answer can grow a thousandfold: 16 KiB are inflated when they are asked for and no more, and the compressed
rest waits, so that a bomb meets the limits of an event and an answer before it meets memory.
"""

import zlib
from typing import Protocol

from app.errors import RelayError

INFLATE_BYTES = 16 * 1024
"""The most that one `take` inflates: what one turn of the loop may handle of a stream."""

GZIP = 31  # zlib's wbits: a gzip header and trailer round a window of 32 KiB
ZLIB = 15
RAW_DEFLATE = -15


class ContentDecoder(Protocol):
    """Bytes as sent → bytes as meant. `waiting`: `take` has more to give; `whole`: nothing is missing at this point."""

    waiting: bool
    whole: bool

    def receive(self, data: bytes) -> None: ...

    def take(self) -> bytes: ...


class Identity:
    """No encoding: what is received is what is taken."""

    def __init__(self) -> None:
        self._data = b""
        self.waiting = False
        self.whole = True

    def receive(self, data: bytes) -> None:
        self._data = self._data + data if self._data else data
        self.waiting = bool(self._data)

    def take(self) -> bytes:
        data, self._data = self._data, b""
        self.waiting = False
        return data


class Inflater:
    """gzip with any number of members (RFC 1952 §2.2), or deflate with or without its zlib wrapper."""

    def __init__(self, *, gzip: bool) -> None:
        self._gzip = gzip
        self._member = zlib.decompressobj(GZIP) if gzip else None
        self._compressed = b""
        self._fault: zlib.error | None = None
        self.waiting = False
        self.whole = False

    def receive(self, data: bytes) -> None:
        self._compressed += data
        self.waiting = self.waiting or bool(data)

    def take(self) -> bytes:
        """At most 16 KiB of what was meant. Raises `zlib.error` when no more can be had, and not before."""
        if self._fault is not None:
            raise self._fault
        member = self._member or self._next_member()
        if member is None:
            self.waiting = False
            return b""
        before = member.copy()
        try:
            data = member.decompress(self._compressed, INFLATE_BYTES)
        except zlib.error as fault:
            self._fault = fault
            return _up_to_the_fault(before, self._compressed)
        self._compressed = member.unconsumed_tail
        if member.eof:
            self._member, self.whole = None, True
            self._compressed = member.unused_data
        self.waiting = bool(self._compressed) or len(data) == INFLATE_BYTES
        return data

    def _next_member(self) -> "zlib._Decompress | None":
        """The first member of a deflated answer, or a further one of a gzipped; None until enough of it is there."""
        if self._gzip:
            # gzip(1) pads with zeros and passes over them; anything else begins another member.
            self._compressed = self._compressed.lstrip(b"\0")
            wbits = GZIP if self._compressed else None
        elif self.whole:
            self._compressed, wbits = b"", None
        else:
            wbits = _deflate_wbits(self._compressed)
        if wbits is not None:
            self._member, self.whole = zlib.decompressobj(wbits), False
        return self._member


def _deflate_wbits(opening: bytes) -> int | None:
    """ "Some non-conformant implementations send the deflate data without the zlib wrapper" (RFC 9110 §8.4.1.2)."""
    if len(opening) < 2:
        return None
    wrapped = opening[0] & 0x0F == zlib.DEFLATED and int.from_bytes(opening[:2], "big") % 31 == 0  # RFC 1950 §2.2
    return ZLIB if wrapped else RAW_DEFLATE


def _up_to_the_fault(member: "zlib._Decompress", compressed: bytes) -> bytes:
    """What came before the fault, byte by byte: zlib drops it with the fault, and how much it drops depends on where
    the bytes were cut. The same answer would be whole in small reads and broken in a large one.
    """
    data = bytearray()
    try:
        for at in range(len(compressed)):
            data += member.decompress(compressed[at : at + 1])
    except zlib.error:
        return bytes(data)
    return bytes(data)


def content_decoder(content_encoding: str | None) -> ContentDecoder:
    """For the header's value. Raises `RelayError` (`upstream_protocol`) for an encoding that was never asked for."""
    codings = [coding.strip().lower() for coding in (content_encoding or "").split(",")]
    match [coding for coding in codings if coding not in ("", "identity")]:
        case []:
            return Identity()
        case ["gzip" | "x-gzip"]:
            return Inflater(gzip=True)
        case ["deflate"]:
            return Inflater(gzip=False)
        case _:
            raise RelayError("upstream_protocol", "upstream sent an encoding that the relay does not read")
