"""Entries as bytes: a finished log as a few blobs (two million small structs slow the garbage collector, their bytes do
not), and the batches that a shared log is made of."""

from collections.abc import Sequence
from typing import Final

import msgspec

from app.events import Event

PAGE_ENTRIES: Final = 256
"""Entries in one blob. A reader of a finished log decodes a page to take a part of it, so pages stay small."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Event])


def pack(entries: Sequence[Event]) -> list[bytes]:
    """The entries in pages of `PAGE_ENTRIES`."""
    return [_encoder.encode(entries[at : at + PAGE_ENTRIES]) for at in range(0, len(entries), PAGE_ENTRIES)]


def pack_batch(entries: Sequence[Event]) -> bytes:
    return _encoder.encode(entries)


def unpack(page: bytes) -> list[Event]:
    return _decoder.decode(page)
