"""Pools of upstreams as `relay.toml` would describe them, and an attempt at one of their places."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from app.errors import Problem, RelayError
from app.upstream.place import Place
from app.upstream.pool import Pool
from tests.relay import settings_for

UNUSED = "http://127.0.0.1:9/v1"
PAYLOAD: dict[str, object] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def table(base_url: str = UNUSED, **fields: Any) -> dict[str, Any]:
    return {"base_url": base_url, **fields}


@contextlib.asynccontextmanager
async def pool_of(tables: dict[str, dict[str, Any]] | None = None, **settings: Any) -> AsyncIterator[Pool]:
    """A pool of `[upstreams.NAME]`; without tables, of the upstream of OPENAI_*."""
    base_url = settings.pop("base_url", UNUSED)
    chosen = settings_for(base_url, upstreams=tables or {}, **({"breaker_failures": 5} | settings))
    pool = Pool.of(chosen, user_agent="sse-relay/test")
    try:
        yield pool
    finally:
        await pool.aclose()


def claimed(pool: Pool, model: str = "m", *, besides: tuple[str, ...] = ()) -> Place:
    place = pool.claim(model, besides=besides)
    assert place is not None
    return place


async def body_of(place: Place, *, connect_s: float = 5, payload: dict[str, object] | None = None) -> bytes:
    """All that upstream answers; the place is still held."""
    answer = await place.open(payload or PAYLOAD, connect_s=connect_s, sent=lambda: None)
    try:
        body = b""
        while piece := await answer.read():
            body += piece
        return body
    finally:
        answer.close()


async def attempt(place: Place, **options: Any) -> Problem | None:
    """As a generation would: the whole answer, or how it failed; the place is given back."""
    try:
        await body_of(place, **options)
    except RelayError as error:
        place.failed(error.problem)
        return error.problem
    place.succeeded()
    return None
