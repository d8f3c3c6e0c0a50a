"""The admin listener: what it shows is what is, it stops what it is told to, and it is nobody's but the operator's."""

import asyncio
import contextlib
import itertools
import json
import signal
import socket
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from app import admin
from app.settings import SettingsError
from benchmarks.processes import free_port
from tests.relay import Connection, Relay, ask, chat, connect, event_of, fetch, running, settings_for, subject, until
from tests.scraped import Scraped
from tests.served import END_SECONDS, ROOT, SERVE, served
from tests.terminal import environment
from tests.upstream import Upstream, answer, chunk, finish, hang, head, repeat, reset, wait

LOCAL: Final = "http://127.0.0.1:9/v1"
PATHS: Final = (
    ("GET", "/metrics"),
    ("GET", "/readyz"),
    ("GET", "/healthz"),
    ("GET", "/streams"),
    ("DELETE", "/streams/s"),
)


class Supervised(msgspec.Struct, frozen=True):
    """A relay, and the port of its admin listener."""

    relay: Relay
    port: int

    async def get(self, path: str, status: int = 200) -> Any:
        response, body = await fetch(self.port, "GET", path)
        assert response.status == status, body
        assert response.headers["cache-control"] == "no-store"
        return json.loads(body)

    async def scrape(self) -> Scraped:
        response, body = await fetch(self.port, "GET", "/metrics")
        assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        return Scraped(body.decode())


@contextlib.asynccontextmanager
async def supervised(base_url: str = LOCAL, **overrides: Any) -> AsyncIterator[Supervised]:
    settings = settings_for(base_url, **(overrides | {"admin_port": 0}))
    async with (
        running(base_url, **overrides) as relay,
        admin.listening(settings, lambda: relay._app.state.desk) as url,
    ):
        assert url is not None
        yield Supervised(relay, int(url.rpartition(":")[2]))


@contextlib.asynccontextmanager
async def streaming(port: int, **fields: Any) -> AsyncIterator[tuple[str, Connection, AsyncIterator[str]]]:
    """A stream of which the first text has come: its id, its connection and the blocks to come."""
    async with connect(port) as connection:
        response = await connection.request("POST", "/chat/stream", chat(**fields))
        blocks = response.blocks()
        assert [event_of(await anext(blocks))["type"] for _ in range(2)] == ["start", "delta"]
        yield response.headers["x-stream-id"], connection, blocks


# What it shows


async def test_metrics_add_up_with_what_was_asked_and_answered() -> None:
    async with Upstream() as upstream, supervised(upstream.base_url, attempts=1, default_model="m") as supervisor:
        upstream.script(answer("Hel", "lo", usage=(5, 2)), model="m")
        upstream.script((head(), chunk("Hel"), reset()), model="broken")
        upstream.script((head(), chunk("Hel"), hang()), model="endless")
        port = supervisor.relay.port
        for _ in range(3):
            await ask(port, chat())
        await ask(port, chat(model="broken"))
        async with streaming(port, model="endless") as (stream_id, _, blocks):
            running = await supervisor.scrape()
            await fetch(port, "DELETE", f"/chat/stream/{stream_id}")
            assert event_of([block async for block in blocks][-2])["type"] == "done"
        await until(lambda: not supervisor.relay.generations)
        scraped = await supervisor.scrape()
    assert (running.value("relay_streams"), scraped.value("relay_streams")) == (1, 0)
    assert running.value("relay_log_bytes") > 0
    assert scraped.by("relay_streams_ended_total", "cause") == {"finished": 3, "failed": 1, "deleted": 1}
    assert scraped.sum("relay_attempts_total") == len(upstream.requests) == 5
    reported = {"caller": "anonymous", "model": "m", "source": "reported"}
    assert scraped.value("relay_tokens_total", kind="prompt", **reported) == 15
    assert scraped.value("relay_tokens_total", kind="completion", **reported) == 6
    assert scraped.sum("relay_tokens_total", model="other", source="estimated", kind="completion") == 2
    assert scraped.values("gen_ai_request_model") == {"m", "other"}


