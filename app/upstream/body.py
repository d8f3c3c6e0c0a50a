"""The body of an upstream's answer: poured, where it is worked on as it arrives, or read by a task.

A token that has to wake a task for its reading costs a quarter more. So whoever reads a stream leaves word what is to
be done with what comes, and sleeps until there is more to do than that: a burst, an end, a failure.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final, cast

import aiohttp
import httpx2
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

from app.errors import RelayError

READ_BYTES: Final = 16 * 1024
"""One turn's worth of a body, and the sockets' receive buffer: what a flooding upstream can make us hold."""


class Body(httpx2.AsyncByteStream):
    """The body of an upstream's answer, in pieces of at most `READ_BYTES`. Closing it is synchronous."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.headers: Final = response.headers
        self._response = response
        self._content = response.content
        if type(self._content) is aiohttp.StreamReader:
            self._content.__class__ = _Content
        connection = response.connection
        self._protocol = None if connection is None else cast(Handler, connection.protocol)
        self._held = b""

    async def pour(self, take: Callable[[bytes], bool], at_most: int) -> None:
        """Hands `take` what comes, where it arrives: no task is woken for it. Returns when `take` has said that this is
        enough, or when there is something for `read`: more than `at_most` bytes at once, the end, a failure.
        """
        content, protocol = self._content, self._protocol
        if protocol is None or self._held or content.is_eof() or content.exception() is not None:
            return
        self._held = content.read_nowait(READ_BYTES)
        if self._held:
            return
        pouring = protocol.pouring = _Pouring(protocol, content, take, at_most)
        try:
            await pouring.over
        finally:
            pouring.end()
            self._held = pouring.held

    @property
    def is_over(self) -> bool:
        """Whether it was read to its end."""
        return not self._held and self._content.at_eof()

    async def read(self) -> bytes:
        """The next piece, empty at the end.

        Raises `upstream_unavailable` when the connection was reset, `upstream_protocol` when it carried no HTTP.
        """
        if self._held:
            data, self._held = self._held[:READ_BYTES], self._held[READ_BYTES:]
            return data
        try:
            return await self._content.read(READ_BYTES)
        except aiohttp.ClientError as error:
            # aiohttp raises before it gives out what arrived in good order, finish_reason and [DONE] included.
            if rest := self._content._read_nowait(READ_BYTES):
                return rest
            if isinstance(error, Unreadable):
                raise RelayError("upstream_protocol", "upstream broke off speaking HTTP") from None
            if self._was_reset():
                raise RelayError("upstream_unavailable", "upstream reset the connection") from None
            return b""

    def _was_reset(self) -> bool:
        return self._protocol is not None and isinstance(self._protocol.exception(), aiohttp.ClientOSError)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self.read():
            yield piece

    def close(self) -> None:
        """Closes the connection; gives it back to the pool when the body was read to its end."""
        if self._content.at_eof():
            self._response.release()
            return
        if self._protocol is not None:
            self._protocol.abort()  # a good-bye in TLS would wait for upstream's, which goes on generating meanwhile
        self._response.close()

    async def aclose(self) -> None:
        self.close()


class _Content(aiohttp.StreamReader):
    """While it is poured nothing is kept: aiohttp's own looks at each chunk of a body thrice before it gives it out.
    Where chunks end nobody asks.
    """

    __slots__ = ()

    def feed_data(self, data: bytes, size: int = 0) -> bool:
        pouring: _Pouring | None = self._protocol.pouring  # type: ignore[attr-defined]
        if pouring is None:
            return super().feed_data(data, size)
        pouring.pieces.append(data)
        return False

    def begin_http_chunk_receiving(self) -> None:
        pass

    def end_http_chunk_receiving(self) -> None:
        pass


class Unreadable(aiohttp.ClientPayloadError):
    """What came on a connection was no HTTP."""


class Handler(ResponseHandler):
    """A connection; `pouring` while what comes is taken where it arrives."""

    pouring: "_Pouring | None" = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.pouring is not None:
            self.pouring.arrived()

    def connection_lost(self, exc: BaseException | None) -> None:
        payload, fault = self._payload, self.exception()
        super().connection_lost(exc)
        if isinstance(fault, HttpProcessingError) and payload is not None and payload.exception() is None:
            payload.set_exception(Unreadable())  # aiohttp has hung up, and tells nobody who reads
        if self.pouring is not None:
            self.pouring.end()


class _Pouring:
    """`over` is done when it is enough, and `held` is what was too much. By then the connection may be another's."""

    def __init__(
        self, handler: Handler, content: aiohttp.StreamReader, take: Callable[[bytes], bool], at_most: int
    ) -> None:
        self.over: Final = asyncio.get_running_loop().create_future()
        self.pieces: Final[list[bytes]] = []
        self.held = b""
        self._handler = handler
        self._content = content
        self._take = take
        self._at_most = at_most

    def arrived(self) -> None:
        """A read has been parsed."""
        pieces = self.pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        if len(data) > self._at_most or self.over.done():
            self.held = data
            self.end()
            return
        try:
            goes_on = not data or self._take(data)
        except BaseException as fault:  # noqa: BLE001 — it is raised where it is waited for, not in the parser
            self.end(fault)
        else:
            if not goes_on or self._content.is_eof():
                self.end()

    def end(self, fault: BaseException | None = None) -> None:
        if self._handler.pouring is self:
            self._handler.pouring = None
        if self.over.done():
            return
        if fault is None:
            self.over.set_result(None)
        else:
            self.over.set_exception(fault)
