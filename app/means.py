"""What all generations of a process are made with."""

import asyncio
from typing import Self

import msgspec

from app import decode
from app.admission.capacity import Capacity
from app.places import Pool
from app.quotas.rates import Rates
from app.quotas.tallies import Tallies
from app.settings import Settings
from app.turns import Openings, Turns


class Terms(msgspec.Struct, frozen=True):
    """What an operator grants every generation."""

    attempts: int
    max_retry_wait_s: float
    usage_wait_s: float
    idle_s: float
    queue_timeout_s: float
    decode: decode.Limits


class Means(msgspec.Struct, frozen=True):
    """Upstreams, room for generations, and the turns that they work in."""

    pool: Pool
    capacity: Capacity
    tallies: Tallies
    rates: Rates
    turns: Turns
    openings: Openings
    terms: Terms

    @classmethod
    def of(cls, settings: Settings, pool: Pool, tallies: Tallies, rates: Rates) -> Self:
        capacity = Capacity(settings.max_streams, settings.max_queued, settings.queue_timeout_seconds)
        pool.on_room(lambda: capacity.poke(asyncio.get_running_loop().time()))
        return cls(pool, capacity, tallies, rates, Turns(), Openings(), _terms(settings))


def _terms(settings: Settings) -> Terms:
    return Terms(
        attempts=settings.attempts,
        max_retry_wait_s=settings.max_retry_wait_seconds,
        usage_wait_s=settings.usage_wait_seconds,
        idle_s=settings.timeout_idle_seconds,
        queue_timeout_s=settings.queue_timeout_seconds,
        decode=decode.Limits(
            max_event_bytes=settings.max_event_bytes,
            max_answer_bytes=settings.max_answer_bytes,
            finish_optional=settings.finish_reason == "optional",
        ),
    )