async def test_streams_are_listed_as_they_are() -> None:
    async with Upstream() as upstream, supervised(upstream.base_url, max_streams=1) as supervisor:
        upstream.script((head(), chunk("Hel"), hang()))
        assert await supervisor.get("/streams") == {"streams": []}
        async with (
            streaming(supervisor.relay.port, message="a secret") as (stream_id, _, _),
            connect(supervisor.relay.port) as waiting,
        ):
            waiting.write("POST", "/chat/stream", chat(model="other"), subject("a"))
            await until(lambda: len(supervisor.relay.generations) == 2)
            page = await supervisor.get("/streams")
            first, second = page["streams"]
            assert (await supervisor.get("/readyz"))["queue"] == {"waiting": 1, "max": 100}
    ages = [shown.pop("age_s") for shown in (first, second)]
    assert 0 <= ages[1] <= ages[0] < 5
    assert first == {
        "id": stream_id,
        "caller": "anonymous",
        "model": "m",
        "upstream": "default",
        "phase": "streaming",
        "readers": 1,
        "lag_bytes": 0,
    }
    assert second == {
        "id": second["id"],
        "caller": "anonymous",
        "model": "other",
        "upstream": None,
        "phase": "queued",
        "readers": 1,
        "lag_bytes": second["lag_bytes"],  # its status is held back, and what begins the answer with it
    }
    assert not [said for said in ("secret", "Hel", "a" * 32) if said in json.dumps(page)]


async def test_a_reader_that_does_not_read_is_seen_by_its_lag() -> None:
    async with Upstream() as upstream, supervised(upstream.base_url) as supervisor:
        upstream.script((head(), chunk("Hel"), repeat(chunk("x" * 4000), 500), hang()))
        async with streaming(supervisor.relay.port) as (_, connection, _):
            connection.stop_reading()
            await until(lambda: supervisor.relay.blocked, 5)
            [shown] = (await supervisor.get("/streams"))["streams"]
    assert shown["lag_bytes"] > 4000


async def test_readiness_is_told_in_detail_here_and_tersely_in_public() -> None:
    tables: dict[str, Any] = {
        "upstreams": {
            "first": {"base_url": LOCAL, "max_streams": 2},
            "second": {"base_url": LOCAL, "priority": 1},
        }
    }
    async with supervised(max_streams=7, max_queued=3, **tables) as supervisor:
        detail = await supervisor.get("/readyz")
        log = detail.pop("log")
        assert (log["bytes"], log["max_bytes"]) == (0, 256 * 2**20)
        rested = {"streams": 0, "state": "closed", "failures": 0, "opens_in_s": 0.0, "rests_s": 0.0}
        assert detail == {
            "status": "ready",
            "draining": False,
            "shared_log": None,
            "streams": {"running": 0, "max": 7},
            "queue": {"waiting": 0, "max": 3},
            "upstreams": [
                {"name": "first", "max_streams": 2, **rested},
                {"name": "second", "max_streams": None, **rested},
            ],
            "webhook": None,
        }
        response, body = await fetch(supervisor.relay.port, "GET", "/readyz")
        assert (response.status, json.loads(body)) == (200, {"status": "ready"})


async def test_an_upstream_that_was_taken_out_is_shown() -> None:
    async with supervised(attempts=1, breaker_failures=2, breaker_open_seconds=60) as supervisor:
        for _ in range(2):
            await ask(supervisor.relay.port, chat())
        [upstream] = (await supervisor.get("/readyz"))["upstreams"]
        assert (upstream["name"], upstream["state"], upstream["failures"]) == ("default", "open", 2)
        assert 50 < upstream["opens_in_s"] <= 60
        scraped = await supervisor.scrape()
        assert scraped.value("relay_upstream_state", upstream="default", state="open") == 1


