"""What a connection may cost: deadlines for heads, bounds for bodies that nobody reads, and a proper good-bye."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator

import pytest

from tests.relay import DEADLINE_SECONDS, Connection, Relay, connect, running
from tests.upstream import Upstream

BODY_BYTES = 64 * 1024
HEAD = b"POST /chat/stream HTTP/1.1\r\nhost: localhost\r\ncontent-type: %b\r\n"


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    async with (
        Upstream() as upstream,
        running(upstream.base_url, head_timeout_seconds=0.2, max_body_bytes=BODY_BYTES) as relay,
    ):
        yield relay
        assert upstream.requests == []


async def is_closed(connection: Connection) -> bool:
    async with asyncio.timeout(DEADLINE_SECONDS):
        return await connection.reader.read() == b""


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HT", HEAD % b"text/plain"], ids=["nothing", "half a line", "half a head"]
)
async def test_a_head_that_does_not_come_ends_its_connection(relay: Relay, sent: bytes) -> None:
    async with connect(relay.port) as connection:
        connection.writer.write(sent)
        assert await is_closed(connection)


async def test_the_second_head_has_its_deadline_too(relay: Relay) -> None:
    async with connect(relay.port) as connection:
        assert (await (await connection.request("GET", "/healthz")).json())["status"] == "ok"
        connection.writer.write(b"GET /hea")
        assert await is_closed(connection)


async def test_a_connection_too_many_is_closed_at_once() -> None:
    async with (
        Upstream() as upstream,
        running(upstream.base_url, max_connections=1) as relay,
        connect(relay.port) as first,
    ):
        assert (await first.request("GET", "/healthz")).status == 200
        async with connect(relay.port) as second:
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await second.request("GET", "/healthz")


async def test_a_body_that_nobody_reads_is_not_taken_for_ever(relay: Relay) -> None:
    async with connect(relay.port) as connection:
        connection.writer.write(HEAD % b"text/plain" + b"transfer-encoding: chunked\r\n\r\n")
        assert (await connection.head()).status == 415
        with pytest.raises(ConnectionError):
            await pour(connection)


async def pour(connection: Connection) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            connection.writer.write(b"400\r\n%b\r\n" % (b"x" * 1024))
            await connection.writer.drain()


async def test_the_answer_to_a_body_too_large_is_read_by_fetch(relay: Relay) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    code = f"""
        const body = JSON.stringify({{message: "x".repeat(12_000_000)}});
        const headers = {{"content-type": "application/json"}};
        const response = await fetch("http://127.0.0.1:{relay.port}/chat/stream", {{method: "POST", headers, body}});
        console.log(response.status, (await response.json()).error.param);
    """
    process = await asyncio.create_subprocess_exec(
        "node", "--input-type=module", "-e", code, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert output == b"413 body\n"


async def test_the_answer_to_a_body_too_large_outlives_a_connection_that_is_to_be_closed(relay: Relay) -> None:
    size = 12_000_000
    async with connect(relay.port) as connection:
        connection.writer.write(HEAD % b"application/json" + b"connection: close\r\ncontent-length: %d\r\n\r\n" % size)
        response = await connection.head()
        for _ in range(size // 100_000):  # under way when the answer is there: unread it would reset the connection
            connection.writer.write(b"x" * 100_000)
            await connection.writer.drain()
        assert (response.status, (await response.json())["error"]["param"]) == (413, "body")
        assert await connection.rest() == b""


@pytest.mark.parametrize("name", ["origin", "referer"])
async def test_an_address_that_is_none_is_no_evidence(relay: Relay, name: str) -> None:
    async with connect(relay.port) as connection:
        response = await connection.request("GET", "/chat/stream?message=hi&model=m", headers={name: "http://["})
        assert (response.status, (await response.json())["error"]["code"]) == (403, "forbidden")


async def test_a_refusal_makes_the_caller_known_as_well(relay: Relay) -> None:
    async with connect(relay.port) as connection:
        headers = {"idempotency-key": "k"}
        response = await connection.request("POST", "/chat/stream", {"message": "hi", "model": "m"}, headers)
        assert response.status == 400
        assert json.loads(await response.read())["error"]["param"] == "Idempotency-Key"
        assert response.headers["set-cookie"].startswith("relay_subject=")
