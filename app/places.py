"""What a generation needs of upstreams: a place at one of them, for one attempt."""

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Protocol

import msgspec

from app.errors import Problem


class Answer(Protocol):
    """An upstream's answer whose head has come."""

    status: int
    content_type: str | None
    content_encoding: str | None

    async def pour(self, take: Callable[[bytes], bool], at_most: int) -> None:
        """Hands `take` what comes, where it arrives, until it returns False or there is something for `read`: more than
        `at_most` bytes in one piece, the end, a failure.
        """
        ...

    async def read(self) -> bytes: ...
    async def finish(self) -> None: ...
    def close(self) -> None: ...


class Manner(msgspec.Struct, frozen=True):
    """How an upstream differs from others. Limits in seconds, of one attempt, within those of the request.

    `max_streams`: how many it is asked for at once, by all processes that share a log.
    """

    connect_s: float | None = None
    first_token_s: float | None = None
    idle_s: float | None = None
    finish_optional: bool = False
    max_streams: int | None = None


class Place(Protocol):
    """The right to ask one upstream once. It ends with the first of `succeeded`, `failed` and `release`."""

    @property
    def upstream(self) -> str:
        """Its name."""
        ...

    @property
    def model(self) -> str:
        """What it calls the model that was asked for."""
        ...

    @property
    def manner(self) -> Manner: ...

    def open(
        self,
        payload: dict[str, object],
        *,
        connect_s: float,
        sent: Callable[[], None],
        headers: Mapping[str, str] | None = None,
    ) -> Awaitable[Answer]:
        """Asks for a streamed answer, with `headers` beside its own; `sent` is called when the request has left.

        Raises `RelayError`: a status that is no success, or `upstream_timeout` (connect), `upstream_unavailable`,
        `upstream_protocol`.
        """
        ...

    def carried(self) -> None:
        """Content has come."""
        ...

    def succeeded(self) -> None:
        """The answer is whole."""
        ...

    def failed(self, problem: Problem) -> None: ...

    def release(self) -> None:
        """It says nothing about the upstream: the client left, or the generation was stopped."""
        ...


class Pool(Protocol):
    """All upstreams."""

    def serving(self, model: str) -> frozenset[str]:
        """The names of those that serve a model; raises `not_found`."""
        ...

    def claim(self, model: str, *, besides: Collection[str] = ()) -> Place | None:
        """A place at the best upstream that may be asked now and is none of `besides`.

        None while those that may be asked are full. Raises `upstream_unavailable`, with the time until one may be tried
        again, where none may be; with `besides`, None.
        """
        ...

    def room(self) -> int | None:
        """How many more streams all upstreams together would take; None where one has no limit."""
        ...

    def on_room(self, tell: Callable[[], None]) -> None:
        """`tell` is called whenever a place has become free, or an upstream may be asked again."""
        ...
