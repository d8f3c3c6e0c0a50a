"""Whatever an upstream does wrong, over sockets: a typed end in the right phase, and nothing of it left."""

import asyncio
import gzip
import json
import socket
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest

from app import __version__
from tests.relay import DEADLINE_SECONDS, Relay, ask, chat, running, text_of
from tests.upstream import (
    Answer,
    Upstream,
    answer,
    chunk,
    close,
    comments,
    delta,
    done,
    event,
    finish,
    hang,
    head,
    repeat,
    reset,
    send,
    silent,
    status,
    wait,
)

KiB = 1024
LIMITS = {"max_event_bytes": 16 * KiB, "max_answer_bytes": 64 * KiB, "attempts": 1}


class Served(NamedTuple):
    upstream: Upstream
    relay: Relay


@pytest.fixture(scope="module")
async def served() -> AsyncIterator[Served]:
    async with Upstream() as upstream, running(upstream.base_url, **LIMITS) as relay:
        yield Served(upstream, relay)


class Fault(NamedTuple):
    """What an upstream does, and the error that a client is told: over HTTP, or (`status` 200) in its stream."""

    answer: Answer
    status: int
    code: str
    phase: str = "first_token"
    retryable: bool = True
    upstream_status: int | None = None

    @property
    def limits(self) -> dict[str, float]:
        """Short where a limit of ours has to end it."""
        if self.code != "upstream_timeout" or self.upstream_status is not None:
            return {}
        return {"idle" if self.status == 200 else "first_token": 0.2}


def refused(upstream_status: int, http: int, code: str, *, retryable: bool = True, words: object = None) -> Fault:
    body = json.dumps(words or {"error": {"message": "no"}}).encode()
    answering = status(upstream_status, body, {"content-type": "application/json", "location": "/v1/chat/completions"})
    return Fault(answering, http, code, retryable=retryable, upstream_status=upstream_status)


def inside(error: object, http: int, code: str, *, retryable: bool = True, said: int | None = None) -> Fault:
    """An error object in the stream: before any content, or after it (`http` 200)."""
    before = (chunk("Hi"),) if http == 200 else ()
    phase = "stream" if before else "first_token"
    return Fault((head(), *before, event({"error": error}), done()), http, code, phase, retryable, said)


def broken(*steps: Any) -> Fault:
    """An answer that has begun and then is none any more."""
    return Fault((head(), chunk("Hi"), *steps), 200, "upstream_protocol", "stream")


def other(content_type: str, body: bytes) -> Fault:
    return Fault(status(200, body, {"content-type": content_type}), 502, "upstream_protocol")


