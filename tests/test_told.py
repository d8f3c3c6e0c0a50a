"""What is told of streams: each end once, to the log, the metrics and the webhook, and never what was said."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
import pytest

from app.api.admin import Desk
from tests.relay import Relay, ask, chat, connect, event_of, fetch, running, subject, until
from tests.scraped import Scraped
from tests.test_webhook import verify
from tests.upstream import Upstream, answer, chunk, delta, hang, head, reset
from tests.webhook_receiver import Receiver

TOKENS: Final = ("prompt_tokens", "completion_tokens", "total_tokens")
SECRET: Final = "a secret of both"


class Told(msgspec.Struct, frozen=True):
    """A relay with all that hears of its streams."""

    relay: Relay
    upstream: Upstream
    receiver: Receiver

    async def metrics(self) -> Scraped:
        desk: Desk = self.relay._app.state.desk
        return Scraped((await desk.metrics.exposition(desk.overview.now())).decode())

    async def webhook(self, count: int) -> dict[str, dict[str, Any]]:
        """What so many calls said, by the stream."""
        received = await self.receiver.attempts(count)
        for each in received:
            verify(each, SECRET)
        return {each.message["data"]["stream"]: each.message["data"] for each in received}


@contextlib.asynccontextmanager
async def told(monkeypatch: pytest.MonkeyPatch, **overrides: Any) -> AsyncIterator[Told]:
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    async with Receiver() as receiver, Upstream() as upstream:
        webhook = {"url": receiver.url, "secret_env": "HOOK_SECRET"}
        async with running(
            upstream.base_url, webhook=webhook, log_format="json", attempts=1, default_model="m", **overrides
        ) as relay:
            yield Told(relay, upstream, receiver)


def lines(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    """What the log says of each stream."""
    logged = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    streams = [line for line in logged if line["event"] == "stream"]
    by_stream = {line["stream"]: line for line in streams}
    assert len(by_stream) == len(streams)
    return by_stream


async def begun(relay: Relay, leaves: asyncio.Event, **fields: Any) -> str:
    """A stream whose reader stays until `leaves`, then goes."""
    async with connect(relay.port) as connection:
        response = await connection.request("POST", "/chat/stream", chat(**fields))
        blocks = response.blocks()
        while event_of(await anext(blocks))["type"] != "delta":
            pass
        stream_id = response.headers["x-stream-id"]
        if fields.get("model") == "deleted":
            await fetch(relay.port, "DELETE", f"/chat/stream/{stream_id}")
        await leaves.wait()
    return stream_id


async def test_every_end_is_told_once_to_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = asyncio.Event()
    now.set()
    async with told(monkeypatch) as all_of:
        relay, upstream = all_of.relay, all_of.upstream
        upstream.script(answer("Hel", "lo", usage=(5, 2)))
        upstream.script((head(), chunk("Hel"), reset()), model="broken")
        upstream.script((head(), chunk("Hel"), hang()), model="deleted")
        upstream.script((head(), chunk("Hel"), hang()), model="left")
        finished = await ask(relay.port, chat())
        broken = await ask(relay.port, chat(model="broken"))
        deleted = await begun(relay, now, model="deleted")
        left = await begun(relay, now, model="left")
        called = await all_of.webhook(4)
        scraped = await all_of.metrics()
    logged = lines(capsys)
    ends = {
        finished[0].headers["x-stream-id"]: ("finished", "done"),
        broken[0].headers["x-stream-id"]: ("failed", "error"),
        deleted: ("deleted", "cancelled"),
        left: ("left", "cancelled"),
    }
    assert {stream: (logged[stream]["cause"], called[stream]["status"]) for stream in called} == ends
    assert logged.keys() == called.keys()
    assert scraped.by("relay_streams_ended_total", "cause") == {"finished": 1, "failed": 1, "deleted": 1, "left": 1}
    for stream, call in called.items():
        line, usage = logged[stream], call["usage"]
        assert (line["request_id"], line["upstream"]) == (call["request_id"], call["upstream"])
        assert (line["prompt_tokens"], line["completion_tokens"]) == (
            usage["prompt_tokens"],
            usage["completion_tokens"],
        )
    assert scraped.sum("relay_tokens_total") == sum(call["usage"]["total_tokens"] for call in called.values())


async def test_the_answer_is_told_where_the_profile_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = asyncio.Event()
    leaves.set()
    profiles = {"kept": {"webhook_text": True}, "other": {}}
    async with told(monkeypatch, profiles=profiles) as all_of:
        thinks = (head(), delta(reasoning_content="hm"), chunk("Hel"), chunk("lo 🌍"), delta("stop"))
        all_of.upstream.script(thinks)
        all_of.upstream.script((head(), chunk("Hel"), hang()), model="deleted")
        kept, _ = await ask(all_of.relay.port, chat(profile="kept"))
        other, _ = await ask(all_of.relay.port, chat(profile="other"))
        neither, _ = await ask(all_of.relay.port, chat())
        half = await begun(all_of.relay, leaves, model="deleted", profile="kept")
        called = await all_of.webhook(4)
    told_of = called[kept.headers["x-stream-id"]]
    assert (told_of["profile"], told_of["text"], told_of["text_cut"]) == ("kept", "Hello 🌍", False)
    assert (called[half]["status"], called[half]["text"]) == ("cancelled", "Hel")
    for silent in (other, neither):
        assert "text" not in called[silent.headers["x-stream-id"]]


async def test_nothing_that_was_said_and_no_cookie_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = ("canary-prompt", "canary-answer", "canary-system", "c" * 32, "test-key", SECRET)
    async with told(monkeypatch) as all_of:
        all_of.upstream.script(answer("canary-answer"))
        all_of.upstream.script((head(), chunk("canary-answer"), delta("canary-answer and more")), model="odd")
        for model in ("m", "odd"):
            asked = chat("canary-prompt", system="canary-system", model=model)
            await ask(all_of.relay.port, asked, headers=subject("c"))
        await all_of.webhook(2)
        page = (await all_of.metrics()).text
        bodies = b"".join(each.body for each in all_of.receiver.received).decode()
    log = capsys.readouterr().err
    assert log.count('"event":"stream"') == 2
    assert not [word for word in said if word in page]
    assert not [word for word in said if word in log]
    assert not [word for word in said if word in bodies.replace('"finish_reason":"canary-answer and more"', "")]


async def test_what_the_end_of_the_process_ends_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async with told(monkeypatch) as all_of:
        all_of.upstream.script((head(), chunk("Hel"), hang()))
        async with connect(all_of.relay.port) as connection:
            response = await connection.request("POST", "/chat/stream", chat())
            await all_of.relay.streams.close()
            [call] = (await all_of.webhook(1)).values()
    assert (call["stream"], call["status"]) == (response.headers["x-stream-id"], "error")
    assert call["error"]["code"] == "draining"


async def test_calls_that_wait_when_the_process_ends_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in its memory alone."""
    async with told(monkeypatch) as all_of:
        receiver = all_of.receiver
        all_of.upstream.script(answer("hi"))
        for _ in range(20):
            await ask(all_of.relay.port, chat())
    assert len(receiver.received) == 20


async def test_a_webhook_that_hangs_delays_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.webhook.calls.FLUSH_SECONDS", 0.05)
    async with told(monkeypatch) as all_of:
        all_of.receiver.answers = ["hang"]
        all_of.upstream.script(answer("hi"))
        async with asyncio.timeout(10):
            for _ in range(30):
                _, events = await ask(all_of.relay.port, chat())
                assert events[-1] == {"type": "[DONE]"}
        scraped = await all_of.metrics()
        assert (scraped.value("relay_webhook_waiting"), scraped.value("relay_streams")) == (30, 0)
        await until(lambda: all_of.receiver.active == 4)
