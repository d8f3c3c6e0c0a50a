"""HTTP/1.1 as uvicorn speaks it, with three things of ours: a bound on the head, no pipelining, our shape of failure.

A second request while the first is being answered ends both: once uvicorn has one waiting it reads no further, and a
client's departure would go unseen.
"""

import asyncio
import json
from typing import Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.api.response import ABORT
from app.errors import invalid_request

WRITE_BUFFER_BYTES: Final = 16 * 1024
"""What waits in the process for a client that is slower than its stream; the kernel's buffer comes before it."""


class PipelinedRequest(Exception):
    """A request that came while another was being answered."""


class HeadTooLarge(Exception):
    """A request line and headers beyond `max_header_bytes`."""


class Protocol(HttpToolsProtocol):
    """HTTP/1.1, with a bound on the head, no pipelining, and failures in the contract's shape."""

    max_header_bytes = 64 * 1024
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        self.scope["extensions"] = {ABORT: {"call": self.transport.abort}}

    def on_url(self, url: bytes) -> None:
        self._grow(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._grow(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._answering():
            raise PipelinedRequest
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is no HTTP; while a response is under way there is nothing to say but good-bye."""
        if self._answering():
            self.transport.close()
            return
        too_large = self._head_bytes > self.max_header_bytes
        words = (
            f"the request line and headers may have {self.max_header_bytes} bytes" if too_large else "this is not HTTP"
        )
        problem = invalid_request(words, param="headers" if too_large else None, status=400).problem
        body = json.dumps({"error": problem.as_json()}, separators=(",", ":")).encode()
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[400] + head + body)
        self.transport.close()

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _grow(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self.max_header_bytes:
            raise HeadTooLarge
