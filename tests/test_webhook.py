"""The webhook's calls, against a scripted receiver: what they say, who can believe them, and that they cost no stream
anything, whatever the receiver does.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import openai
import pytest
import structlog
from structlog.testing import capture_logs

from app.admission.callers import Caller, Grant
from app.settings import MiB, SettingsError
from app.settings.tables import WebhookTable
from app.stream import Cause
from app.webhook import calls
from app.webhook.calls import Webhook
from app.webhook.retrying import LONGEST_WAIT_SECONDS, wait_s
from app.webhook.signing import Signer
from tests.relay import until
from tests.summaries import ended
from tests.tls import trusted_by_itself
from tests.webhook_receiver import ENDLESS, OK, Answer, Received, Receiver, status

SECRET: Final = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture(autouse=True)
def _all_is_logged() -> None:
    """Whatever level a relay of another test had."""
    structlog.reset_defaults()


@contextlib.asynccontextmanager
async def telling(
    url: str, monkeypatch: pytest.MonkeyPatch, *, secret: str = SECRET, wait_s: float = 0, **fields: Any
) -> AsyncIterator[Webhook]:
    """A webhook that waits `wait_s` before each repetition."""
    monkeypatch.setenv("HOOK_SECRET", secret)
    table = WebhookTable(url=url, secret_env="HOOK_SECRET", **fields)
    webhook = Webhook(table, user_agent="sse-relay/test", draw=lambda _: wait_s)
    try:
        yield webhook
    finally:
        await webhook.aclose()


def verify(received: Received, secret: str = SECRET) -> None:
    """By the verifier that OpenAI's SDK has for webhooks of this standard; raises where it does not believe."""
    client = openai.OpenAI(api_key="none", base_url="http://127.0.0.1:9")
    client.webhooks.verify_signature(received.body, received.headers, secret=secret)


def outcomes(webhook: Webhook) -> dict[str, int]:
    """Those that there were."""
    return {name: count for name, count in msgspec.structs.asdict(webhook.now()).items() if count}


# What a call says


