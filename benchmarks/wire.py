"""The few requests that the checks send themselves, over bare sockets: what they time waits for no client library."""

import asyncio
import json
import socket
from typing import Final

from benchmarks.contenders import RELAY

ANSWER_SECONDS: Final = 60
SMALL_BUFFER_BYTES: Final = 4096


async def exchange(port: int, method: str, path: str) -> tuple[int, bytes]:
    """One request without a body on a connection of its own: status and body. TimeoutError, OSError as they come."""
    async with asyncio.timeout(ANSWER_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            return int(head.split(None, 2)[1]), body
        finally:
            writer.close()


class OpenStream:
    """A stream of the relay that is read by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stream_id: str) -> None:
        self._reader: Final = reader
        self._writer: Final = writer
        self.id: Final = stream_id

    @classmethod
    async def open(cls, port: int, model: str) -> "OpenStream":
        """Asks for a stream and reads on to its first delta."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(stream_request(model))
        async with asyncio.timeout(ANSWER_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readuntil(b'"delta"')
        for line in head.decode("latin-1").split("\r\n"):
            name, _, value = line.partition(":")
            if name.lower() == "x-stream-id":
                return cls(reader, writer, value.strip())
        raise RuntimeError(f"no X-Stream-Id in {head!r}")

    async def read_to_done(self) -> None:
        """Reads on until the stream has said how it ended."""
        async with asyncio.timeout(ANSWER_SECONDS):
            await self._reader.readuntil(b"[DONE]")

    def close(self) -> None:
        self._writer.close()


def stream_request(model: str) -> bytes:
    body = json.dumps({"model": model, "message": "x"})
    return (
        f"POST {RELAY.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def ask_and_never_read(port: int, model: str) -> socket.socket:
    """A client that asks for a stream and takes nothing of it; its buffer is small, so that this shows at once."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
    client.connect(("127.0.0.1", port))
    client.sendall(stream_request(model))
    return client
