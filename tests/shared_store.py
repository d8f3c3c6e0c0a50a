"""The shared log as the suite of all logs sees it: every entry is brought to a real Redis in the step that adds it."""

import itertools
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from redis import Redis
from redis.exceptions import ConnectionError as NotThere

from app.events import Event, Start
from app.log import codec
from app.log.budget import Budget
from app.log.keys import Birth, Keys
from app.log.memory import MemoryLog
from app.log.reader import Reader
from app.log.redis import APPEND, CLOSE
from app.log.shared import Parcel, SharedLog

START_SECONDS: Final = 10
KEEP_MS: Final = 60_000
BIRTH: Final = Birth("p_1", "", None, "m", "r_1", 0.0, 1)
_numbers = itertools.count()


@contextmanager
def redis_in(folder: Path) -> Iterator[Redis]:
    """A server that keeps nothing, on a socket in the folder."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed (tests/install)")
    path = str(folder / "redis.sock")
    command = [program, "--port", "0", "--unixsocket", path, "--save", "", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process, Redis(unix_socket_path=path) as client:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            with suppress(NotThere):
                client.ping()
                break
        try:
            yield client
        finally:
            process.terminate()


class Postman:
    """Brings what is marked at once. While `away` it brings nothing."""

    def __init__(self, redis: Redis) -> None:
        self.redis: Any = redis
        self.keys: Final = Keys(f"test{next(_numbers)}")
        self.away = False

    def mark(self, log: SharedLog) -> None:
        while not self.away and not log.settled:
            self.deliver(log, log.parcel())

    def deliver(self, log: SharedLog, parcel: Parcel) -> list[Any]:
        """What the script answered; the log is told of it."""
        deviations: list[Any] = self.bring(log.id, parcel) or []
        if not deviations:
            log.acknowledge(parcel)
        elif deviations[0][1] >= 0:
            log.resume_from(deviations[0][1])
        else:
            [(behind, packed)] = self.batches(log.id)[-1:]
            [end] = codec.unpack(packed)
            log.supersede(end, behind - 1)  # type: ignore[arg-type]
        return deviations

    def bring(self, id: str, parcel: Parcel) -> Any:
        birth = msgspec.msgpack.encode(parcel.birth) if parcel.birth else b""
        keep_ms = "" if parcel.keep_ms is None else parcel.keep_ms
        place = (parcel.first, parcel.behind, parcel.entries, parcel.state)
        names = (self.keys.meta(id), self.keys.events(id))
        return self.redis.eval(APPEND, 2, *names, *place, birth, keep_ms, parcel.key, parcel.frees, parcel.chat)

    def end(self, id: str, terminal: Event) -> bool:
        """As another process ends a stream whose writer it takes for dead."""
        names = (self.keys.meta(id), self.keys.events(id))
        return bool(self.redis.eval(CLOSE, 2, *names, codec.pack_batch([terminal]), KEEP_MS, "", b""))

    def batches(self, id: str) -> list[tuple[int, bytes]]:
        items = self.redis.xrange(self.keys.events(id))
        return [(int(at.split(b"-")[0]), fields[b"e"]) for at, fields in items]

    def state(self, id: str) -> str:
        return (self.redis.hget(self.keys.meta(id), "state") or b"").decode()

    def held(self, id: str) -> list[Event]:
        """What another process reads of a stream, entry by entry."""
        events: list[Event] = []
        for behind, packed in self.batches(id):
            batch = codec.unpack(packed)
            events += batch[len(events) - (behind - len(batch)) :]
        return events


class SharedStore:
    """Logs in Redis where they can be resumed, else in memory."""

    def __init__(
        self, redis: Redis, total_bytes: int = 1 << 30, reclaim: Callable[[Budget], None] = lambda _: None
    ) -> None:
        self.budget = Budget(total_bytes, reclaim)
        self.postman = Postman(redis)

    def log(self, *, resumable: bool = True, max_bytes: int = 1 << 20, max_lag_bytes: int = 1 << 20) -> MemoryLog:
        start = Start("s_1", "m", resumable)
        if not resumable:
            return MemoryLog(start, self.budget, max_bytes=max_bytes, max_lag_bytes=max_lag_bytes)
        return SharedLog(
            start,
            self.budget,
            self.postman,
            BIRTH,
            life_ms=KEEP_MS,
            keep_ms=KEEP_MS,
            max_bytes=max_bytes,
            max_lag_bytes=max_lag_bytes,
        )

    @property
    def used_bytes(self) -> int:
        return self.budget.used_bytes


def taken(reader: Reader) -> list[Event]:
    """All that there is for a reader now."""
    events: list[Event] = []
    while some := reader.peek():
        events += some
        reader.advance(len(some))
    return events
