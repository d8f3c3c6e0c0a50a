"""Connections to one Redis or Valkey server, and the two scripts that change a stream there.

A small pool of connections for commands, with short limits, and three of their own: for every append, for the lease of
the process, and for the read that waits for what others write. A call that fails has closed its connection, the next
one opens another: whoever calls decides whether and when to try again, so the client's own retries are off.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast

from redis.asyncio import BlockingConnectionPool, Connection, ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

COMMAND_SECONDS: Final = 1.0
"""For a connection to be made, or an answer to come."""

MAX_COMMAND_CONNECTIONS: Final = 16

POOL_SECONDS: Final = 3.0
"""For a connection of the pool to be free: a herd of readers that come back may be longer than one call."""

BLOCK_SECONDS: Final = 1.0
"""How long the server is asked to wait for something new; a live one answers within that and `COMMAND_SECONDS`."""

READ_BATCHES: Final = 512
"""Batches in one answer, over all streams: at most 256 entries each. Of one stream at most `STREAM_BATCHES`."""

STREAM_BATCHES: Final = 4

AWAY: Final = (RedisError, OSError, TimeoutError)
"""What a call raises while the server cannot be used: gone, slow, full, loading, a replica."""

APPEND: Final = Path(__file__).with_name("append.lua").read_text()
CLOSE: Final = Path(__file__).with_name("close.lua").read_text()
APPEND_SHA: Final = hashlib.sha1(APPEND.encode(), usedforsecurity=False).hexdigest()

Batch = tuple[int, bytes]
"""The seq behind the last entry, and the entries as `codec` packs them."""


def stay_cancelled() -> None:
    """To be called behind what waits in redis-py: with a time limit it uses `wait_for`, which before Python 3.12 loses
    a cancellation that comes with the answer (bpo-37658). A generation that had been stopped went on, and was paid for.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class _Commands(Redis):
    async def execute_command(self, *args: Any, **options: Any) -> Any:
        answer = await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        stay_cancelled()
        return answer


class Server:
    """Every method raises one of `AWAY` when the server cannot be used."""

    def __init__(self, url: str) -> None:
        # RESP2: its answers to XREAD are plain lists, which cost least to take apart.
        common: dict[str, Any] = {
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "socket_connect_timeout": COMMAND_SECONDS,
            "health_check_interval": 0,
        }
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_COMMAND_CONNECTIONS,
            timeout=POOL_SECONDS,
            socket_timeout=COMMAND_SECONDS,
            **common,
        )
        self.commands: Final = _Commands(connection_pool=pool)
        self._lone: Final[Any] = ConnectionPool.from_url(url, socket_timeout=None, **common)
        self._appending: Connection | None = None
        self._waiting: Connection | None = None
        self._living: Connection | None = None

    async def append(self, keys: Sequence[str], args: Sequence[bytes | str | int], *, within_s: float) -> list[Any]:
        """Runs append.lua; the deviations that it answers with."""
        if self._appending is None:
            self._appending = self._lone.make_connection()
        async with asyncio.timeout(within_s):
            try:
                return await _call(self._appending, "EVALSHA", APPEND_SHA, len(keys), *keys, *args)
            except NoScriptError:
                return await _call(self._appending, "EVAL", APPEND, len(keys), *keys, *args)

    async def renew(self, name: str, ms: int) -> bool:
        """Sets a key that ends after so long, on a connection of its own; whether it was there before."""
        if self._living is None:
            self._living = self._lone.make_connection()
        async with asyncio.timeout(COMMAND_SECONDS):
            return bool(await _call(self._living, "SET", name, "1", "PX", ms, "GET"))

    async def close_lost(self, meta: str, events: str, *, end: bytes, keep_ms: int, key: str, claim: bytes) -> bool:
        """Runs close.lua; False when the stream had ended."""
        return bool(await self.commands.eval(CLOSE, 2, meta, events, end, str(keep_ms), key, claim))

    async def read(self, after: dict[str, str]) -> dict[str, list[tuple[str, dict[bytes, bytes]]]]:
        """Waits for what is new behind the given ids: by key, ids and fields. Nothing, when nothing came."""
        if self._waiting is None:
            self._waiting = self._lone.make_connection()
        count = max(min(STREAM_BATCHES, READ_BATCHES // len(after)), 1)
        asked = ("XREAD", "COUNT", count, "BLOCK", int(BLOCK_SECONDS * 1000), "STREAMS", *after, *after.values())
        async with asyncio.timeout(BLOCK_SECONDS + COMMAND_SECONDS):
            answer = await _call(self._waiting, *asked)
        return {
            key.decode(): [(id.decode(), dict(zip(fields[::2], fields[1::2], strict=True))) for id, fields in items]
            for key, items in answer
        }

    async def batches(self, name: str) -> list[Batch]:
        """All of a stream's entries."""
        return _batches(await self.commands.xrange(name))

    async def last_batch(self, name: str) -> list[Batch]:
        return _batches(await self.commands.xrevrange(name, count=1))

    async def get(self, name: str) -> bytes | None:
        return cast(bytes | None, await self.commands.get(name))

    async def aclose(self) -> None:
        for connection in (self._appending, self._waiting, self._living):
            if connection is not None:
                await connection.disconnect(nowait=True)
        await self.commands.aclose()
        await self.commands.connection_pool.disconnect()


def _batches(items: Any) -> list[Batch]:
    return [(int(id.split(b"-")[0]), fields[b"e"]) for id, fields in items]


async def _call(connection: Connection, *command: Any) -> list[Any]:
    await connection.send_packed_command(connection.pack_command(*command), check_health=False)
    return cast(list[Any], await connection.read_response(disable_decoding=True) or [])
