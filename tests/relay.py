"""The relay on a real port inside the test's own loop, and a client so plain that it hides nothing."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Final, cast

import jsonschema_rs
import msgspec

from app import server
from app.listener import listen
from app.main import create_app
from app.protocol import Protocol
from app.relay import Generation
from app.settings import Settings
from app.streams import Streams
from app.wire import schema

DEADLINE_SECONDS: Final = 5.0
SSE: Final = {"accept": "text/event-stream"}
"""What an EventSource accepts: it is given the shape with ids."""


class Relay(server.Server):
    """Our server, without its hands on the process's signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    @property
    def port(self) -> int:
        return int(self._listening.getsockname()[1])

    @property
    def streams(self) -> Streams:
        return self._streams

    @property
    def generations(self) -> list[Generation]:
        """Those that are not over."""
        return list(self.streams._running)

    @property
    def permits_in_use(self) -> int:
        return self.streams.means.capacity.in_use

    @property
    def blocked(self) -> bool:
        """Whether a `send` waits for its client."""
        return any(cast(Protocol, protocol).flow.write_paused for protocol in self.server_state.connections)


async def until(holds: Callable[[], object], deadline_seconds: float = 1.0) -> None:
    """Looks in every turn of the loop; AssertionError when it never holds. For what nothing else tells."""
    try:
        async with asyncio.timeout(deadline_seconds):
            while not holds():  # noqa: ASYNC110 — a predicate is for what sets no event
                await asyncio.sleep(0)
    except TimeoutError:
        raise AssertionError(f"not within {deadline_seconds} s") from None


def settings_for(base_url: str, **overrides: Any) -> Settings:
    """Settings that know nothing of the machine's environment."""
    given = {
        "openai_base_url": base_url,
        "openai_api_key": "test-key",
        "port": 0,
        "admin_port": -1,
        "drain_grace_seconds": 0,
        "breaker_failures": 0,  # a test makes more failures than a service in a year
    }
    settings: Settings = cast(Any, Settings)(_env_file=None, **(given | overrides))
    return settings


@contextlib.asynccontextmanager
async def running(base_url: str, **overrides: Any) -> AsyncIterator[Relay]:
    """A relay of an upstream; everything of it is gone when the block ends."""
    settings = settings_for(base_url, **overrides)
    listening = listen("127.0.0.1", settings.port)
    relay = Relay(create_app(settings), settings, listening)
    serving = asyncio.create_task(relay.serve())
    await relay.listening.wait()
    try:
        yield relay
    finally:
        await relay.streams.close()
        relay.should_exit = True
        await serving
        listening.close()


class Response(msgspec.Struct):
    """A status, headers in lower case, and the connection that the body still comes from."""

    status: int
    headers: dict[str, str]
    connection: "Connection"

    async def read(self) -> bytes:
        """The whole body, however it is framed."""
        return b"".join([piece async for piece in self.connection.pieces(self.headers)])

    async def json(self) -> Any:
        return json.loads(await self.read())

    async def blocks(self) -> AsyncIterator[str]:
        """The stream's blocks as they come, without the blank line between them."""
        kept = b""
        async for piece in self.connection.pieces(self.headers):
            kept += piece
            while b"\n\n" in kept:
                block, _, kept = kept.partition(b"\n\n")
                yield block.decode("ascii")
        assert kept == b"", f"a block without its end: {kept!r}"

    async def events(self) -> list[dict[str, Any]]:
        """All events; the last one is `{"type": "[DONE]"}` where the stream said so."""
        return [event_of(block) async for block in self.blocks()]


class Connection:
    """One TCP connection, written and read by hand. `async with connect(port) as connection`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader: Final = reader
        self.writer: Final = writer

    def write(self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        fields = {"host": "localhost", "content-length": str(len(content))}
        if body is not None:
            fields["content-type"] = "application/json"
        fields |= {name.lower(): value for name, value in (headers or {}).items()}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + content)

    async def head(self) -> Response:
        async with asyncio.timeout(DEADLINE_SECONDS):
            text = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status, *lines = text.rstrip().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines)
        return Response(int(status.split(" ")[1]), {name.lower(): value for name, value in fields.items()}, self)

    async def request(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        self.write(method, path, body, headers)
        return await self.head()

    async def pieces(self, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
        if "content-length" in headers:
            yield await self.reader.readexactly(int(headers["content-length"]))
            return
        while headers.get("transfer-encoding") == "chunked":
            async with asyncio.timeout(DEADLINE_SECONDS):
                size = int(await self.reader.readuntil(b"\r\n"), 16)
                piece = await self.reader.readexactly(size + 2)
            if not size:
                return
            yield piece[:-2]

    async def rest(self) -> bytes:
        """What still comes before the relay ends the connection."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await self.reader.read()

    def stop_reading(self) -> None:
        """From here on the client is there, and takes nothing."""
        cast(asyncio.Transport, self.writer.transport).pause_reading()

    def read_again(self) -> None:
        cast(asyncio.Transport, self.writer.transport).resume_reading()

    def close(self) -> None:
        """Leaves at once, without a word."""
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def connect(port: int) -> AsyncIterator[Connection]:
    connection = Connection(*await asyncio.open_connection("127.0.0.1", port))
    try:
        yield connection
    finally:
        connection.close()


async def ask(
    port: int, body: object, *, path: str = "/chat/stream", headers: Mapping[str, str] | None = None
) -> tuple[Response, list[dict[str, Any]]]:
    """Posts a chat and reads its stream to the end; the events are empty when the answer is no stream."""
    async with connect(port) as connection:
        response = await connection.request("POST", path, body, headers)
        if not response.headers["content-type"].startswith("text/event-stream"):
            return response, [await response.json()]
        return response, await response.events()


async def fetch(
    port: int, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
) -> tuple[Response, bytes]:
    """One request on a connection of its own, and the whole body of its answer."""
    async with connect(port) as connection:
        response = await connection.request(method, path, body, headers)
        return response, await response.read()


def subject(letter: str) -> dict[str, str]:
    """The headers of an anonymous caller that can be told from others."""
    return {"cookie": f"relay_subject={letter * 32}"}


def chat(message: str = "hi", **fields: object) -> dict[str, object]:
    return {"message": message, "model": "m", **fields}


def closed(published: Any) -> Any:
    """A schema that is open for clients, as one that no undocumented field and no undocumented type passes."""
    match published:
        case {"UnknownEvent": _}:
            return {name: closed(part) for name, part in published.items()} | {"UnknownEvent": False}
        case {"properties": _}:
            return {name: closed(part) for name, part in published.items()} | {"additionalProperties": False}
        case dict():
            return {name: closed(part) for name, part in published.items()}
        case list():
            return [closed(part) for part in published]
        case _:
            return published


DOCUMENTED: Final = jsonschema_rs.Draft202012Validator(closed(schema.document()))


def event_of(block: str) -> dict[str, Any]:
    """The JSON of a block's `data:` line, if it is as documented, with its `id` as "_id" where it has one."""
    lines = dict(line.split(": ", 1) for line in block.split("\n"))
    if lines["data"] == "[DONE]":
        return {"type": "[DONE]"}
    event: dict[str, Any] = json.loads(lines["data"])
    DOCUMENTED.validate(event)
    return event | ({"_id": lines["id"]} if "id" in lines else {})


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(event.get("content", "") for event in events)
