"""A proxy on a real port, as operators have between them and the world: it tunnels and forwards, and counts."""

import asyncio
import contextlib
import ssl
from typing import Self
from urllib.parse import urlsplit

import msgspec


class Asked(msgspec.Struct, frozen=True):
    """What the proxy was asked: CONNECT and a host and port, or another method and a whole URL."""

    method: str
    target: str
    headers: dict[str, str]


class Proxy:
    """`refusal`: the bytes that answer every request instead; None hangs. Use as an async context manager."""

    def __init__(self, *, refusal: bytes | None = b"", tls: ssl.SSLContext | None = None) -> None:
        self.asked: list[Asked] = []
        self._refusal = refusal
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        scheme = "https" if self._tls else "http"
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self.url = f"{scheme}://{self.address}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked = _parsed(head)
        self.asked.append(asked)
        if self._refusal is None:
            await asyncio.Event().wait()
        if self._refusal:
            writer.write(self._refusal)
            await writer.drain()
            await reader.read()  # until the client has had enough
            return
        if asked.method == "CONNECT":
            host, _, port = asked.target.rpartition(":")
            there, out = await asyncio.open_connection(host, int(port))
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            url = urlsplit(asked.target)
            there, out = await asyncio.open_connection(url.hostname, url.port)
            line = f"{asked.method} {url.path}{'?' * bool(url.query)}{url.query} HTTP/1.1\r\n"
            lines = [f"{name}: {value}\r\n" for name, value in asked.headers.items() if name != "proxy-authorization"]
            out.write("".join([line, *lines, "\r\n"]).encode())
        try:
            await asyncio.wait([_pumping(reader, out), _pumping(there, writer)], return_when=asyncio.FIRST_COMPLETED)
        finally:
            out.transport.abort()


def _parsed(head: bytes) -> Asked:
    line, *lines = head.decode().rstrip().split("\r\n")
    method, target, _ = line.split(" ")
    headers = dict(each.split(": ", 1) for each in lines)
    return Asked(method, target, {name.lower(): value for name, value in headers.items()})


def _pumping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> asyncio.Task[None]:
    async def pump() -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()

    return asyncio.create_task(pump())