async def test_before_the_relay_has_started_only_health_is_answered() -> None:
    async with admin.listening(settings_for(LOCAL, admin_port=0), lambda: None) as url:
        assert url is not None
        port = int(url.rpartition(":")[2])
        assert (await fetch(port, "GET", "/healthz"))[0].status == 200
        response, body = await fetch(port, "GET", "/readyz")
        assert (response.status, response.headers["retry-after"]) == (503, "1")
        assert json.loads(body)["error"]["code"] == "overloaded"


# What it does


async def test_a_stream_that_is_stopped_ends_properly_for_its_reader() -> None:
    async with Upstream() as upstream, supervised(upstream.base_url) as supervisor:
        upstream.script((head(), chunk("Hel"), hang()))
        async with streaming(supervisor.relay.port) as (stream_id, _, blocks):
            response, body = await fetch(supervisor.port, "DELETE", f"/streams/{stream_id}")
            assert (response.status, json.loads(body)) == (202, {"id": stream_id})
            end, last = [event_of(block) async for block in blocks]
        assert (end["type"], end["finish_reason"], last["type"]) == ("done", "cancelled", "[DONE]")
        await upstream.wait_for(lambda u: u.aborted == 1)
        for gone in (stream_id, "s_" + "0" * 32, "%00", "%0d%0a", "x" * 1000):
            response, body = await fetch(supervisor.port, "DELETE", f"/streams/{gone}")
            error = json.loads(body)["error"]
            assert (response.status, error["code"]) == (404, "not_found")
            assert error["request_id"] == response.headers["x-request-id"]
            assert "set-cookie" not in response.headers


# Whose it is


async def test_neither_port_serves_the_others_paths() -> None:
    async with supervised() as supervisor:
        for method, path in (("GET", "/metrics"), ("GET", "/streams"), ("DELETE", "/streams/s")):
            assert (await fetch(supervisor.relay.port, method, path))[0].status == 404
        for method, path, body in (
            ("POST", "/chat/stream", chat()),
            ("GET", "/chat/stream/s", None),
            ("POST", "/v1/chat/completions", {}),
            ("GET", "/v1/models", None),
            ("POST", "/tokens", {}),
            ("GET", "/", None),
            ("GET", "/docs", None),
            ("GET", "/openapi.json", None),
        ):
            response, answered = await fetch(supervisor.port, method, path, body)
            assert (response.status, json.loads(answered)["error"]["code"]) == (404, "not_found"), path


STRANGERS: Final = (
    "evil.example",
    "evil.example:8001",
    "127.0.0.1.evil.example",
    "",
    "[",
    "[::1",
    "1.2",
    "[10.1.2.3]x",
)
OURS: Final = ("localhost", "127.0.0.1:8001", "[::1]:8001", "10.1.2.3:8001", "[fd00::1]", "relay", "a.example.org:80")


async def test_a_strangers_name_that_points_here_is_not_served() -> None:
    async with supervised() as supervisor:
        for host, (method, path) in itertools.product(STRANGERS, PATHS):
            response, body = await fetch(supervisor.port, method, path, headers={"host": host})
            error = json.loads(body)["error"]
            assert (response.status, error["code"], error["param"]) == (400, "invalid_request", "Host"), (host, path)


async def test_addresses_and_names_of_ours_are_served() -> None:
    async with supervised(allowed_hosts=("relay", "*.example.org")) as supervisor:
        for host, (method, path) in itertools.product(OURS, PATHS):
            response, _ = await fetch(supervisor.port, method, path, headers={"host": host})
            assert response.status == (404 if method == "DELETE" else 200), (host, path)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/metrics", "GET"),
        ("DELETE", "/streams", "GET"),
        ("GET", "/streams/s", "DELETE"),
        ("PUT", "/readyz", "GET"),
    ],
)
async def test_another_method_is_refused_in_the_contracts_shape(method: str, path: str, allowed: str) -> None:
    async with supervised() as supervisor:
        response, body = await fetch(supervisor.port, method, path, headers={"accept": "text/event-stream"})
    assert (response.status, response.headers["allow"]) == (405, allowed)
    assert response.headers["content-type"] == "application/json"
    assert set(json.loads(body)["error"]) >= {"code", "message", "type", "param", "phase", "retryable", "request_id"}


