"""Coming back: any reader from any cursor sees the same suffix, byte for byte, and nobody reads a stranger's answer."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.relay import SSE, Connection, Response, chat, connect, event_of, fetch, running, text_of, until
from tests.upstream import Answer, Step, Upstream, answer, chunk, delta, finish, hang, head, reset, usage, wait

OWNER = SSE | {"cookie": f"relay_subject={'a' * 32}"}
STRANGER = SSE | {"cookie": f"relay_subject={'b' * 32}"}
SAME_ORIGIN = {"sec-fetch-site": "same-origin"}
TEXTS = ("Hel", "lo ", "\u6f22\U0001f389", 'w"or\n', "ld")
END = b"data: [DONE]\n\n"
DEADLINE_SECONDS = 5


def path_of(stream_id: str, end: str = "") -> str:
    return f"/chat/stream/{stream_id}{end}"


def cursor(stream_id: str, seq: int) -> dict[str, str]:
    return SSE | {"last-event-id": f"{stream_id}.{seq}"}


def suffixes(whole: bytes) -> list[bytes]:
    """What is left of a stream after each of its cursors, from -1 on."""
    blocks = whole.split(b"\n\n")[:-2]
    return [b"".join(block + b"\n\n" for block in blocks[at:]) + END for at in range(len(blocks) + 1)]


async def begun(connection: Connection, headers: Mapping[str, str] = SSE) -> Response:
    response = await connection.request("POST", "/chat/stream", chat(), headers)
    assert response.status == 200
    return response


async def finished(port: int, headers: Mapping[str, str] = SSE, on_disconnect: str | None = None) -> tuple[str, bytes]:
    """The id of a stream that is over, and all its bytes."""
    response, body = await fetch(port, "POST", "/chat/stream", chat(on_disconnect=on_disconnect), headers)
    assert response.status == 200
    return response.headers["x-stream-id"], body


async def fetch_body(port: int, path: str) -> bytes:
    response, body = await fetch(port, "GET", path)
    assert response.status == 200
    return body


async def until_status(port: int, wanted: int, path: str, headers: Mapping[str, str]) -> tuple[Response, bytes]:
    """Asks until the answer has that status."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            response, body = await fetch(port, "GET", path, headers=headers)
            if response.status == wanted:
                return response, body


def error_of(body: bytes) -> dict[str, Any]:
    """The error, of JSON or of an event stream."""
    parsed = json.loads(body if body.startswith(b"{") else body.split(b"\n")[0].removeprefix(b"data: "))
    error: dict[str, Any] = parsed["error"]
    return error


@pytest.mark.parametrize("sse_ids", ["auto", "never"])
async def test_a_finished_stream_reads_the_same_from_every_cursor(sse_ids: str) -> None:
    async with Upstream() as upstream, running(upstream.base_url, sse_ids=sse_ids) as relay:
        upstream.script(answer(*TEXTS, usage=(1, 2)))
        stream_id, whole = await finished(relay.port, on_disconnect="wait")
        wanted = suffixes(whole)
        assert len(wanted) == len(TEXTS) + 3
        assert await fetch_body(relay.port, path_of(stream_id)) == whole
        for seq in range(len(wanted) - 2):
            got = await fetch_body(relay.port, path_of(stream_id, f"?after={seq}"))
            _, posted = await fetch(relay.port, "POST", "/chat/stream", chat(), cursor(stream_id, seq))
            assert got == posted == wanted[seq + 1]
    assert len(upstream.requests) == 1


def without_pings(stream: bytes) -> bytes:
    return b"".join(block + b"\n\n" for block in stream.split(b"\n\n")[:-1] if b'"type":"ping"' not in block)


async def test_a_running_stream_reads_the_same_from_every_cursor() -> None:
    more = asyncio.Event()
    async with (
        Upstream() as upstream,
        running(upstream.base_url, max_readers_per_stream=9) as relay,
        AsyncExitStack() as connections,
    ):
        upstream.script((head(), *map(chunk, TEXTS), wait(more), *map(chunk, TEXTS), finish()))
        clients = [await connections.enter_async_context(connect(relay.port)) for _ in range(8)]
        first = await begun(clients[0])
        pieces = clients[0].pieces(first.headers)
        read = b""
        while read.count(b"\n\n") < len(TEXTS) + 1:
            read += await anext(pieces)
        path = path_of(first.headers["x-stream-id"])
        others = [await client.request("GET", f"{path}?after={at - 2}") for at, client in enumerate(clients[1:], 1)]
        more.set()
        whole = read + b"".join([piece async for piece in pieces])
        assert [without_pings(await other.read()) for other in others] == suffixes(whole)[:7]
    assert len(upstream.requests) == 1


