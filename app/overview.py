"""What an operator is shown of a process as it is now, and the one thing he can do about it."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

from app.errors import CODES
from app.settings import Settings
from app.stream import Waiting

if TYPE_CHECKING:
    from app.fleet import Fleet
    from app.relay import Generation

Status = Literal["ready", "not ready", "draining"]


class UpstreamNow(Protocol):
    """One upstream. `failures` are those in a row; `max_streams` is None where there is no limit. Times in seconds from
    now, 0 for what is over.
    """

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> Literal["closed", "open", "half_open"]: ...
    @property
    def in_use(self) -> int: ...
    @property
    def max_streams(self) -> int | None: ...
    @property
    def failures(self) -> int: ...
    @property
    def opens_in_s(self) -> float: ...
    @property
    def rests_s(self) -> float: ...


class WebhookNow(msgspec.Struct, frozen=True):
    """Calls that have not ended, and since the process began those that have, by how they did."""

    waiting: int
    delivered: int
    refused: int
    given_up: int
    dropped: int
    lost: int


def _nothing_refused() -> Counter[tuple[int, str]]:
    """A series that only begins with its first refusal would hide it from whoever asks for an increase."""
    return Counter({(code.status, name): 0 for name, code in CODES.items()})


class Counts(msgspec.Struct):
    """What a process has counted since it began, beside the ends of streams. Numbers move, and are read when asked for.

    `started`: generations. `refused`: HTTP answers that were an error, by status and code. `resumed` and `replayed`:
    readers that came to a stream from a cursor on, and from its beginning. `cut_off`: readers that took nothing for the
    send timeout; `sent_off`: those whose response was ended before the stream, to come back.
    """

    started: int = 0
    refused: Counter[tuple[int, str]] = msgspec.field(default_factory=_nothing_refused)
    resumed: int = 0
    replayed: int = 0
    cut_off: int = 0
    sent_off: int = 0

    def attached(self, after: int) -> None:
        if after < 0:
            self.replayed += 1
        else:
            self.resumed += 1


class StreamNow(msgspec.Struct, frozen=True):
    """A generation of this process. `lag_bytes`: how much of its log the slowest reader has still to take."""

    id: str
    caller: str
    model: str
    upstream: str | None
    phase: Waiting
    age_s: float
    readers: int
    lag_bytes: int


class Now(msgspec.Struct, frozen=True):
    """`streams` have their place, `queued` wait for one. `shared_log` and `webhook` are None without one."""

    status: Status
    shared_log: str | None
    streams: int
    max_streams: int
    queued: int
    max_queued: int
    log_bytes: int
    max_log_bytes: int
    upstreams: Sequence[UpstreamNow]
    webhook: WebhookNow | None
    counts: Counts


class Overview:
    """Of one process: what others generate is not seen here."""

    def __init__(
        self,
        settings: Settings,
        fleet: "Fleet",
        upstreams: Callable[[], Sequence[UpstreamNow]],
        webhook: Callable[[], WebhookNow | None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._fleet = fleet
        self._upstreams = upstreams
        self._webhook = webhook

    def now(self) -> Now:
        streams = self._fleet.streams
        capacity = streams.means.capacity
        return Now(
            status=self._status(),
            shared_log=self._fleet.shared_log,
            streams=capacity.in_use,
            max_streams=capacity.max_streams,
            queued=capacity.queued,
            max_queued=capacity.max_queued,
            log_bytes=streams.held_bytes,
            max_log_bytes=self._settings.log_total_bytes,
            upstreams=self._upstreams(),
            webhook=self._webhook(),
            counts=self._fleet.counts,
        )

    def streams(self) -> list[StreamNow]:
        """The oldest first; those that wait for their place among them."""
        return [_shown(generation) for generation in sorted(self._fleet.streams.live, key=lambda each: -each.elapsed_s)]

    def stop(self, stream_id: str) -> bool:
        """Ends a generation as its caller's own stop does; False where none of that id runs here."""
        for generation in self._fleet.streams.live:
            if generation.id == stream_id:
                generation.cancel()
                return True
        return False

    def _status(self) -> Status:
        """As the public `/readyz` has it."""
        if self._fleet.streams.draining:
            return "draining"
        refuses = self._fleet.shared_log == "away" and self._settings.redis_away == "refuse"
        return "not ready" if refuses else "ready"


def _shown(generation: "Generation") -> StreamNow:
    return StreamNow(
        id=generation.id,
        caller=generation.chat.grant.name,
        model=generation.chat.model,
        upstream=generation.upstream,
        phase=generation.waiting,
        age_s=round(generation.elapsed_s, 3),
        readers=generation.readers,
        lag_bytes=generation.log.lag_bytes,
    )