async def test_no_page_elsewhere_may_read_or_stop() -> None:
    async with supervised(cors_origins=("https://app.example.com",)) as supervisor:
        asks = {"origin": "https://app.example.com", "access-control-request-method": "DELETE"}
        response, _ = await fetch(supervisor.port, "OPTIONS", "/streams/s", headers=asks)
        assert response.status == 405
        assert not [name for name in response.headers if name.startswith("access-control")]


# Its socket


async def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError) as caught:
            async with admin.listening(settings_for(LOCAL, admin_port=port), lambda: None):
                pass
    [message] = caught.value.messages
    assert message.startswith(f"RELAY_ADMIN_PORT={port}: ")


async def test_without_a_port_there_is_no_listener() -> None:
    async with admin.listening(settings_for(LOCAL, admin_port=-1), lambda: None) as url:
        assert url is None


async def test_its_port_is_free_when_it_has_ended() -> None:
    async with admin.listening(settings_for(LOCAL, admin_port=0), lambda: None) as url:
        assert url is not None
        port = int(url.rpartition(":")[2])
        async with connect(port) as idle:
            assert (await idle.request("GET", "/healthz")).status == 200
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    async with admin.listening(settings_for(LOCAL, admin_port=port), lambda: None) as again:
        assert again == url


async def test_signals_are_the_relays_alone() -> None:
    before = [signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)]
    async with supervised() as supervisor:
        await supervisor.get("/readyz")
        assert [signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)] == before


async def test_a_herd_of_idle_connections_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "MAX_CONNECTIONS", 3)
    async with supervised() as supervisor, contextlib.AsyncExitStack() as herd:
        for _ in range(3):
            idle = await herd.enter_async_context(connect(supervisor.port))
            assert (await idle.request("GET", "/healthz")).status == 200
        one_more = await herd.enter_async_context(connect(supervisor.port))
        with contextlib.suppress(ConnectionResetError):
            assert await one_more.rest() == b""


# The process


async def test_it_is_there_through_the_drain_and_ends_with_the_process(tmp_path: Path) -> None:
    more, port = asyncio.Event(), free_port()
    variables = {"RELAY_ADMIN_PORT": str(port), "RELAY_HEARTBEAT_SECONDS": "0.1"}
    async with Upstream() as upstream, served(tmp_path, upstream, *SERVE, **variables) as relay:
        upstream.script((head(), chunk("Hel"), wait(more), chunk("lo"), finish()))
        async with streaming(relay.port) as (stream_id, _, blocks), connect(port) as scraper:
            ready = await scraper.request("GET", "/readyz")
            assert (ready.status, (await ready.json())["status"]) == (200, "ready")
            relay.process.send_signal(signal.SIGTERM)
            await until(lambda: refuses(relay.port), END_SECONDS)
            draining = await scraper.request("GET", "/readyz")
            assert (draining.status, (await draining.json())["status"]) == (503, "draining")
            page = await (await scraper.request("GET", "/metrics")).read()
            assert Scraped(page.decode()).value("relay_draining") == 1
            [shown] = (await (await scraper.request("GET", "/streams")).json())["streams"]
            assert shown["id"] == stream_id
            more.set()
            assert [event_of(block)["type"] async for block in blocks][-2:] == ["done", "[DONE]"]
        assert await relay.code() == 0
    assert refuses(port)


async def test_a_process_that_cannot_have_its_admin_port_does_not_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        own = {"PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "test-key", "RELAY_ADMIN_PORT": str(port)}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *SERVE), stderr=PIPE, cwd=tmp_path, env=environment(tmp_path, own)
        )
        _, said = await process.communicate()
    assert process.returncode == 2
    assert f"RELAY_ADMIN_PORT={port}: " in said.decode()
    assert "Traceback" not in said.decode()


def refuses(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.1)
        return probe.connect_ex(("127.0.0.1", port)) != 0
