"""A scripted upstream on a real port: `Upstream`, and the answers that it can be told to give, right and wrong.

An answer is a sequence of steps. Before `head`, `send` puts bytes on the wire as they are; after it, into the body,
framed as the head announced. An answer that runs to its end leaves the connection open for the next request, unless it
had no head or was delimited by the close.
"""

import asyncio
import base64
import contextlib
import json
import socket
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

from tests.upstream_server import Answer, Ending, Exchange, Request, Step, Upstream

__all__ = ["Answer", "Exchange", "Request", "Step", "Upstream"]

EVENT_STREAM = {"content-type": "text/event-stream"}
BODILESS = {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}


def send(data: bytes) -> Step:
    return lambda exchange: exchange.body(data)


def head(
    status: int = 200,
    headers: Mapping[str, str] = EVENT_STREAM,
    *,
    content_length: int | None = None,
    close: bool = False,
) -> Step:
    """The status line and headers. The body is chunked, of `content_length` bytes, or delimited by the `close`."""

    async def step(exchange: Exchange) -> None:
        match content_length, close:
            case _ if status in BODILESS:
                exchange.framing, framed = "length", {}
            case int(), _:
                exchange.framing, framed = "length", {"content-length": str(content_length)}
            case _, True:
                exchange.framing, framed = "close", {"connection": "close"}
            case _:
                exchange.framing, framed = "chunked", {"transfer-encoding": "chunked"}
        lines = [f"HTTP/1.1 {status} Scripted", *(f"{name}: {value}" for name, value in {**headers, **framed}.items())]
        await exchange.write("\r\n".join([*lines, "", ""]).encode())

    return step


def event(payload: object) -> Step:
    return send(b"data: " + json.dumps(payload).encode() + b"\n\n")


def _completion(choices: list[Any], **more: object) -> Step:
    """A chat.completion.chunk that names the model that was asked for."""

    async def step(exchange: Exchange) -> None:
        model = exchange.request.body.get("model") if isinstance(exchange.request.body, dict) else None
        same = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": model or "m"}
        await event({**same, "choices": choices, **more})(exchange)

    return step


def delta(finish_reason: str | None = None, **fields: object) -> Step:
    return _completion([{"index": 0, "delta": fields, "finish_reason": finish_reason}])


def chunk(text: str) -> Step:
    return delta(content=text)


def chunks(*texts: str) -> Step:
    async def step(exchange: Exchange) -> None:
        for text in texts:
            await chunk(text)(exchange)

    return step


def finish(reason: str = "stop") -> Step:
    return delta(reason)


def usage(prompt_tokens: int, completion_tokens: int) -> Step:
    total = prompt_tokens + completion_tokens
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}
    return _completion([], usage=counts)


_usage = usage  # in `answer` the name means its parameter


def done() -> Step:
    return send(b"data: [DONE]\n\n")


def wait(released: asyncio.Event) -> Step:
    return lambda _: released.wait()


def hang() -> Step:
    return lambda _: asyncio.Event().wait()


def pause(seconds: float) -> Step:
    return lambda _: _until(asyncio.get_running_loop().time() + seconds)


def repeat(step: Step, n: int | None = None, interval: float = 0) -> Step:
    """`step`, `n` times or for ever, one every `interval` seconds: by the clock, so that the pace does not drift."""

    async def steps(exchange: Exchange) -> None:
        due, times = asyncio.get_running_loop().time(), 0
        while n is None or times < n:
            await step(exchange)
            due, times = due + interval, times + 1
            if interval:
                await _until(due)

    return steps


async def _until(due: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(due):
            await asyncio.Event().wait()


def _end(how: Ending) -> Step:
    async def step(exchange: Exchange) -> None:
        exchange.ending = how

    return step


def close() -> Step:
    """FIN after what was sent, whatever the head promised."""
    return _end("close")


def reset() -> Step:
    return _end("reset")


def answer(*texts: str, finish: str | None = "stop", usage: tuple[int, int] | None = None) -> Answer:
    """What a well-behaved upstream streams; without `finish` it stops early, with `[DONE]` all the same."""
    ends = [delta(finish)] if finish else []
    counts = [_usage(*usage)] if usage else []
    return head(), delta(role="assistant", content=""), chunks(*texts), *ends, *counts, done()


def status(code: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
    return head(code, headers or {}, content_length=len(body)), send(body)


def raw_case(case: Mapping[str, Any]) -> Answer:
    return head(case["status"], case["headers"]), send(base64.b64decode(case["body_b64"]))


def silent() -> Answer:
    return (hang(),)


def comments(interval: float) -> Answer:
    return head(), repeat(send(b": keep-alive\n\n"), interval=interval)


@contextlib.contextmanager
def blackhole() -> Iterator[str]:
    """An address where connecting hangs: the queue of a listener that never accepts is full, so SYNs are dropped."""
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = sockets.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