async def test_the_header_wins_over_the_query() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(answer(*TEXTS))
        stream_id, whole = await finished(relay.port)
        _, body = await fetch(relay.port, "GET", path_of(stream_id, "?after=0"), headers=cursor(stream_id, 3))
    assert body == suffixes(whole)[4]


async def test_at_the_end_a_post_says_done_and_a_get_says_nothing() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(answer(*TEXTS))
        stream_id, whole = await finished(relay.port)
        last = cursor(stream_id, len(suffixes(whole)) - 2)
        posted, post_body = await fetch(relay.port, "POST", "/chat/stream", chat(), last)
        by_id, _ = await fetch(relay.port, "GET", path_of(stream_id), headers=last)
        by_message, _ = await fetch(relay.port, "GET", "/chat/stream?message=hi", headers=last | SAME_ORIGIN)
    assert (posted.status, post_body) == (200, END)
    assert (by_id.status, by_message.status) == (204, 204)
    assert len(upstream.requests) == 1


async def test_a_cursor_behind_the_end_gets_the_end_again() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(answer(*TEXTS))
        stream_id, whole = await finished(relay.port)
        _, body = await fetch(relay.port, "GET", path_of(stream_id, "?after=9999999999"))
    assert body == suffixes(whole)[-2]


@pytest.mark.parametrize(("method", "path"), [("POST", "/chat/stream"), ("GET", "/chat/stream?message=hi&model=m")])
async def test_a_client_that_comes_back_never_generates(method: str, path: str) -> None:
    more = asyncio.Event()
    async with (
        Upstream() as upstream,
        running(upstream.base_url) as relay,
        connect(relay.port) as gone,
        connect(relay.port) as back,
    ):
        upstream.script((head(), chunk("Hel"), wait(more), chunk("lo"), finish()))
        response = await begun(gone)
        blocks = response.blocks()
        assert [event_of(await anext(blocks))["type"] for _ in range(2)] == ["start", "delta"]
        gone.close()
        headers = cursor(response.headers["x-stream-id"], 1) | SAME_ORIGIN
        again = await back.request(method, path, chat() if method == "POST" else None, headers)
        assert again.headers["x-stream-id"] == response.headers["x-stream-id"]
        again_blocks = again.blocks()
        # A head alone would not pass nginx over HTTP/2: with nothing else to say there is a ping.
        assert event_of(await anext(again_blocks))["type"] == "ping"
        more.set()
        assert [event_of(block)["type"] async for block in again_blocks] == ["delta", "done", "[DONE]"]
    assert len(upstream.requests) == 1


GARBAGE = ["x", "0", "s_1.1", f"s_{'a' * 32}", f"s_{'a' * 32}.-1", f"s_{'A' * 32}.1", f"s_{'a' * 32}.01", "\u00b2" * 9]


@pytest.mark.parametrize("value", GARBAGE)
async def test_a_cursor_of_garbage_is_refused_by_its_name(value: str) -> None:
    stream_id = f"s_{'a' * 32}"
    headers = {"last-event-id": value} | SAME_ORIGIN
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        for method, path in (("POST", ""), ("GET", "?message=hi&model=m"), ("GET", f"/{stream_id}")):
            body = chat() if method == "POST" else None
            response, answered = await fetch(relay.port, method, f"/chat/stream{path}", body, headers)
            assert response.status == 400
            error = error_of(answered)
            assert (error["code"], error["param"]) == ("invalid_request", "Last-Event-ID")
        response, answered = await fetch(relay.port, "GET", path_of(stream_id, "?after=first"))
        assert (response.status, error_of(answered)["param"]) == (400, "after")
    assert upstream.requests == []


async def test_a_cursor_of_another_stream_is_refused() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(answer(*TEXTS))
        (one, _), (other, _) = [await finished(relay.port) for _ in range(2)]
        response, body = await fetch(relay.port, "GET", path_of(one), headers=cursor(other, 1))
    assert (response.status, error_of(body)["param"]) == (400, "Last-Event-ID")


async def test_a_cursor_that_is_yet_to_come_is_refused() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as connection:
        upstream.script((head(), chunk("Hello"), hang()))
        response = await begun(connection)
        blocks = response.blocks()
        assert [event_of(await anext(blocks))["seq"] for _ in range(2)] == [0, 1]
        stream_id = response.headers["x-stream-id"]
        early, body = await fetch(relay.port, "GET", path_of(stream_id), headers=cursor(stream_id, 2))
        early_post, _ = await fetch(relay.port, "POST", "/chat/stream", chat(), cursor(stream_id, 2))
    assert (early.status, early_post.status, error_of(body)["param"]) == (400, 400, "Last-Event-ID")
    assert len(upstream.requests) == 1


REACHES = [("GET", ""), ("GET", "/result"), ("DELETE", ""), ("POST", "/cancel")]


