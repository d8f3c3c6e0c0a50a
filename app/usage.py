"""Tokens as the relay estimates them, where upstream did not count."""

import math
from typing import Final

from app.events import Usage

BYTES_PER_TOKEN: Final = 4


def tokens(text_bytes: int) -> int:
    return math.ceil(text_bytes / BYTES_PER_TOKEN)


def estimate(prompt_tokens: int, *, pieces: int, text_bytes: int) -> Usage:
    """The larger of the pieces and a quarter of their bytes."""
    completion = max(pieces, tokens(text_bytes))
    return Usage(prompt_tokens, completion, prompt_tokens + completion, "estimated")
