"""Python's floor: a bare ASGI app that hands on upstream's body chunk by chunk. No JSON, no limits, no errors.

What it costs is asyncio and the HTTP server's own work; a relay in Python that reads what it passes on costs more.
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
HEAD = (
    b"POST %s/chat/completions HTTP/1.1\r\nHost: upstream\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)


async def app(scope: Message, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
        return
    body: bytes = (await receive())["body"]
    reader, writer = await asyncio.open_connection(UPSTREAM.hostname, UPSTREAM.port)
    writer.write(HEAD % (UPSTREAM.path.encode(), len(body)) + body)
    await reader.readuntil(b"\r\n\r\n")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    while size := int(await reader.readuntil(b"\r\n"), 16):
        data = await reader.readexactly(size + 2)
        await send({"type": "http.response.body", "body": data[:-2], "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    writer.close()


async def _lifespan(receive: Receive, send: Send) -> None:
    while (await receive())["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})
