"""What all generations of a process are made with."""

import asyncio
from collections.abc import Callable
from typing import Self

import msgspec

from app import decode
from app.admission.capacity import Capacity
from app.places import Pool
from app.quotas.rates import Rates
from app.quotas.tallies import Tallies
from app.settings import Settings
from app.trace_context import TraceContext
from app.turns import Openings, Turns


class Terms(msgspec.Struct, frozen=True):
    """What an operator grants every generation."""

    attempts: int
    max_retry_wait_s: float
    usage_wait_s: float
    idle_s: float
    queue_timeout_s: float
    decode: decode.Limits


BeginTrace = Callable[[TraceContext | None, str], TraceContext | None]
"""A generation's span, beneath its caller's, by the model that is asked for; None where no traces are kept."""


def no_trace(_parent: TraceContext | None, _model: str) -> None:
    return None


class Means(msgspec.Struct, frozen=True):
    """Upstreams, room for generations, and the turns that they work in."""

    pool: Pool
    capacity: Capacity
    tallies: Tallies
    rates: Rates
    turns: Turns
    openings: Openings
    terms: Terms
    begin_trace: BeginTrace = no_trace

    @classmethod
    def of(
        cls, settings: Settings, pool: Pool, tallies: Tallies, rates: Rates, begin_trace: BeginTrace = no_trace
    ) -> Self:
        capacity = Capacity(settings.max_streams, settings.max_queued, settings.queue_timeout_seconds)
        pool.on_room(lambda: capacity.poke(asyncio.get_running_loop().time()))
        return cls(pool, capacity, tallies, rates, Turns(), Openings(), _terms(settings), begin_trace)


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
