"""The blocking client: I/O alone; what to do is in `reading`. It starts no thread and no loop."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Self

import httpx2

from app.client import connecting, wire
from app.client.events import Answer, ClientEvent
from app.client.problems import unreachable
from app.client.reading import Reading, ignore
from app.client.steps import End, Open, Pause, Persistence, Receive


class RelayClient:
    """One relay. `reconnects` bounds the tries in a row to get a lost stream back, the first after about
    `backoff_seconds`, each next one after twice as long, 8 s at most. A connection without a byte for `silence_seconds`
    is taken for lost. `headers` go with every request. Raises ValueError for a URL or a header that cannot be sent.

    Threads may share it. An answer is read by one thread, and may be stopped by any.
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
        self._http: Final = httpx2.Client(**connecting.options(self.url, headers, silence_seconds))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def check(self) -> None:
        """Raises RelayProblem (`unreachable`) when nothing answers there."""
        self._exchange(wire.HEALTH)

    def stream(
        self, messages: wire.Messages, *, on_done: Callable[[Answer], None] = ignore, **fields: object
    ) -> "AnswerStream":
        """One generation, begun by the first step of reading it. `fields` are those of `POST /chat/stream`; None leaves
        one out. `on_done` is told the answer when it is whole or was stopped."""
        return AnswerStream(self._http, Reading(wire.ask(messages, fields), self._persistence, on_done=on_done))

    def attach(self, stream_id: str, *, after: int = -1) -> "AnswerStream":
        """A stream that was begun before, in whatever process, from behind the event `after` on. Nothing is left to be
        read of one that is over when `after` is its last event."""
        request = wire.attach(stream_id, after)
        return AnswerStream(self._http, Reading(request, self._persistence, stream_id=stream_id, after=after))

    def result(self, stream_id: str) -> Answer:
        """What there is of an answer by now, also of one that failed. Raises RelayProblem when there is none."""
        return wire.decode_result(*self._exchange(wire.result(stream_id)))

    def _exchange(self, request: wire.Request) -> tuple[wire.Head, bytes]:
        try:
            response = self._http.request(request.method, request.path, headers=request.headers)
        except httpx2.RequestError as error:
            raise unreachable(self.url, error) from error
        return connecting.head(response), response.content


class AnswerStream:
    """An answer as it arrives; made by RelayClient, to be iterated once.

    It closes itself at its end; read it inside `with` where the loop may be left before. Leaving closes the connection
    alone, and the relay waits its grace for a reader to come back; `stop` ends the generation at once.
    """

    def __init__(self, http: httpx2.Client, reading: Reading) -> None:
        self._http: Final = http
        self._reading: Final = reading
        self._response: httpx2.Response | None = None
        self._chunks: Iterator[bytes] = iter(())
        self._socket: socket.socket | None = None
        self._hung_up: Final = threading.Event()

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._disconnect()
        self._reading.left()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ClientEvent:
        """The next event. Raises RelayProblem once the stream has failed."""
        while True:
            match self._reading.next_step():
                case ClientEvent() as event:
                    return event
                case Open(request):
                    self._open(request)
                case Receive():
                    self._reading.received(self._receive())
                case Pause(seconds):
                    self._disconnect()
                    self._hung_up.wait(seconds)
                    self._reading.paused()
                case End(problem):
                    self._disconnect()
                    raise problem or StopIteration

    def collect(self) -> Answer:
        """Reads to the end. Raises RelayProblem when the answer is not whole; `answer` is then what there is of it."""
        with self:
            for _ in self:
                pass
        return self.answer

    def stop(self) -> None:
        """Ends the generation, and keeps what was written: the last event is `done`, finish_reason "cancelled".

        From any thread, or inside the loop over the events; idempotent, raises nothing. Before the relay has answered
        leaving is what stops the generation; where the relay cannot be told, it ends the generation after its grace.
        """
        if request := self._reading.stop():
            self._reading.told(self._tell(request))
        if self._reading.hung_up:
            self._hung_up.set()
            self._shut()

    def _tell(self, request: wire.Request) -> bool:
        if self._http.is_closed:
            return False
        try:
            response = self._http.request(
                request.method, request.path, headers=request.headers, extensions=connecting.stop_extensions()
            )
        except httpx2.RequestError:
            return False
        return response.is_success

    def _open(self, request: wire.Request) -> None:
        try:
            self._response = self._http.send(
                self._http.build_request(
                    request.method,
                    request.path,
                    content=request.body,
                    headers=request.headers,
                    extensions={"trace": self._trace},
                ),
                stream=True,
            )
        except httpx2.RequestError as error:
            self._reading.unreachable(unreachable(str(self._http.base_url), error))
        else:
            self._chunks = self._response.iter_bytes()
            self._reading.opened(connecting.head(self._response))

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        """Nothing else leads to the socket before there is a response."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._socket = info["return_value"].get_extra_info("socket")
            if self._reading.hung_up:
                self._shut()

    def _receive(self) -> bytes | None:
        """The next bytes; None when the connection ended, in whatever way: what that means the events tell."""
        try:
            return next(self._chunks, None)
        except httpx2.RequestError:
            return None

    def _shut(self) -> None:
        """Wakes a thread that waits for this connection: closing a socket would leave it waiting."""
        connection = self._socket  # the reader's thread may take it away in this moment
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _disconnect(self) -> None:
        response, self._response, self._socket, self._chunks = self._response, None, None, iter(())
        if response is not None:
            response.close()
