"""A scripted receiver of webhooks on a real port, written by hand so that it can answer wrongly, late or never."""

import asyncio
import contextlib
import json
import ssl
from http import HTTPStatus
from typing import Any, Final, Literal, Self

import msgspec

Answer = bytes | tuple[bytes, ...] | Literal["hang", "reset", "flood"]
"""Bytes, or pieces of them that come one after the other."""

BETWEEN_PIECES_SECONDS: Final = 0.05


class Received(msgspec.Struct, frozen=True):
    """One attempt of a call: `headers` in lower case, `at` in loop time, `connection` counted from 1."""

    line: str
    headers: dict[str, str]
    body: bytes
    at: float
    connection: int

    @property
    def message(self) -> Any:
        return json.loads(self.body)


def status(code: int, headers: dict[str, str] | None = None, body: bytes = b"") -> bytes:
    fields = {"content-length": str(len(body)), **(headers or {})}
    lines = [f"HTTP/1.1 {code} {HTTPStatus(code).phrase}", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


OK: Final = status(204)
ENDLESS: Final = status(200, {"content-length": "1000000"}, b"the rest never comes")


class Receiver:
    """Gives these answers in order, the last one for ever. `most` is how many attempts there were at once."""

    def __init__(self, *answers: Answer, tls: ssl.SSLContext | None = None) -> None:
        self.received: list[Received] = []
        self.answers = list(answers) or [OK]
        self.connections = self.active = self.most = 0
        self._tls = tls
        self._serving: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._change = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls, limit=2**22)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'https' if self._tls else 'http'}://localhost:{self.port}/hook"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._serving.values():
            writer.transport.abort()
        if self._serving:
            await asyncio.wait(self._serving)

    async def attempts(self, count: int, within_s: float = 5) -> list[Received]:
        """Waits for so many; AssertionError when there were fewer, or more by then."""
        try:
            async with asyncio.timeout(within_s):
                while len(self.received) < count:
                    await self._change.wait()
        except TimeoutError:
            raise AssertionError(f"{len(self.received)} attempts within {within_s} s, not {count}") from None
        assert len(self.received) == count
        return self.received

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving[task] = writer
        self.connections += 1
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await self._serve(reader, writer, self.connections)
        finally:
            writer.transport.abort()
            del self._serving[task]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            line, *lines = head.rstrip().split("\r\n")
            headers = {name.lower(): value for name, value in (field.split(": ", 1) for field in lines)}
            body = await reader.readexactly(int(headers["content-length"]))
            at = asyncio.get_running_loop().time()
            self.received.append(Received(line, headers, body, at, connection))
            self._change.set()
            self._change = asyncio.Event()
            await self._answer(reader, writer)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.active += 1
        self.most = max(self.most, self.active)
        try:
            match self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]:
                case "hang":
                    await reader.readexactly(1)  # until the caller leaves
                case "reset":
                    raise ConnectionResetError
                case "flood":
                    writer.write(status(200, {"content-length": str(10**15)}))
                    while True:
                        writer.write(b"x" * 4096)
                        await writer.drain()
                case tuple() as pieces:
                    for piece in pieces:
                        writer.write(piece)
                        await asyncio.sleep(BETWEEN_PIECES_SECONDS)
                case bytes() as answer:
                    writer.write(answer)
                    await writer.drain()
        finally:
            self.active -= 1
