"""How a response treats its client."""

import random
from typing import Final

import msgspec

from app.settings import Settings

AGE_JITTER: Final = 0.1
"""Ends of many connections that began together are spread by so much of their age."""


class Manners(msgspec.Struct, frozen=True):
    """How a response treats its client, in seconds; `max_age_s` 0 is no limit. `max_readers` of one stream at once."""

    heartbeat_s: float
    send_timeout_s: float
    max_age_s: float
    max_readers: int


def manners(settings: Settings) -> Manners:
    age = settings.max_connection_seconds * random.uniform(1 - AGE_JITTER, 1 + AGE_JITTER)
    return Manners(settings.heartbeat_seconds, settings.send_timeout_seconds, age, settings.max_readers_per_stream)
