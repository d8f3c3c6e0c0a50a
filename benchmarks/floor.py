"""Python's floor: a bare ASGI app that hands on upstream's body as it comes. No JSON, no limits, no errors.

What it costs is asyncio and the HTTP server's own work; a relay in Python that reads what it passes on costs more.
It takes the chunk framing off, because the server puts its own on, and makes one write of whatever one read brought.
It opens a connection per stream and does not notice a client that left.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

UPSTREAM = urlsplit(os.environ["OPENAI_BASE_URL"])
READ_BYTES = 64 * 1024
HEAD = (
    b"POST %s/chat/completions HTTP/1.1\r\nHost: upstream\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)


class Dechunker:
    """Takes the framing of a chunked body off, wherever reads cut it (RFC 9112 §7.1)."""

    def __init__(self) -> None:
        self._held = b""
        self.ended = False

    def take(self, received: bytes) -> bytes:
        held, at, payload = self._held + received, 0, []
        while (line_end := held.find(b"\r\n", at)) >= 0:
            data, size = line_end + 2, int(held[at:line_end], 16)
            if len(held) < data + size + 2:
                break
            payload.append(held[data : data + size])
            self.ended = size == 0
            at = data + size + 2
        self._held = held[at:]
        return b"".join(payload)


async def app(scope: Message, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
        return
    body: bytes = (await receive())["body"]
    reader, writer = await asyncio.open_connection(UPSTREAM.hostname, UPSTREAM.port)
    writer.write(HEAD % (UPSTREAM.path.encode(), len(body)) + body)
    await reader.readuntil(b"\r\n\r\n")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    dechunker = Dechunker()
    while not dechunker.ended:
        received = await reader.read(READ_BYTES)
        if not received:
            break
        await send({"type": "http.response.body", "body": dechunker.take(received), "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    writer.close()


async def _lifespan(receive: Receive, send: Send) -> None:
    while (await receive())["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})