@pytest.mark.parametrize("headers", [STRANGER, {}])
async def test_a_strangers_stream_and_none_at_all_are_the_same(headers: dict[str, str]) -> None:
    unknown = f"s_{'0' * 32}"
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as connection:
        upstream.script((head(), chunk("secret"), hang()))
        stream_id = (await begun(connection, OWNER)).headers["x-stream-id"]
        for method, end in REACHES:
            answers = [
                await fetch(relay.port, method, path_of(id, end), headers=headers) for id in (stream_id, unknown)
            ]
            assert [response.status for response, _ in answers] == [404, 404]
            told, elsewhere = (error_of(body) | {"request_id": None} for _, body in answers)
            assert told == elsewhere
        posted, _ = await fetch(relay.port, "POST", "/chat/stream", chat(), cursor(stream_id, 0) | headers)
        assert posted.status == 404
        owned, body = await fetch(relay.port, "GET", path_of(stream_id, "/result"), headers=OWNER)
        assert (owned.status, json.loads(body)["text"]) == (200, "secret")
    assert len(upstream.requests) == 1


async def test_an_expired_stream_is_gone_for_its_owner_and_unknown_to_others() -> None:
    async with Upstream() as upstream, running(upstream.base_url, log_ttl_seconds=0.05) as relay:
        upstream.script(answer(*TEXTS))
        stream_id, _ = await finished(relay.port, OWNER)
        _, body = await until_status(relay.port, 410, path_of(stream_id, "/result"), OWNER)
        assert error_of(body)["code"] == "not_resumable"
        for method, end, wanted in (("GET", "", 410), ("DELETE", "", 202)):
            response, _ = await fetch(relay.port, method, path_of(stream_id, end), headers=OWNER)
            assert response.status == wanted
        for method, end in REACHES:
            response, _ = await fetch(relay.port, method, path_of(stream_id, end), headers=STRANGER)
            assert response.status == 404


async def test_a_stream_under_cancel_cannot_be_resumed() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as connection:
        upstream.script((head(), chunk("Hello"), hang()), answer("Hello"))
        running_id = (await begun(connection, {})).headers["x-stream-id"]
        over_id, _ = await finished(relay.port, {})
        for stream_id in (running_id, over_id):
            for end in ("", "/result"):
                response, body = await fetch(relay.port, "GET", path_of(stream_id, end))
                assert (response.status, error_of(body)["code"]) == (410, "not_resumable")


async def test_a_ninth_reader_has_to_wait_until_one_goes() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay, AsyncExitStack() as connections:
        upstream.script((head(), chunk("Hello"), hang()))
        clients = [await connections.enter_async_context(connect(relay.port)) for _ in range(9)]
        path = path_of((await begun(clients[0])).headers["x-stream-id"])
        readers = [await client.request("GET", path) for client in clients[1:8]]
        refused = await clients[8].request("GET", path)
        assert [reader.status for reader in readers] == [200] * 7
        assert (refused.status, error_of(await refused.read())["code"]) == (429, "rate_limited")
        assert int(refused.headers["retry-after"]) >= 1
        clients[3].close()
        async with asyncio.timeout(DEADLINE_SECONDS):
            while (admitted := await clients[8].request("GET", path)).status == 429:
                await admitted.read()
        assert event_of(await anext(admitted.blocks()))["type"] == "start"


THOUGHT_AND_CALLS: Answer = (
    head(),
    delta(reasoning_content="Let "),
    delta(reasoning_content="me"),
    chunk("Hel"),
    chunk("lo"),
    delta(tool_calls=[{"index": 0, "id": "call_1", "function": {"name": "f", "arguments": '{"a"'}}]),
    delta(tool_calls=[{"index": 1, "id": "call_2", "function": {"name": "g", "arguments": ""}}]),
    delta(tool_calls=[{"index": 0, "function": {"arguments": ":1}"}}]),
)
JOINED = {
    "model": "m",
    "text": "Hello",
    "reasoning": "Let me",
    "refusal": "",
    "tool_calls": [
        {"index": 0, "id": "call_1", "name": "f", "arguments": '{"a":1}'},
        {"index": 1, "id": "call_2", "name": "g", "arguments": ""},
    ],
}
REPORTED = {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12, "source": "reported"}
ESTIMATED = {"prompt_tokens": 1, "completion_tokens": 7, "total_tokens": 8, "source": "estimated"}


