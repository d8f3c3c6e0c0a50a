"""Before anything was carried a failed attempt may be repeated, a bounded number of times; after it never.

A second generation after the first content would be text said twice, and paid for twice.
"""

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, Final

import pytest
from structlog.testing import capture_logs

from tests.relay import ask, chat, running, text_of
from tests.upstream import Answer, Upstream, answer, blackhole, close, delta, event, head, reset, send, status

AT_ONCE: Final = {"max_retry_wait_seconds": 0.01}
SOON_SECONDS: Final = 1.5

QUOTA: Final = json.dumps({"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}).encode()


def in_band(**error: object) -> Answer:
    return head(), delta(role="assistant", content=""), event({"error": error})


REPEATED: Final[dict[str, Answer]] = {
    **{str(code): status(code) for code in (408, 409, 429, 500, 502, 503, 504, 524)},
    "reset before the head": (reset(),),
    "closed before the head": (close(),),
    "reset before content": (head(), reset()),
    "in-band number": in_band(code=503, message="busy"),
    "in-band 429": in_band(code="429", message="slow down"),
    "in-band rate limit": in_band(type="rate_limit_error", message="slow down"),
    "in-band name": in_band(type="overloaded_error", message="busy"),
}
NOT_REPEATED: Final[dict[str, tuple[Answer, int, str]]] = {
    "400": (status(400), 400, "upstream_rejected"),
    "401": (status(401), 502, "upstream_error"),
    "402": (status(402), 502, "upstream_error"),
    "403": (status(403), 502, "upstream_error"),
    "404": (status(404), 400, "upstream_rejected"),
    "422": (status(422), 400, "upstream_rejected"),
    "quota": (status(429, QUOTA, {"retry-after": "0"}), 502, "upstream_error"),
    "in-band quota": (in_band(code="insufficient_quota", message="no more"), 502, "upstream_error"),
    "in-band 400": (in_band(code=400, message="no"), 400, "upstream_rejected"),
    "redirect": (status(302, headers={"location": "/elsewhere"}), 502, "upstream_unavailable"),
    "truncated": ((head(), delta(role="assistant", content="")), 502, "upstream_truncated"),
    "no JSON": ((head(), send(b"data: {oops\n\n")), 502, "upstream_protocol"),
    "no event stream": (status(200, b"<html>", {"content-type": "text/html"}), 502, "upstream_protocol"),
    "no HTTP": ((send(b"what?\r\n\r\n"), close()), 502, "upstream_protocol"),
}
BROKEN_OFF: Final[dict[str, Answer]] = {
    "error": (event({"error": {"code": 503, "message": "busy"}}),),
    "reset": (reset(),),
    "end": (),
}


@pytest.mark.parametrize("failed", REPEATED.values(), ids=REPEATED)
async def test_a_passing_failure_is_repeated_and_the_stream_is_clean(failed: Answer) -> None:
    async with Upstream() as upstream, running(upstream.base_url, **AT_ONCE) as relay:
        upstream.script(failed, failed, answer("Hel", "lo"))
        response, events = await ask(relay.port, chat())
    assert (response.status, text_of(events), len(upstream.requests)) == (200, "Hello", 3)
    assert [event["type"] for event in events] == ["start", "delta", "delta", "done", "[DONE]"]
    assert [event["seq"] for event in events[:-1]] == [0, 1, 2, 3]


@pytest.mark.parametrize("attempts", [1, 2, 3])
async def test_no_failure_is_repeated_more_often_than_permitted(attempts: int) -> None:
    async with Upstream() as upstream, running(upstream.base_url, attempts=attempts, **AT_ONCE) as relay:
        upstream.script(status(503, b"busy"))
        response, (refusal,) = await ask(relay.port, chat())
    error = refusal["error"]
    assert (response.status, error["code"], error["upstream_status"]) == (502, "upstream_unavailable", 503)
    assert (error["retryable"], error["partial"]) == (True, False)
    assert len(upstream.requests) == attempts


@contextmanager
def nobody() -> Iterator[str]:
    """An address where connecting is refused."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/v1"


@pytest.mark.parametrize(
    ("unreachable", "settings", "code"),
    [(nobody, {}, "upstream_unavailable"), (blackhole, {"timeout_connect_seconds": 0.1}, "upstream_timeout")],
    ids=["refused", "unanswered"],
)
async def test_a_failure_to_connect_is_repeated(unreachable: Any, settings: dict[str, float], code: str) -> None:
    with unreachable() as base_url:
        async with running(base_url, **settings, **AT_ONCE) as relay:
            with capture_logs() as logs:
                _, (refusal,) = await ask(relay.port, chat())
    assert (refusal["error"]["code"], refusal["error"]["phase"]) == (code, "connect")
    assert [line["attempts"] for line in logs if line["event"] == "stream"] == [3]


@pytest.mark.parametrize(("failed", "http_status", "code"), NOT_REPEATED.values(), ids=NOT_REPEATED)
async def test_what_another_attempt_would_not_cure_is_not_repeated(failed: Answer, http_status: int, code: str) -> None:
    async with Upstream() as upstream, running(upstream.base_url, **AT_ONCE) as relay:
        upstream.script(failed)
        response, (refusal,) = await ask(relay.port, chat())
    assert (response.status, refusal["error"]["code"], len(upstream.requests)) == (http_status, code, 1)


@pytest.mark.parametrize("fields", [{"content": "a"}, {"reasoning_content": "a"}, {"refusal": "a"}], ids=str)
async def test_nothing_is_repeated_once_something_was_carried(fields: dict[str, Any]) -> None:
    async with Upstream() as upstream, running(upstream.base_url, **AT_ONCE) as relay:
        for name, ending in BROKEN_OFF.items():
            upstream.script((head(), delta(**fields), *ending), model=name)
            _, events = await ask(relay.port, chat(model=name))
            assert [event["type"] for event in events[-2:]] == ["error", "[DONE]"], name
            assert events[-2]["error"]["partial"] is True, name
        assert len(upstream.requests) == len(BROKEN_OFF)


# Retry-After: upstream's word on when another attempt makes sense.


@pytest.mark.parametrize("code", [429, 503])
async def test_retry_after_is_waited_for(code: int) -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(status(code, headers={"retry-after": "0.6"}), answer("a"))
        response, _ = await ask(relay.port, chat())
    first, second = upstream.requests
    assert response.status == 200
    assert 0.59 < second.at - first.at < 0.6 + SOON_SECONDS


@pytest.mark.parametrize(
    ("settings", "after"),
    [({}, "30"), ({"max_retry_wait_seconds": 60, "timeout_first_token_seconds": 20}, "30")],
    ids=["the longest wait", "what is left"],
)
async def test_a_retry_after_beyond_what_we_may_wait_is_told_at_once(settings: dict[str, float], after: str) -> None:
    async with Upstream() as upstream, running(upstream.base_url, **settings) as relay:
        upstream.script(status(429, headers={"retry-after": after}))
        async with asyncio.timeout(SOON_SECONDS):
            response, (refusal,) = await ask(relay.port, chat())
    assert (response.status, refusal["error"]["code"], response.headers["retry-after"]) == (429, "rate_limited", after)
    assert len(upstream.requests) == 1


async def test_retry_after_may_be_a_date() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(status(503, headers={"retry-after": date}))
        async with asyncio.timeout(SOON_SECONDS):
            response, _ = await ask(relay.port, chat())
    assert (response.status, len(upstream.requests)) == (502, 1)
    assert 50 < int(response.headers["retry-after"]) <= 60


# An upstream that knows no `stream_options` is asked without, from then on.


def refuses_usage(*, code: int = 400) -> Answer:
    words = {"error": {"message": "Unrecognized request argument supplied: stream_options"}}
    return status(code, json.dumps(words).encode(), {"content-type": "application/json"})


@pytest.mark.parametrize("code", [400, 422])
async def test_refused_stream_options_are_left_out_from_then_on(code: int) -> None:
    async with Upstream() as upstream, running(upstream.base_url, attempts=1) as relay:
        upstream.script(refuses_usage(code=code), answer("a"))
        texts = [text_of((await ask(relay.port, chat()))[1]) for _ in range(2)]
    assert texts == ["a", "a"]
    assert ["stream_options" in request.body for request in upstream.requests] == [True, False, False]


async def test_two_requests_may_find_stream_options_refused_at_once() -> None:
    async with Upstream() as upstream, running(upstream.base_url, attempts=1) as relay:
        both = asyncio.Event()
        upstream.script(
            (lambda _: both.wait(), *refuses_usage()), (lambda _: both.wait(), *refuses_usage()), answer("a")
        )
        asked = asyncio.gather(ask(relay.port, chat()), ask(relay.port, chat()))
        await upstream.wait_for(lambda u: u.active == 2)
        both.set()
        assert [text_of(events) for _, events in await asked] == ["a", "a"]


async def test_a_refusal_of_anything_else_is_not_repeated_without_stream_options() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(status(400, b'{"error": {"message": "no such parameter: top_p"}}'), answer("a"))
        response, _ = await ask(relay.port, chat())
    assert (response.status, len(upstream.requests)) == (400, 1)