BOMB = gzip.compress(b"data: " + b"0" * 8 * KiB * KiB)
QUOTA = {"error": {"message": "no", "code": "insufficient_quota"}}
FAULTS = {
    **{f"status {said}": refused(said, 400, "upstream_rejected", retryable=False) for said in (400, 404, 413, 422)},
    **{f"status {said}": refused(said, 502, "upstream_error", retryable=False) for said in (401, 402, 403, 409)},
    **{f"status {said}": refused(said, 504, "upstream_timeout") for said in (408, 504, 524)},
    **{f"status {said}": refused(said, 502, "upstream_unavailable") for said in (500, 502, 503, 529, 599)},
    **{f"status {said}": refused(said, 502, "upstream_unavailable") for said in (300, 301, 302, 303, 307, 308)},
    "status 429": refused(429, 429, "rate_limited"),
    "status 429, no quota": refused(429, 502, "upstream_error", retryable=False, words=QUOTA),
    "inside 429": inside({"code": 429}, 429, "rate_limited", said=429),
    "inside '429'": inside({"code": "429"}, 429, "rate_limited", said=429),
    "inside 400": inside({"code": 400}, 400, "upstream_rejected", retryable=False, said=400),
    "inside 401": inside({"code": 401}, 502, "upstream_error", retryable=False, said=401),
    "inside 500": inside({"code": 500}, 502, "upstream_error", said=500),
    "inside, words": inside("it broke", 502, "upstream_error"),
    "inside 429, later": inside({"code": 429}, 200, "rate_limited", said=429),
    "inside 400, later": inside({"code": 400}, 200, "upstream_error", retryable=False, said=400),
    "inside 500, later": inside({"code": 500}, 200, "upstream_error", said=500),
    "inside quota, later": inside({"code": "insufficient_quota"}, 200, "upstream_error", retryable=False),
    "HTML": other("text/html", b"<html>Welcome!</html>"),
    "NDJSON": other("application/x-ndjson", b'{"message":{"content":"Hi"}}\n{"done":true}\n'),
    "plain text": other("text/plain", b"Welcome!"),
    "no body": other("application/json", b""),
    "JSON, but none of ours": other("application/json", b"[1]"),
    "204": Fault(status(204), 502, "upstream_protocol", upstream_status=204),
    "no event": Fault((head(), done()), 502, "upstream_truncated"),
    "cut": Fault((head(), chunk("Hi")), 200, "upstream_truncated", "stream"),
    "cut, [DONE]": Fault((head(), chunk("Hi"), done()), 200, "upstream_truncated", "stream"),
    "cut, chunked without its end": Fault((head(), chunk("Hi"), close()), 200, "upstream_truncated", "stream"),
    "shorter than its length": Fault(
        (head(content_length=9999), chunk("Hi"), close()), 200, "upstream_truncated", "stream"
    ),
    "closed at once": Fault((close(),), 502, "upstream_unavailable"),
    "reset at once": Fault((reset(),), 502, "upstream_unavailable"),
    "reset, nothing said": Fault((head(), reset()), 502, "upstream_unavailable"),
    "reset later": Fault((head(), chunk("Hi"), reset()), 200, "upstream_unavailable", "stream"),
    "silent": Fault(silent(), 504, "upstream_timeout"),
    "silent after its head": Fault((head(), hang()), 504, "upstream_timeout"),
    "silent later": Fault((head(), chunk("Hi"), hang()), 200, "upstream_timeout", "stream"),
    "comments without end": Fault(comments(0.01), 504, "upstream_timeout"),
    "comments without end, later": Fault((head(), chunk("Hi"), *comments(0.01)[1:]), 200, "upstream_timeout", "stream"),
    "roles without end": Fault((head(), repeat(delta(role="assistant"), interval=0.01)), 504, "upstream_timeout"),
    "an answer without end": broken(repeat(chunk("x" * KiB))),
    "an event without end": Fault((head(), send(b"data: "), repeat(send(b"x" * KiB))), 502, "upstream_protocol"),
    "an event without end, later": broken(send(b"data: "), repeat(send(b"x" * KiB))),
    "a line without end": Fault((head(), repeat(send(b"x" * KiB))), 502, "upstream_protocol"),
    "a body without end, no stream": Fault(
        (head(headers={"content-type": "application/json"}), repeat(send(b" " * KiB))), 502, "upstream_protocol"
    ),
    "an error without end": Fault(
        (head(500, {}), repeat(send(b"x" * KiB))), 502, "upstream_unavailable", upstream_status=500
    ),
    "a bomb": Fault(
        status(200, BOMB, {"content-type": "text/event-stream", "content-encoding": "gzip"}), 502, "upstream_protocol"
    ),
    "an error that is a bomb": Fault(
        status(500, BOMB, {"content-encoding": "gzip"}), 502, "upstream_unavailable", upstream_status=500
    ),
    "no gzip": Fault(
        status(200, b"data: no", {"content-type": "text/event-stream", "content-encoding": "gzip"}),
        502,
        "upstream_protocol",
    ),
    "no JSON": broken(send(b"data: {\n\n")),
    "words instead of HTTP": Fault((send(b"220 mail.example ESMTP\r\n"), hang()), 502, "upstream_protocol"),
    "TLS instead of HTTP": Fault((send(bytes.fromhex("15030100020246")), close()), 502, "upstream_protocol"),
    "a header without end": Fault(
        (send(b"HTTP/1.1 200 OK\r\nx: "), repeat(send(b"x" * KiB))), 502, "upstream_protocol"
    ),
    "headers without end": Fault(
        (send(b"HTTP/1.1 200 OK\r\n"), repeat(send(b"x: y\r\n" * 100))), 502, "upstream_protocol"
    ),
    "chunks that are none": Fault(
        (head(), chunk("Hi"), lambda exchange: exchange.write(b"zz\r\n"), hang()), 200, "upstream_protocol", "stream"
    ),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_faulty_upstream_is_a_typed_end(served: Served, name: str) -> None:
    fault = FAULTS[name]
    served.upstream.script(fault.answer, model=name)
    async with asyncio.timeout(DEADLINE_SECONDS):
        response, events = await ask(served.relay.port, chat(model=name, timeouts=fault.limits))
    error = events[-2]["error"] if response.status == 200 else events[0]["error"]
    assert (response.status, error["code"], error["phase"]) == (fault.status, fault.code, fault.phase)
    assert (error["retryable"], error["upstream_status"]) == (fault.retryable, fault.upstream_status)
    assert error["partial"] == (fault.status == 200)
    assert len([request for request in served.upstream.requests if request.body["model"] == name]) == 1
    await served.upstream.wait_for(lambda upstream: upstream.active == 0)


async def test_an_upstream_that_refuses_connections_is_unavailable() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        async with running(f"http://127.0.0.1:{nobody.getsockname()[1]}/v1", attempts=1) as relay:
            response, events = await ask(relay.port, chat())
    error = events[0]["error"]
    assert (response.status, error["code"], error["phase"]) == (502, "upstream_unavailable", "connect")
    assert (error["retryable"], error["partial"], error["upstream_status"]) == (True, False, None)


async def test_an_upstream_without_its_tls_is_unavailable() -> None:
    async def speak_plainly(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(speak_plainly, "127.0.0.1", 0) as plain:
        port = plain.sockets[0].getsockname()[1]
        async with running(f"https://127.0.0.1:{port}/v1", attempts=1) as relay:
            response, events = await ask(relay.port, chat())
    error = events[0]["error"]
    assert (response.status, error["code"], error["phase"]) == (502, "upstream_unavailable", "connect")


FINISHED = (head(), chunk("Hi"), finish())
AFTER_THE_END = {
    "reset": (reset(),),
    "closed": (close(),),
    "silent": (hang(),),
    "garbage": (send(b"data: {\n\n"),),
    "an error": (event({"error": {"code": 500}}),),
    "broken chunks": (lambda exchange: exchange.write(b"zz\r\n"), hang()),
    "[DONE] and garbage": (done(), send(b"x" * 100 * KiB)),
    "[DONE] without an end": (done(), repeat(send(b": still here\n\n"))),
}


@pytest.mark.parametrize("name", AFTER_THE_END)
async def test_a_finished_answer_stays_whole(served: Served, name: str) -> None:
    served.upstream.script((*FINISHED, *AFTER_THE_END[name]), model=name)
    async with running(served.upstream.base_url, usage_wait_seconds=0.1, **LIMITS) as relay:
        _, events = await ask(relay.port, chat(model=name))
    assert [event["type"] for event in events] == ["start", "delta", "done", "[DONE]"]
    assert events[2]["finish_reason"] == "stop"


WHOLE = (
    'data: {"choices":[{"index":0,"delta":{"content":"Hél"}}]}\r\n\r\n'
    'data: {"choices":[{"index":0,"delta":{"content":"lo"},"finish_reason":"stop"}]}\n\n'
    "data: [DONE]\n\n"
).encode()


async def test_bytes_one_by_one_are_the_same_answer(served: Served) -> None:
    served.upstream.script((head(), *(send(WHOLE[at : at + 1]) for at in range(len(WHOLE)))), model="drip")
    _, events = await ask(served.relay.port, chat(model="drip"))
    assert (text_of(events), events[-2]["type"]) == ("Héllo", "done")


@pytest.mark.parametrize("said", ["HTTP/1.1 100 Continue", "HTTP/1.1 103 Early Hints\r\nlink: </a>"])
async def test_what_comes_before_an_answer_is_passed_over(served: Served, said: str) -> None:
    served.upstream.script((send(f"{said}\r\n\r\n".encode()), *answer("ok")), model=said)
    _, events = await ask(served.relay.port, chat(model=said))
    assert (text_of(events), events[-2]["type"]) == ("ok", "done")


async def test_an_upstream_of_1996_is_understood(served: Served) -> None:
    old = b"HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    served.upstream.script((send(old + WHOLE), close()), model="old")
    _, events = await ask(served.relay.port, chat(model="old"))
    assert (text_of(events), events[-2]["type"]) == ("Héllo", "done")


@pytest.mark.parametrize("code", [301, 302, 307, 308])
async def test_a_redirect_is_neither_followed_nor_repeated(code: int) -> None:
    async with Upstream() as upstream, running(upstream.base_url, attempts=3) as relay:
        upstream.script(status(code, headers={"location": f"{upstream.base_url}/chat/completions"}))
        response, _ = await ask(relay.port, chat())
    assert (response.status, len(upstream.requests)) == (502, 1)


async def test_an_upstream_is_sent_what_it_needs_and_no_more(served: Served) -> None:
    served.upstream.script(answer("ok"), model="asked")
    stranger = {"authorization": "Bearer theirs", "x-stainless-lang": "js", "user-agent": "x", "x-forwarded-for": "x"}
    await ask(served.relay.port, chat(model="asked", temperature=0.5, system="be brief"), headers=stranger)
    request = served.upstream.requests[-1]
    assert request.path == "/v1/chat/completions"
    assert request.headers == {
        "host": served.upstream.base_url.removeprefix("http://").removesuffix("/v1"),
        "accept": "text/event-stream",
        "accept-encoding": "identity",
        "authorization": "Bearer test-key",
        "content-type": "application/json",
        "content-length": request.headers["content-length"],
        "user-agent": f"sse-relay/{__version__}",
    }
    assert request.body == {
        "model": "asked",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
        "temperature": 0.5,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_without_a_key_none_is_sent() -> None:
    async with Upstream() as upstream, running(upstream.base_url, openai_api_key=None) as relay:
        upstream.script(answer("ok"))
        await ask(relay.port, chat())
    assert "authorization" not in upstream.requests[0].headers


async def test_a_cookie_of_upstream_is_not_sent_back() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        sticky = {"content-type": "text/event-stream", "set-cookie": "balancer=1; Path=/"}
        upstream.script((head(headers=sticky), *answer("ok")[1:]), status(500, b"", sticky), answer("ok"))
        answered = [await ask(relay.port, chat()) for _ in range(2)]
    assert [response.headers["set-cookie"].partition("=")[0] for response, _ in answered] == ["relay_subject"] * 2
    assert ["cookie" in request.headers for request in upstream.requests] == [False] * 3


async def test_a_connection_that_ended_properly_is_used_again() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(answer("ok"), status(400), answer("ok"), status(204), answer("ok"))
        for _ in range(5):
            await ask(relay.port, chat())
    assert [request.connection for request in upstream.requests] == [1] * 5


async def test_the_end_of_a_finished_answer_is_waited_for() -> None:
    """In five tries at least once: on a machine that stands still meanwhile, the wait is over before the end comes."""
    told = [asyncio.Event() for _ in range(5)]
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(*((*answer("ok"), wait(heard)) for heard in told))
        for heard in told:
            await ask(relay.port, chat())
            heard.set()
            await upstream.wait_for(lambda upstream: upstream.active == 0)
    assert len({request.connection for request in upstream.requests}) < 5


async def test_a_bomb_does_not_go_off(served: Served) -> None:
    tracemalloc.start()
    try:
        for name in ("a bomb", "an error that is a bomb"):
            served.upstream.script(FAULTS[name].answer, model=name)
            await ask(served.relay.port, chat(model=name))
        assert tracemalloc.get_traced_memory()[1] < 2 * KiB * KiB
    finally:
        tracemalloc.stop()


async def test_an_upstream_that_hangs_after_its_end_delays_nobody() -> None:
    async with Upstream() as upstream, running(upstream.base_url, usage_wait_seconds=60) as relay:
        upstream.script((*answer("ok"), hang()), answer("next"))
        async with asyncio.timeout(1):
            _, events = await ask(relay.port, chat())
        assert [event["type"] for event in events] == ["start", "delta", "done", "[DONE]"]
        await upstream.wait_for(lambda upstream: upstream.aborted == 1)
        _, events = await ask(relay.port, chat())
    assert (text_of(events), upstream.requests[1].connection) == ("next", 2)


async def test_what_comes_unasked_is_nobodys_answer() -> None:
    spoken = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(WHOLE)
    idle = asyncio.Event()
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        unasked = (wait(idle), lambda exchange: exchange.write(spoken + WHOLE))
        upstream.script((head(content_length=len(WHOLE)), send(WHOLE), *unasked), answer("mine"))
        _, first = await ask(relay.port, chat())
        idle.set()
        await upstream.wait_for(lambda upstream: upstream.active == 0)
        _, second = await ask(relay.port, chat())
    assert (text_of(first), text_of(second)) == ("Héllo", "mine")
