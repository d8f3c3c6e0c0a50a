"""One payload → the few fields of a chunk that mean something to the relay, read strictly.

This is the hot path: msgspec skips the rest without building it. What it refuses goes through `tolerant`, which makes
the same structs, so that nothing behind this door knows which way a chunk came.
"""

from typing import Literal

import msgspec

from app.decode import tolerant
from app.decode.fields import Chunk

_STRICT = msgspec.json.Decoder(Chunk)


def read_chunk(payload: bytes) -> tuple[Chunk | None, bool]:
    """The chunk, None for JSON that is no object, and whether its JSON is strict.

    Raises `ValueError` for what is no JSON at all.
    """
    try:
        chunk = _STRICT.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _read_tolerantly(payload), False
    if chunk.object == "chat.completion" and not _says(chunk):
        # A whole completion, which gateways that cannot stream send as the one event of a stream.
        return read_completion(payload), False
    if chunk.error is None and chunk.type is None and chunk.object != "error":
        return chunk, True
    # An error is understood from the whole document; an empty one, `{}`, is an error to openai-node alone.
    return _read_tolerantly(payload), chunk.error is None


def read_completion(body: bytes) -> Chunk | None:
    """A whole completion, not streamed, as one chunk; None and `ValueError` as above."""
    return _read_tolerantly(body, "message")


def _says(chunk: Chunk) -> bool:
    return any(choice is not None and choice.delta is not None for choice in chunk.choices or ())


def _read_tolerantly(payload: bytes, says: Literal["delta", "message"] = "delta") -> Chunk | None:
    try:
        document = tolerant.read(payload)
        return tolerant.chunk(document, says) if isinstance(document, dict) else None
    except RecursionError:  # from Python 3.12 on C reads deeper than Python can walk
        raise ValueError("nested too deeply") from None
