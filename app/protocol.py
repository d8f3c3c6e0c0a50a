"""HTTP/1.1 as uvicorn speaks it, with four things of ours: a bound on what is no body, no trailers, no pipelining, our
shape of failure.

A second request while the first is being answered ends both: once uvicorn has one waiting it reads no further, and a
client's departure would go unseen.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Final, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.api.connection import ABORT, DEPARTURE, WRITE
from app.errors import RelayError, invalid_request
from app.parting import Parting, Unannounced, shut

SEEING_OFF_SECONDS: Final = 2.0
"""Closing with bytes unread makes the kernel reset the connection, and the answer is lost (RFC 9112 §9.6)."""

WRITE_BUFFER_BYTES: Final = 16 * 1024
"""What waits in the process for a client that is slower than its stream; the kernel's buffer comes before it."""


class PipelinedRequest(Exception):
    """A request that came while another was being answered."""


class HeadTooLarge(Exception):
    """A request line and headers beyond `max_header_bytes`."""


class UnreadBody(Exception):
    """A body beyond its cap, of a request that is being answered without it."""


class UpgradeWithBody(Exception):
    """A request that would change the protocol and has a body (curl --http2, Java's client): llhttp loses the body."""


class Protocol(HttpToolsProtocol):
    """HTTP/1.1, with bounds, no pipelining, and failures in the contract's shape."""

    max_header_bytes = 64 * 1024
    draining = False
    max_body_bytes = 10 * 1024 * 1024
    max_connections = 20_000
    head_timeout_s = 30.0
    _head_bytes = _unfinished_bytes = _body_bytes = 0
    _in_message = _in_head = _went_on = _seen_off = _lost = False
    _timer: asyncio.TimerHandle | None = None
    _tell_departure: Callable[[], None] | None = None
    _idle_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._idle_since = self.loop.time()
        if len(self.connections) > self.max_connections:
            transport.abort()
        else:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        self._lost = True
        # A scope's extensions call us: together they would wait for the collector.
        self.cycle = self.scope = None  # type: ignore[assignment]
        if self._tell_departure is not None:
            self._tell_departure()

    def data_received(self, data: bytes) -> None:
        """httptools tells of a header when it is whole, and of a chunk's extensions never: without an end, in the head
        or behind the body, they have to be counted as they come.
        """
        if self._seen_off:
            return
        if self._timer is None and not self._answering():
            self._expect_head()
        self._went_on = False
        super().data_received(data)
        if self._in_message and not self._went_on and not self.transport.is_closing():
            self._unfinished_bytes += len(data)
            if self._unfinished_bytes > self.max_header_bytes:
                self._head_bytes = self._unfinished_bytes
                self.send_400_response("")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = self._unfinished_bytes = self._body_bytes = 0
        self._in_message = self._in_head = True
        calls = ((ABORT, self.transport.abort), (DEPARTURE, self._watch), (WRITE, self._write_piece))
        self.scope["extensions"] = {name: {"call": call} for name, call in calls}

    def on_url(self, url: bytes) -> None:
        self._grow(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Trailers are passed over (RFC 9110 §6.5.1): a proxy before us has checked the head and may not have them."""
        self._grow(len(name) + len(value) + 4)
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._goes_on()
        self._stop_timer()
        if self._answering():
            raise PipelinedRequest
        if self._upgrades_with_body():
            raise UpgradeWithBody
        super().on_headers_complete()
        if self.draining:
            self.cycle.keep_alive = False
        if not self.cycle.keep_alive:
            self._part(Parting(self.cycle))

    def on_body(self, body: bytes) -> None:
        self._goes_on()
        self._body_bytes += len(body)
        if self._body_bytes > self.max_body_bytes and self.cycle.response_started:
            raise UnreadBody
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_message = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """After an answer that did not wait for the body the client is heard out for a moment, so that it reads it."""
        self._idle_since = self.loop.time()
        if not self.cycle.more_body or self.transport.is_closing():
            super().on_response_complete()
            return
        self._seen_off = True
        self._stop_timer()
        self._timer = self.loop.call_later(SEEING_OFF_SECONDS, self.transport.abort)
        self.flow.resume_reading()
        self.transport.write_eof()

    def eof_received(self) -> None:
        """A client that stops sending has left. uvicorn would wait until it has taken what is buffered for it."""
        if self._answering():
            self.transport.abort()

    def part(self) -> None:
        """The process drains: the answer under way is the connection's last."""
        if self._answering() and self.cycle.keep_alive:
            self.cycle.keep_alive = False
            self._part(Unannounced(self.cycle) if self.cycle.response_started else Parting(self.cycle))

    def dismiss(self, idle_s: float) -> None:
        """Closes the connection if there has been no request on it for so long, and none has just come."""
        idle = not self._in_message and not self._answering()
        if idle and self.loop.time() - self._idle_since >= idle_s and shut(self.transport):
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is no HTTP; while a response is under way there is nothing to say but good-bye."""
        if self._answering() and not self._reading_body():
            self.transport.abort()
            return
        body = json.dumps({"error": self._refusal().problem.as_json()}, separators=(",", ":")).encode()
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[400] + head + body)
        self.transport.close()

    def _watch(self, tell: Callable[[], None] | None) -> None:
        """`tell` is called when the client leaves, at once if it has. It could not be seen if nothing were read."""
        self._tell_departure = tell
        if tell is not None:
            self.flow.resume_reading()
            if self._lost:
                tell()

    def _write_piece(self, body: bytes) -> bool:
        """As the answer's `send` would, where that would not wait."""
        if self._lost or self.flow.write_paused or not self.cycle.chunked_encoding:
            return False
        self.cycle.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        return True

    def _expect_head(self) -> None:
        self._timer = self.loop.call_later(self.head_timeout_s, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _part(self, transport: Parting) -> None:
        self.cycle.transport = cast(asyncio.Transport, transport)

    def _answering(self) -> bool:
        return not self._lost and self.cycle is not None and not self.cycle.response_complete

    def _reading_body(self) -> bool:
        return self.cycle is not None and self.cycle.more_body and not self.cycle.response_started

    def _upgrades_with_body(self) -> bool:
        bodies = (
            (name == b"content-length" and value != b"0") or name == b"transfer-encoding"
            for name, value in self.headers
        )
        return self.parser.should_upgrade() and any(bodies)

    def _refusal(self) -> RelayError:
        if self._head_bytes > self.max_header_bytes:
            words = f"the request line and headers may have {self.max_header_bytes} bytes"
            return invalid_request(words, param="headers", status=400)
        if self._upgrades_with_body():
            words = "a request with a body cannot change the protocol: send it without `Upgrade`"
            return invalid_request(words, param="Upgrade", status=400)
        return invalid_request("this is not HTTP", status=400)

    def _goes_on(self) -> None:
        self._went_on, self._unfinished_bytes = True, 0

    def _grow(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self.max_header_bytes:
            raise HeadTooLarge
