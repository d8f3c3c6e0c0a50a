"""The server behind the scripted upstream: HTTP by hand, because it has to be able to speak it wrongly.

It reads requests properly, plays to each the steps of its answer, and counts. The client's departure ends an answer in
whatever step it is, at once.
"""

import asyncio
import itertools
import json
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Literal, Self

import h11
import msgspec


class Request(msgspec.Struct, frozen=True):
    """What a client asked: `headers` in lower case, `at` in loop time, `connection` counted from 1."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    at: float
    connection: int


Ending = Literal["keep", "close", "reset"]


class Exchange:
    """One request and its answer under way: what the steps act on."""

    def __init__(self, request: Request, write: Callable[[bytes], Awaitable[None]]) -> None:
        self.request = request
        self.write = write
        self.framing: Literal["none", "chunked", "length", "close"] = "none"
        self.ending: Ending | None = None

    async def body(self, data: bytes) -> None:
        if self.framing == "chunked":
            data = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        await self.write(data)

    async def play(self, answer: "Answer") -> None:
        for step in answer:
            await step(self)
            if self.ending:
                return
        if self.framing == "chunked":
            await self.write(b"0\r\n\r\n")
        self.ending = "keep" if self.framing in ("chunked", "length") else "close"


Step = Callable[[Exchange], Awaitable[object]]
Answer = Sequence[Step]


class Connection(asyncio.Protocol):
    """One client's connection: its requests one after the other, and the moment it leaves."""

    def __init__(self, upstream: "Upstream", number: int) -> None:
        self._upstream, self._number = upstream, number
        self._transport: Any = None
        self._parser = h11.Connection(h11.SERVER)
        self._received: list[h11.Event] = []
        self._answering: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._upstream.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self._parser.receive_data(data)
        self._next()

    def eof_received(self) -> None:
        self.interrupt("aborted")

    def connection_lost(self, exc: Exception | None) -> None:
        self.interrupt("aborted")
        self._upstream.connections.discard(self)
        self._upstream.changed()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def write(self, data: bytes) -> None:
        self._transport.write(data)
        await asyncio.sleep(0)  # pieces leave one by one, and others get their turn between them
        await self._writable.wait()

    def interrupt(self, outcome: Literal["ended", "aborted"]) -> None:
        if self._answering:
            self._answering.cancel()
            self._over(outcome)

    def shut(self) -> None:
        self.interrupt("ended")
        self._transport.abort()

    def _next(self) -> None:
        if self._answering is None and (request := self._read()):
            answer = self._upstream.begin(request)
            self._answering = self._upstream.spawn(self._answer(Exchange(request, self.write), answer))

    def _read(self) -> Request | None:
        while (received := self._parser.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            assert isinstance(received, h11.Request | h11.Data | h11.EndOfMessage)
            self._received.append(received)
            if isinstance(received, h11.EndOfMessage):
                return self._whole()
        return None

    def _whole(self) -> Request:
        line, *parts, _ = self._received
        rest, _ = self._parser.trailing_data
        self._received, self._parser = [], h11.Connection(h11.SERVER)
        if rest:
            self._parser.receive_data(rest)
        assert isinstance(line, h11.Request)
        body = b"".join(part.data for part in parts if isinstance(part, h11.Data))
        return Request(
            method=line.method.decode(),
            path=line.target.decode(),
            headers={name.decode(): value.decode() for name, value in line.headers},
            body=_parsed(body),
            at=asyncio.get_running_loop().time(),
            connection=self._number,
        )

    async def _answer(self, exchange: Exchange, answer: Answer) -> None:
        try:
            await exchange.play(answer)
        finally:
            if self._answering:
                self._over("ended")
            self._proceed(exchange.ending)

    def _over(self, outcome: Literal["ended", "aborted"]) -> None:
        self._answering = None
        self._upstream.count(outcome)

    def _proceed(self, ending: Ending | None) -> None:
        match ending:
            case "keep":
                self._next()
            case "close":
                self._transport.close()
            case "reset":
                linger = struct.pack("ii", 1, 0)
                self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self._transport.abort()
            case None:  # the client left, or a step failed
                self._transport.abort()


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


async def _unscripted(exchange: Exchange) -> None:
    raise AssertionError(f"no answer was scripted for {exchange.request}")


class Upstream:
    """Answers by script, and counts: `opened` = `active` + `ended` (by us) + `aborted` (left by the client)."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.connections: set[Connection] = set()
        self.opened = self.ended = self.aborted = 0
        self.last_abort_at: float | None = None
        self._scripts: dict[str | None, deque[Answer]] = {None: deque([(_unscripted,)])}
        self._tasks: list[asyncio.Task[None]] = []
        self._numbers = itertools.count(1)
        self._change = asyncio.Event()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self, next(self._numbers)), "127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        """Ends what is open, and raises what a step raised: a script that failed proves nothing."""
        self._server.close()
        for connection in list(self.connections):
            connection.shut()
        await self.wait_for(lambda upstream: not upstream.connections)
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    def __repr__(self) -> str:
        counts = f"opened={self.opened} active={self.active} ended={self.ended} aborted={self.aborted}"
        return f"<Upstream {counts} connections={len(self.connections)} requests={len(self.requests)}>"

    @property
    def active(self) -> int:
        return self.opened - self.ended - self.aborted

    def script(self, *answers: Answer, model: str | None = None) -> None:
        """These answers, in order, the last one for ever: to requests for `model`, or to all that have no script."""
        self._scripts[model] = deque(answers)

    async def wait_for(self, predicate: Callable[["Upstream"], bool], deadline_seconds: float = 5) -> None:
        """Until `predicate` holds, looked at on every change; AssertionError with the counters when it never does."""
        try:
            async with asyncio.timeout(deadline_seconds):
                while not predicate(self):
                    await self._change.wait()
        except TimeoutError:
            raise AssertionError(f"not within {deadline_seconds} s: {self!r}") from None

    def changed(self) -> None:
        self._change.set()
        self._change = asyncio.Event()

    def begin(self, request: Request) -> Answer:
        self.requests.append(request)
        self.opened += 1
        self.changed()
        model = request.body.get("model") if isinstance(request.body, dict) else None
        answers = self._scripts.get(model) or self._scripts[None]
        return answers.popleft() if len(answers) > 1 else answers[0]

    def spawn(self, answering: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self._tasks.append(asyncio.create_task(answering, name="upstream answer"))
        return self._tasks[-1]

    def count(self, outcome: Literal["ended", "aborted"]) -> None:
        if outcome == "aborted":
            self.aborted += 1
            self.last_abort_at = asyncio.get_running_loop().time()
        else:
            self.ended += 1
        self.changed()
