import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from ipaddress import ip_address
from typing import Final, Self

import httpx2
import msgspec

from app.client.conversation import Message
from app.client.events import (
    ClientEvent,
    ErrorObject,
    Lines,
    RelayProblem,
    connection_lost,
    decode_event,
    decode_refusal,
)

CONNECT_SECONDS: Final = 5.0
SILENCE_SECONDS: Final = 60.0
"""Four heartbeats of the relay's default; after so long without a byte the connection is taken for lost."""
MAX_REFUSAL_BYTES: Final = 256 * 1024
MAX_BACKOFF_SECONDS: Final = 8.0
MAX_RETRY_AFTER_SECONDS: Final = 30.0


class RelayClient:
    """One relay. `reconnects` bounds the tries in a row to get a lost stream back, the first after about
    `backoff_seconds`, each next one after twice as long, 8 s at most."""

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        reconnects: int = 5,
        backoff_seconds: float = 0.25,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        self.url: Final = url.rstrip("/")
        self._reconnects: Final = reconnects
        self._backoff_seconds: Final = backoff_seconds
        self._http: Final = httpx2.AsyncClient(
            base_url=self.url,
            headers=headers,
            timeout=httpx2.Timeout(CONNECT_SECONDS, read=silence_seconds),
            trust_env=not _is_loopback(httpx2.URL(url).host),  # a proxy cannot reach this machine's loopback
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def check(self) -> None:
        """Raises RelayProblem (`unreachable`) when nothing answers there."""
        try:
            await self._http.get("/healthz")
        except httpx2.TransportError as error:
            raise _unreachable(self._http.base_url, error) from error

    def stream(self, messages: str | Sequence[Message], **fields: object) -> "AnswerStream":
        """One generation, begun on entering it. `fields` are those of `POST /chat/stream`; None leaves one out."""
        question = {"message": messages} if isinstance(messages, str) else {"messages": messages}
        given = {name: value for name, value in fields.items() if value is not None}
        body = msgspec.json.encode({"on_disconnect": "wait"} | question | given)
        return AnswerStream(self._http, body, self._reconnects, self._backoff_seconds)


class AnswerStream:
    """An answer as it arrives: iterate it inside `async with`. Leaving early closes the connection alone, and the relay
    waits its grace for a reader to come back; `stop` ends the generation at once.
    """

    def __init__(self, http: httpx2.AsyncClient, body: bytes, reconnects: int, backoff_seconds: float) -> None:
        self.id: str | None = None
        self._http: Final = http
        self._body: Final = body
        self._reconnects: Final = reconnects
        self._backoff_seconds: Final = backoff_seconds
        self._response: httpx2.Response | None = None
        self._chunks: AsyncGenerator[bytes, None] | None = None
        self._lines = Lines()
        self._events: deque[ClientEvent] = deque()
        self._seq = -1
        self._partial = False
        self._resumable = False
        self._failures = 0
        self._over = False
        self._problem: RelayProblem | None = None

    async def __aenter__(self) -> Self:
        """Raises RelayProblem when the relay refuses, or nothing that is a relay answers."""
        headers = {"Accept": "text/event-stream", "Content-Type": "application/json"}
        await self._open(self._http.build_request("POST", "/chat/stream", content=self._body, headers=headers))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ClientEvent:
        """The next event. Raises RelayProblem once the stream has failed."""
        while not self._events:
            if self._problem:
                raise self._problem
            if self._over:
                raise StopAsyncIteration
            await self._read()
        return self._events.popleft()

    async def stop(self) -> None:
        """Ends the generation; the stream then ends with `done`, finish_reason "cancelled". Idempotent.

        Before the relay has answered there is no id: leaving is what stops the generation then.
        """
        if self.id is None or self._over:
            return
        try:
            response = await self._http.delete(f"/chat/stream/{self.id}")
        except httpx2.TransportError as error:
            raise _unreachable(self._http.base_url, error) from error
        if response.is_error:
            raise decode_refusal(response.content, response.status_code, response.headers.get("retry-after", ""))

    async def _open(self, request: httpx2.Request) -> None:
        try:
            response = await self._http.send(request, stream=True)
        except httpx2.TransportError as error:
            raise _unreachable(self._http.base_url, error) from error
        self._response, self._chunks = response, response.aiter_bytes()
        self.id = response.headers.get("x-stream-id", self.id)
        if response.status_code != 200 or not response.headers.get("content-type", "").startswith("text/event-stream"):
            body = await self._refusal()
            await self._close()
            raise decode_refusal(body, response.status_code, response.headers.get("retry-after", ""))

    async def _refusal(self) -> bytes:
        body = b""
        while len(body) < MAX_REFUSAL_BYTES and (chunk := await self._chunk()):
            body += chunk
        return body

    async def _chunk(self) -> bytes | None:
        """The next bytes; None when the connection ended, in whatever way: what that means the events tell."""
        if self._chunks is None:
            return None
        try:
            return await anext(self._chunks, None)
        except (httpx2.TransportError, httpx2.DecodingError):
            return None

    async def _read(self) -> None:
        chunk = await self._chunk()
        if chunk is None:
            await self._resume()
            return
        for data in self._lines.receive_data(chunk):
            self._take(data)

    def _take(self, data: bytes) -> None:
        if self._over:
            return
        if data == b"[DONE]":
            self._over = True
            self._problem = connection_lost("The stream ended without saying how.", partial=self._partial)
            return
        event = decode_event(data)
        if event.seq is not None:
            if event.seq <= self._seq:
                return  # replayed
            self._seq, self._failures = event.seq, 0
        self._note(event)
        self._events.append(event)

    def _note(self, event: ClientEvent) -> None:
        self._partial |= bool(event.content)
        match event.type:
            case "start":
                self.id, self._resumable = event.id or self.id, event.resumable
            case "live_only":
                self._resumable = False
            case "done":
                self._over = True
            case "error":
                self._over = True
                self._problem = RelayProblem(event.error or ErrorObject("internal", "The relay did not say why."))

    async def _resume(self) -> None:
        """Comes back to where the connection was lost. Raises RelayProblem when that cannot be, or not in time."""
        await self._close()
        wait_seconds = 0.0
        while self._resumable and self._failures < self._reconnects:
            backoff_seconds = min(MAX_BACKOFF_SECONDS, self._backoff_seconds * 2**self._failures)
            self._failures += 1
            # Jitter: a relay that restarts must not meet all its readers in the same moment.
            await asyncio.sleep(max(wait_seconds, backoff_seconds * random.uniform(0.5, 1)))
            try:
                await self._open(
                    self._http.build_request("GET", f"/chat/stream/{self.id}", params={"after": self._seq})
                )
            except RelayProblem as problem:
                if not problem.retryable:
                    raise
                wait_seconds = min(MAX_RETRY_AFTER_SECONDS, problem.retry_after_s or 0)
            else:
                return
        raise connection_lost(
            "The connection to the relay was lost before the answer was whole.", partial=self._partial
        )

    async def _close(self) -> None:
        chunks, response, self._chunks, self._response = self._chunks, self._response, None, None
        self._lines = Lines()
        if chunks is not None:
            await chunks.aclose()
        if response is not None:
            await response.aclose()


def _unreachable(url: httpx2.URL, error: httpx2.TransportError) -> RelayProblem:
    reason = str(error) or type(error).__name__
    return RelayProblem(ErrorObject("unreachable", f"No relay at {url}: {reason}", retryable=True))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