@pytest.mark.parametrize(
    ("last", "status", "finish_reason", "usage_", "code"),
    [
        ((finish("tool_calls"), usage(3, 9)), "done", "tool_calls", REPORTED, None),
        ((reset(),), "error", None, ESTIMATED, "upstream_unavailable"),
    ],
)
async def test_the_result_of_a_stream_that_is_over(
    last: tuple[Step, ...], status: str, finish_reason: str | None, usage_: dict[str, Any], code: str | None
) -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script((*THOUGHT_AND_CALLS, *last))
        stream_id, whole = await finished(relay.port)
        response, body = await fetch(relay.port, "GET", path_of(stream_id, "/result"))
    result = json.loads(body)
    error = result.pop("error")
    assert (response.status, response.headers["cache-control"]) == (200, "no-store")
    assert result == {"id": stream_id, "status": status, "finish_reason": finish_reason, "usage": usage_} | JOINED
    assert error == (None if code is None else event_of(whole.decode().split("\n\n")[-3])["error"])
    assert code is None or (error["code"], error["partial"]) == (code, True)


async def test_the_result_of_a_stream_that_runs_and_is_cancelled() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay, connect(relay.port) as connection:
        upstream.script((*THOUGHT_AND_CALLS, hang()))
        response = await begun(connection)
        stream_id, blocks = response.headers["x-stream-id"], response.blocks()
        for _ in range(len(THOUGHT_AND_CALLS)):
            await anext(blocks)
        _, so_far = await fetch(relay.port, "GET", path_of(stream_id, "/result"))
        await fetch(relay.port, "DELETE", path_of(stream_id))
        _, in_the_end = await fetch(relay.port, "GET", path_of(stream_id, "/result"))
    same = {"id": stream_id, "usage": ESTIMATED, "error": None} | JOINED
    assert json.loads(so_far) == same | {"status": "running", "finish_reason": None}
    assert json.loads(in_the_end) == same | {"status": "done", "finish_reason": "cancelled"}


async def test_cutting_one_reader_never_disturbs_the_other() -> None:
    steps = [asyncio.Event() for _ in range(3)]
    async with (
        Upstream() as upstream,
        running(upstream.base_url) as relay,
        connect(relay.port) as first,
        connect(relay.port) as second,
    ):
        upstream.script((head(), *(step for on in steps for step in (chunk("<>"), wait(on))), finish()))
        response = await begun(first)
        blocks = response.blocks()
        assert [event_of(await anext(blocks))["seq"] for _ in range(2)] == [0, 1]
        others = (await second.request("GET", path_of(response.headers["x-stream-id"]))).blocks()
        assert [event_of(await anext(others))["seq"] for _ in range(2)] == [0, 1]
        first.close()
        await until(lambda: len(relay.generations[0].log.readers) == 1, DEADLINE_SECONDS)
        for step in steps:
            step.set()
        events = [event_of(block) async for block in others]
    assert [event["type"] for event in events] == ["delta", "delta", "done", "[DONE]"]
    assert (upstream.aborted, len(upstream.requests)) == (0, 1)


async def dispatched(pieces: AsyncIterator[bytes], cut_at: int | None) -> list[dict[str, Any]]:
    """The events of the first bytes, as an EventSource knows them: a block that is cut before its end is none."""
    received = b""
    async for piece in pieces:
        received += piece
        if cut_at is not None and len(received) >= cut_at:
            break
    return [event_of(block) for block in received[:cut_at].decode("ascii").split("\n\n")[:-1]]


@pytest.mark.parametrize("live", [True, False])
async def test_a_reader_that_is_cut_anywhere_has_every_event_once(live: bool) -> None:
    more = asyncio.Event()
    rest: tuple[Step, ...] = (wait(more),) if live else ()
    async with (
        Upstream() as upstream,
        running(upstream.base_url, max_readers_per_stream=64) as relay,
        connect(relay.port) as keeper,
    ):
        upstream.script((head(), *map(chunk, TEXTS), *rest, chunk("!"), finish()))
        response = await begun(keeper)
        path = path_of(response.headers["x-stream-id"])
        blocks = response.blocks()
        kept = [await anext(blocks) for _ in range(len(TEXTS) + 1)]
        begins = len("\n\n".join(kept[:2]))
        halves = [await first_half(relay.port, path, begins + at) for at in range(len(kept[2]) + 4, 1, -3)]
        more.set()
        whole = [event_of(block) for block in kept] + [event_of(block) async for block in blocks]
        for events in halves:
            assert events + await second_half(relay.port, path, events[-1]["_id"]) == whole
    assert text_of(whole) == "".join(TEXTS) + "!"
    assert {len(events) for events in halves} == {2, 3}
    assert len(upstream.requests) == 1


async def first_half(port: int, path: str, cut_at: int) -> list[dict[str, Any]]:
    async with connect(port) as connection:
        response = await connection.request("GET", path, headers=SSE)
        return await dispatched(connection.pieces(response.headers), cut_at)


async def second_half(port: int, path: str, last_event_id: str) -> list[dict[str, Any]]:
    async with connect(port) as connection:
        response = await connection.request("GET", path, headers=SSE | {"last-event-id": last_event_id})
        assert response.status == 200
        return await dispatched(connection.pieces(response.headers), None)