async def test_a_call_says_how_the_stream_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    before = datetime.now(UTC)
    async with Receiver() as receiver, telling(receiver.url, monkeypatch) as webhook:
        webhook(ended())
        [received] = await receiver.attempts(1)
    assert received.line == "POST /hook HTTP/1.1"
    assert received.headers["content-type"] == "application/json"
    assert received.headers["user-agent"] == "sse-relay/test"
    timestamp = datetime.fromisoformat(received.message["timestamp"])
    assert before <= timestamp <= datetime.now(UTC)
    assert received.message == {
        "type": "stream.ended",
        "timestamp": received.message["timestamp"],
        "data": {
            "stream": "s_1",
            "request_id": "r_1",
            "status": "done",
            "finish_reason": "stop",
            "error": None,
            "caller": "key:app",
            "subject": "user-7",
            "profile": "support",
            "model": "small",
            "upstream": "first",
            "attempts": 2,
            "usage": {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12, "source": "reported"},
            "timings": {"queued_s": 0.1, "first_token_s": 0.4, "total_s": 2.0},
        },
    }


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        ("finished", "done"),
        ("deleted", "cancelled"),
        ("left", "cancelled"),
        ("failed", "error"),
        ("drained", "error"),
        ("lost", "error"),
    ],
)
async def test_every_end_is_one_of_three(cause: Cause, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    failure: dict[str, Any] = {"code": "upstream_error", "phase": "stream", "upstream_status": 500}
    summary = ended(cause=cause, **(failure if told == "error" else {}))
    async with Receiver() as receiver, telling(receiver.url, monkeypatch) as webhook:
        webhook(summary)
        [received] = await receiver.attempts(1)
    data = received.message["data"]
    assert data["status"] == told
    error = {"code": "upstream_error", "phase": "stream", "upstream_status": 500}
    assert data["error"] == (error if told == "error" else None)


async def test_the_text_is_told_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Receiver() as receiver, telling(receiver.url, monkeypatch) as webhook:
        webhook(ended(1, text="¡Hola! 🌍\u2028", text_cut=True))
        webhook(ended(2, text=""))
        webhook(ended(3))
        received = await receiver.attempts(3)
    texts = {each.message["data"]["stream"]: each.message["data"] for each in received}
    assert (texts["s_1"]["text"], texts["s_1"]["text_cut"]) == ("¡Hola! 🌍\u2028", True)
    assert (texts["s_2"]["text"], texts["s_2"]["text_cut"]) == ("", False)
    assert not {"text", "text_cut"} & texts["s_3"].keys()
    for each in received:
        verify(each)


async def test_half_a_surrogate_pair_in_a_name_is_told_as_a_question_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Receiver() as receiver, telling(receiver.url, monkeypatch) as webhook:
        webhook(ended(model="m\ud800", owner=Caller("jwt:site", "\udfff")))
        [received] = await receiver.attempts(1)
    assert (received.message["data"]["model"], received.message["data"]["subject"]) == ("m?", "?")


async def test_a_visitors_cookie_is_told_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Receiver() as receiver, telling(receiver.url, monkeypatch) as webhook:
        webhook(ended(owner=Caller("", "c" * 32), grant=Grant()))
        [received] = await receiver.attempts(1)
    assert (received.message["data"]["caller"], received.message["data"]["subject"]) == ("anonymous", None)
    assert b"c" * 32 not in received.body


# Who can believe it


def test_a_signature_is_that_of_the_standard() -> None:
    """The example of the standard's own libraries."""
    body = b'{"test": 2432232314}'
    headers = Signer(SECRET).headers("msg_p5jXN8AQM9LWM0D4loKWxJek", body, now=1614265330.9)
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


@pytest.mark.parametrize("secret", [SECRET, "whsec_YQ==", "whsec_YQ", "any other secret", "wh"])
async def test_another_implementation_believes_a_call_and_no_other(
    secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Receiver() as receiver, telling(receiver.url, monkeypatch, secret=secret) as webhook:
        webhook(ended())
        [received] = await receiver.attempts(1)
    padded = "whsec_YQ==" if secret == "whsec_YQ" else secret  # OpenAI's verifier needs what the standard's does not
    verify(received, padded)
    forged = received.body.replace(b"user-7", b"user-8")
    for changed in (
        msgspec.structs.replace(received, body=forged),
        msgspec.structs.replace(received, headers=received.headers | {"webhook-id": "msg_s_2"}),
        msgspec.structs.replace(received, headers=received.headers | {"webhook-timestamp": "1"}),
    ):
        with pytest.raises((openai.InvalidWebhookSignatureError, ValueError)):
            verify(changed, padded)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        verify(received, "another")


@pytest.mark.parametrize("secret", ["whsec_", "whsec_==", "whsec_not base64", "whsec_a", "whsec_YWJj!", "whsec_YWJj\n"])
def test_a_secret_that_is_no_key_is_refused_and_not_shown(secret: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Signer(secret)
    assert "webhook" in str(caught.value)
    assert secret == "whsec_" or secret not in str(caught.value)


async def test_a_receiver_without_a_certificate_that_is_trusted_hears_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, tls = trusted_by_itself(tmp_path)
    async with Receiver(tls=tls) as receiver:
        async with telling(receiver.url, monkeypatch, attempts=1) as webhook:
            webhook(ended())
            await until(lambda: webhook.now().given_up, 5)
        assert receiver.received == []
        trusting = ssl.create_default_context(cafile=str(certificate))
        monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", trusting)
        async with telling(receiver.url, monkeypatch, attempts=1) as webhook:
            webhook(ended())
            await receiver.attempts(1)


# Repetitions


def closed_port() -> str:
    """Where nobody listens."""
    return "http://127.0.0.1:9/hook"


@pytest.mark.parametrize(
    "failure",
    [*map(status, (408, 425, 429, 500, 502, 503, 504)), "reset", "hang", b"garbage\r\n\r\n"],
    ids=["408", "425", "429", "500", "502", "503", "504", "reset", "hang", "garbage"],
)
async def test_a_call_is_repeated_with_its_id_until_it_is_taken(
    failure: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        Receiver(failure, failure, OK) as receiver,
        telling(receiver.url, monkeypatch, timeout_seconds=0.2) as webhook,
    ):
        webhook(ended())
        attempts = await receiver.attempts(3)
        await until(lambda: not webhook.now().waiting, 5)
    assert {each.headers["webhook-id"] for each in attempts} == {"msg_s_1"}
    assert len({each.body for each in attempts}) == 1
    assert outcomes(webhook) == {"delivered": 1}
    for each in attempts:
        verify(each)


async def test_who_is_away_for_a_moment_is_told_later(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Receiver() as receiver:
        url, port = receiver.url, receiver.port
    async with telling(url, monkeypatch, attempts=20, wait_s=0.05) as webhook:
        webhook(ended())
        back = Receiver()
        back._server = await asyncio.start_server(back._accept, "127.0.0.1", port)
        await back.attempts(1)
        await back.__aexit__()
    assert outcomes(webhook) == {"delivered": 1}


@pytest.mark.parametrize("code", [301, 302, 307, 308, 304, 400, 401, 403, 404, 405, 409, 410, 413, 422])
async def test_any_other_answer_is_the_last_word(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Receiver() as elsewhere:
        moved = status(code, {"location": elsewhere.url, "retry-after": "0"})
        async with Receiver(moved) as receiver, telling(receiver.url, monkeypatch) as webhook:
            with capture_logs() as logs:
                webhook(ended())
                await until(lambda: not webhook.now().waiting, 5)
            assert len(receiver.received) == 1
        assert elsewhere.received == []
    assert outcomes(webhook) == {"refused": 1}
    assert logs == [{"event": "webhook", "outcome": "refused", "calls": 1, "why": str(code), "log_level": "warning"}]


async def test_a_call_that_nobody_takes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Receiver(status(500)) as receiver, telling(receiver.url, monkeypatch, attempts=3) as webhook:
        with capture_logs() as logs:
            webhook(ended())
            await until(lambda: not webhook.now().waiting, 5)
        assert len(receiver.received) == 3
    assert outcomes(webhook) == {"given_up": 1}
    assert [(line["outcome"], line["why"]) for line in logs] == [("given_up", "500")]


async def test_retry_after_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = status(503, {"retry-after": "1"})
    async with Receiver(busy, OK) as receiver, telling(receiver.url, monkeypatch) as webhook:
        webhook(ended())
        first, second = await receiver.attempts(2)
    assert 0.95 < second.at - first.at < 3
    assert int(second.headers["webhook-timestamp"]) > int(first.headers["webhook-timestamp"])
    verify(second)


def test_waits_grow_are_drawn_and_have_a_bound() -> None:
    def most(limit: float) -> float:
        return limit

    assert [wait_s(failures, None, most) for failures in range(1, 7)] == [2, 6, 18, 54, 120, 120]
    assert wait_s(3, None, lambda limit: limit / 4) == 4.5
    assert wait_s(1, 30, most) == 32
    assert wait_s(1, 86_400, most) == LONGEST_WAIT_SECONDS + 2


# What a receiver can do to us


async def test_a_receiver_that_hangs_has_four_calls_at_once_and_costs_no_stream_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    async with (
        Receiver("hang") as receiver,
        telling(receiver.url, monkeypatch, attempts=1, timeout_seconds=0.1) as webhook,
    ):
        began = loop.time()
        for number in range(20):
            webhook(ended(number))
        assert loop.time() - began < 0.1
        await until(lambda: not webhook.now().waiting, 5)
        assert (receiver.most, len(receiver.received)) == (4, 20)
    assert outcomes(webhook) == {"given_up": 20}


async def test_calls_beyond_the_queue_are_dropped_counted_and_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Receiver("hang") as receiver, telling(receiver.url, monkeypatch, max_queued=3) as webhook:
        with capture_logs() as logs:
            for number in range(1000):
                webhook(ended(number))
        assert outcomes(webhook) == {"waiting": 3, "dropped": 997}
        assert [(line["outcome"], line["log_level"]) for line in logs] == [("dropped", "warning")]
        await receiver.attempts(3)
        monkeypatch.setattr(calls, "FLUSH_SECONDS", 0.01)


async def test_a_line_says_how_many_it_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Receiver("hang") as receiver, telling(receiver.url, monkeypatch, max_queued=1) as webhook:
        webhook(ended())
        with capture_logs() as logs:
            for _ in range(5):
                webhook(ended())
            webhook._quiet_until.clear()  # as after a minute
            webhook(ended())
        monkeypatch.setattr(calls, "FLUSH_SECONDS", 0.01)
    assert [line["calls"] for line in logs] == [1, 5]


async def test_long_texts_fill_the_queue_before_their_number_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "MAX_HELD_BYTES", 3 * MiB)
    long = "x" * MiB
    async with Receiver("hang", OK) as receiver, telling(receiver.url, monkeypatch, timeout_seconds=0.5) as webhook:
        for number in range(5):
            webhook(ended(number, text=long))
        assert outcomes(webhook) == {"waiting": 2, "dropped": 3}
        await until(lambda: not webhook.now().waiting, 5)
        webhook(ended(9, text=long))  # what has ended is held no more
        await until(lambda: not webhook.now().waiting, 5)
        assert receiver.received[-1].message["data"]["text"] == long
        assert outcomes(webhook) == {"delivered": 3, "dropped": 3}


@pytest.mark.parametrize(("answer", "answer_s"), [(ENDLESS, 0.05), ("flood", 600)], ids=["stops", "floods"])
async def test_an_answer_without_an_end_is_an_answer(
    answer: Answer, answer_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "ANSWER_SECONDS", answer_s)
    async with Receiver(answer) as receiver, telling(receiver.url, monkeypatch) as webhook:
        webhook(ended())
        await until(lambda: webhook.now().delivered, 5)
        assert len(receiver.received) == 1
        await until(lambda: not receiver._serving, 5)  # and its connection is closed


@pytest.mark.parametrize(
    "answer",
    [
        status(200, body=b"thanks"),
        (status(200, {"content-length": "6"}), b"thanks"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"6\r\nthanks\r\n", b"0\r\n\r\n"),
    ],
    ids=["whole", "in pieces", "chunked"],
)
async def test_a_connection_is_used_again(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Receiver(answer) as receiver, telling(receiver.url, monkeypatch) as webhook:
        for number in (1, 2, 3):
            webhook(ended(number))
            await until(lambda: not webhook.now().waiting, 5)
        assert [each.connection for each in receiver.received] == [1, 1, 1]


# The end of the process


async def test_what_waits_for_its_repetition_is_told_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Receiver(status(503), status(503), OK) as receiver:
        async with telling(receiver.url, monkeypatch, wait_s=600) as webhook:
            webhook(ended(1))
            webhook(ended(2))
            await receiver.attempts(2)
            webhook(ended(3))
        assert {each.headers["webhook-id"] for each in receiver.received} == {"msg_s_1", "msg_s_2", "msg_s_3"}
    assert outcomes(webhook) == {"delivered": 3}


@pytest.mark.parametrize("receives", ["hang", status(500)], ids=["hangs", "fails"])
async def test_the_end_comes_soon_and_says_what_was_lost(receives: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "FLUSH_SECONDS", 0.3)
    loop = asyncio.get_running_loop()
    async with Receiver(receives) as receiver, telling(receiver.url, monkeypatch, wait_s=600) as webhook:
        for number in range(10):
            webhook(ended(number))
        await until(lambda: receiver.received, 5)
        began = loop.time()
        with capture_logs() as logs:
            await webhook.aclose()
        assert loop.time() - began < 2
    lost: MutableMapping[str, Any] = logs[-1]
    assert (lost["event"], lost["outcome"], lost["calls"], lost["log_level"]) == ("webhook", "lost", 10, "error")
    assert outcomes(webhook) == {"lost": 10}


async def test_after_the_end_nothing_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Receiver() as receiver, telling(receiver.url, monkeypatch) as webhook:
        await webhook.aclose()
        webhook(ended())
        assert outcomes(webhook) == {"lost": 1}
        assert receiver.received == []
