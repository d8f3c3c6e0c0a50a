"""The client for asyncio: I/O alone; what to do is in `reading`."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Final, Self, TypeVar

import httpx2

from app.client import connecting, wire
from app.client.events import Answer, ClientEvent
from app.client.problems import unreachable
from app.client.reading import Reading, ignore
from app.client.steps import End, Open, Pause, Persistence, Receive

T = TypeVar("T")


class AsyncRelayClient:
    """One relay. `reconnects` bounds the tries in a row to get a lost stream back, the first after about
    `backoff_seconds`, each next one after twice as long, 8 s at most. A connection without a byte for `silence_seconds`
    is taken for lost. `headers` go with every request. Raises ValueError for a URL or a header that cannot be sent.

    Tasks may share it. An answer is read by one task, and may be stopped by any.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        reconnects: int = 5,
        backoff_seconds: float = 0.25,
        silence_seconds: float = connecting.SILENCE_SECONDS,
    ) -> None:
        self.url: Final = url.rstrip("/")
        self._persistence: Final = Persistence(reconnects, backoff_seconds)
        self._http: Final = httpx2.AsyncClient(**connecting.options(self.url, headers, silence_seconds))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def check(self) -> None:
        """Raises RelayProblem (`unreachable`) when nothing answers there."""
        await self._exchange(wire.HEALTH)

    def stream(
        self, messages: wire.Messages, *, on_done: Callable[[Answer], None] = ignore, **fields: object
    ) -> "AsyncAnswerStream":
        """One generation, begun by the first step of reading it. `fields` are those of `POST /chat/stream`; None leaves
        one out. `on_done` is told the answer when it is whole or was stopped."""
        return AsyncAnswerStream(self._http, Reading(wire.ask(messages, fields), self._persistence, on_done=on_done))

    def attach(self, stream_id: str, *, after: int = -1) -> "AsyncAnswerStream":
        """A stream that was begun before, in whatever process, from behind the event `after` on. Nothing is left to be
        read of one that is over when `after` is its last event."""
        request = wire.attach(stream_id, after)
        return AsyncAnswerStream(self._http, Reading(request, self._persistence, stream_id=stream_id, after=after))

    async def result(self, stream_id: str) -> Answer:
        """What there is of an answer by now, also of one that failed. Raises RelayProblem when there is none."""
        return wire.decode_result(*await self._exchange(wire.result(stream_id)))

    async def _exchange(self, request: wire.Request) -> tuple[wire.Head, bytes]:
        try:
            response = await self._http.request(request.method, request.path, headers=request.headers)
        except httpx2.RequestError as error:
            raise unreachable(self.url, error) from error
        return connecting.head(response), response.content


class AsyncAnswerStream:
    """An answer as it arrives; made by AsyncRelayClient, to be iterated once.

    It closes itself at its end; read it inside `async with` where the loop may be left before. Leaving closes the
    connection alone, and the relay waits its grace for a reader to come back; `stop` ends the generation at once.
    """

    def __init__(self, http: httpx2.AsyncClient, reading: Reading) -> None:
        self._http: Final = http
        self._reading: Final = reading
        self._response: httpx2.Response | None = None
        self._chunks: AsyncGenerator[bytes, None] | None = None
        self._waiting: asyncio.Timeout | None = None

    @property
    def id(self) -> str | None:
        """The stream's id, None until the relay has answered."""
        return self._reading.id

    @property
    def seq(self) -> int:
        """The cursor: the `seq` of the last event that was handed out, -1 before the first one."""
        return self._reading.seq

    @property
    def answer(self) -> Answer:
        """What was handed out of the answer so far, also after a failure."""
        return self._reading.answer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        try:
            await self._disconnect()
        finally:
            self._reading.left()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ClientEvent:
        """The next event. Raises RelayProblem once the stream has failed."""
        while True:
            match self._reading.next_step():
                case ClientEvent() as event:
                    return event
                case Open(request):
                    await self._open(request)
                case Receive():
                    self._reading.received(await self._receive())
                case Pause(seconds):
                    await self._disconnect()
                    await self._unless_hung_up(asyncio.sleep(seconds))
                    self._reading.paused()
                case End(problem):
                    await self._disconnect()
                    raise problem or StopAsyncIteration

    async def collect(self) -> Answer:
        """Reads to the end. Raises RelayProblem when the answer is not whole; `answer` is then what there is of it."""
        async with self:
            async for _ in self:
                pass
        return self.answer

    async def stop(self) -> None:
        """Ends the generation, and keeps what was written: the last event is `done`, finish_reason "cancelled".

        From any task, or inside the loop over the events; idempotent, raises nothing. Before the relay has answered
        leaving is what stops the generation; where the relay cannot be told, it ends the generation after its grace.
        """
        if request := self._reading.stop():
            self._reading.told(await self._tell(request))
        if self._reading.hung_up and self._waiting and not self._waiting.expired():
            self._waiting.reschedule(0)

    async def _tell(self, request: wire.Request) -> bool:
        if self._http.is_closed:
            return False
        try:
            response = await self._http.request(
                request.method, request.path, headers=request.headers, extensions=connecting.stop_extensions()
            )
        except httpx2.RequestError:
            return False
        return response.is_success

    async def _open(self, request: wire.Request) -> None:
        try:
            self._response = await self._unless_hung_up(
                self._http.send(
                    self._http.build_request(
                        request.method, request.path, content=request.body, headers=request.headers
                    ),
                    stream=True,
                )
            )
        except httpx2.RequestError as error:
            self._reading.unreachable(unreachable(str(self._http.base_url), error))
            return
        if self._response is not None:
            self._chunks = self._response.aiter_bytes()
            self._reading.opened(connecting.head(self._response))

    async def _receive(self) -> bytes | None:
        """The next bytes; None when the connection ended, in whatever way: what that means the events tell."""
        if self._chunks is None:
            return None
        try:
            return await self._unless_hung_up(anext(self._chunks, None))
        except httpx2.RequestError:
            return None

    async def _unless_hung_up(self, awaited: Awaitable[T]) -> T | None:
        """What `stop` may have to break off; None when it did."""
        try:
            async with asyncio.timeout(None) as self._waiting:
                return await awaited
        except TimeoutError:
            return None
        finally:
            self._waiting = None

    async def _disconnect(self) -> None:
        chunks, response, self._chunks, self._response = self._chunks, self._response, None, None
        try:
            if chunks is not None:
                await chunks.aclose()
        finally:
            if response is not None:
                await response.aclose()
