"""A thousand streams of all kinds through a relay as a process: every figure that it tells is what its clients and its
upstream have counted.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import msgspec
import pytest

from benchmarks.processes import free_port
from tests.relay import SSE, Connection, Response, chat, connect, fetch
from tests.scraped import Scraped
from tests.served import SERVE, served
from tests.upstream import Upstream, answer, chunk, chunks, finish, hang, head, repeat, reset, status, usage

AT_ONCE: Final = 40
KINDS: Final = {
    **{"finished": 250, "openai": 100, "flaky": 100},
    **{"broken": 100, "rejected": 50, "deleted": 150, "left": 150, "resumed": 100},
}
NO_CHATS: Final = 40
PIECES: Final = 12
"""Of an answer that is resumed: it lasts for so many hundredths of a second."""

SETTINGS: Final = {
    "RELAY_ATTEMPTS": "3",
    "RELAY_MAX_RETRY_WAIT_SECONDS": "0.01",
    "RELAY_BREAKER_FAILURES": "0",
    "RELAY_LOG_FORMAT": "json",
    "RELAY_DRAIN_GRACE_SECONDS": "1",
}


class Counts:
    """What the clients have seen. `tokens` by kind and source; `refused` by status and code."""

    def __init__(self) -> None:
        self.ends: Counter[tuple[str, str]] = Counter()
        self.refused: Counter[tuple[str, str]] = Counter()
        self.tokens: Counter[tuple[str, str]] = Counter()
        self.resumed = 0
        self.prompt_tokens = 0

    def done(self, event: Mapping[str, Any]) -> None:
        told = event["usage"]
        self.ends["deleted" if event["finish_reason"] == "cancelled" else "finished", "none"] += 1
        self.used(told["prompt_tokens"], told["completion_tokens"], told["source"])
        if told["source"] == "estimated":
            self.prompt_tokens = told["prompt_tokens"]

    def used(self, prompt: int, completion: int, source: str) -> None:
        self.tokens["prompt", source] += prompt
        self.tokens["completion", source] += completion


class Load(msgspec.Struct, frozen=True):
    """The clients of one relay. `unfinished`: streams whose usage only their upstream knows, and how many pieces each
    had.
    """

    port: int
    counts: Counts = msgspec.field(default_factory=Counts)
    unfinished: list[int] = msgspec.field(default_factory=list)

    async def run(self) -> None:
        """The kinds one after another in turns, and requests that are none between them."""
        kinds = [kind for kind, count in KINDS.items() for _ in range(count)]
        mixed = sorted(range(len(kinds)), key=lambda number: number * 7919 % 1009)  # spread, and the same each time
        places = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as clients:
            for number in mixed:
                clients.create_task(self._one(kinds[number], places))
            for _ in range(NO_CHATS):
                clients.create_task(self._one("no chat", places))

    async def _one(self, kind: str, places: asyncio.Semaphore) -> None:
        async with places, connect(self.port) as connection:
            match kind:
                case "openai":
                    await self._openai(connection)
                case "deleted" | "left" | "resumed":
                    await self._interrupted(kind, connection)
                case "no chat":
                    await self._read(await connection.request("POST", "/chat/stream", {"message": 1}), stream=False)
                case _:
                    await self._read(await connection.request("POST", "/chat/stream", chat(model=kind)))

    async def _read(self, response: Response, *, stream: bool = True) -> None:
        if response.status != 200:
            code = (await response.json())["error"]["code"]
            self.counts.refused[str(response.status), code] += 1
            if stream:
                self.counts.ends["failed", code] += 1
                self.unfinished.append(0)
            return
        *_, end = [event async for event in events(response)]
        self._ended(end)

    def _ended(self, end: Mapping[str, Any]) -> None:
        if end["type"] == "done":
            self.counts.done(end)
        else:
            self.counts.ends["failed", end["error"]["code"]] += 1
            self.unfinished.append(1 if end["error"]["partial"] else 0)

    async def _openai(self, connection: Connection) -> None:
        body = {"model": "openai", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        response = await connection.request("POST", "/v1/chat/completions", body)
        assert [block async for block in response.blocks()][-1] == "data: [DONE]"
        self.counts.ends["finished", "none"] += 1
        self.counts.used(5, 2, "reported")

    async def _interrupted(self, kind: str, connection: Connection) -> None:
        """Up to its first text; then the client stops it, goes, or goes and comes back."""
        headers = SSE if kind == "resumed" else {}
        response = await connection.request("POST", "/chat/stream", chat(model=kind), headers)
        coming = events(response)
        async for event in coming:
            if event["type"] == "delta":
                break
        stream_id = response.headers["x-stream-id"]
        if kind == "deleted":
            await fetch(self.port, "DELETE", f"/chat/stream/{stream_id}")
            self._ended([event async for event in coming][-1])
            return
        connection.close()
        if kind == "left":
            self.counts.ends["left", "none"] += 1
            self.unfinished.append(1)
            return
        async with connect(self.port) as again:
            cursor = {"last-event-id": f"{stream_id}.{event['seq']}"}
            await self._read(await again.request("GET", f"/chat/stream/{stream_id}", headers=SSE | cursor))
            self.counts.resumed += 1


async def events(response: Response) -> AsyncIterator[dict[str, Any]]:
    """Up to `[DONE]`."""
    async for block in response.blocks():
        [data] = [line for line in block.split("\n") if line.startswith("data: ")]
        if data == "data: [DONE]":
            return
        yield json.loads(data.removeprefix("data: "))


def script(upstream: Upstream) -> None:
    whole = answer("Hel", "lo", usage=(5, 2))
    begun = (head(), chunk("Hel"), hang())
    for model in ("finished", "openai"):
        upstream.script(whole, model=model)
    upstream.script(*[status(503), whole] * KINDS["flaky"], model="flaky")
    upstream.script((head(), chunk("Hel"), reset()), model="broken")
    upstream.script(status(400, b'{"error":{"message":"no"}}'), model="rejected")
    upstream.script(begun, model="deleted")
    upstream.script(begun, model="left")
    paced = repeat(chunk("lo"), PIECES, interval=0.01)
    upstream.script((head(), chunks("Hel"), paced, finish(), usage(5, PIECES + 1)), model="resumed")


class Run(msgspec.Struct, frozen=True):
    """What all sides tell after it: the last scrape, the log's lines of streams, the clients' counts, the upstream."""

    scraped: Scraped
    lines: list[dict[str, Any]]
    counts: Counts
    upstream: Upstream

    @property
    def asked(self) -> Counter[str]:
        """Upstream's requests by their model."""
        return Counter(request.body["model"] for request in self.upstream.requests)


@pytest.fixture(scope="module")
async def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    admin = free_port()
    variables = SETTINGS | {"RELAY_ADMIN_PORT": str(admin)}
    async with (
        Upstream() as upstream,
        served(tmp_path_factory.mktemp("relay"), upstream, *SERVE, **variables) as relay,
    ):
        script(upstream)
        assert relay.process.stderr is not None
        logged = asyncio.create_task(_lines(relay.process.stderr), name="log")
        load = Load(relay.port)
        await load.run()
        scraped = await _settled(admin)
        await upstream.wait_for(lambda each: each.active == 0)
        relay.process.terminate()
        await relay.code()
        lines = await logged
    for pieces in load.unfinished:
        load.counts.used(load.counts.prompt_tokens, pieces, "estimated")
    return Run(scraped, lines, load.counts, upstream)


async def _lines(stderr: asyncio.StreamReader) -> list[dict[str, Any]]:
    """As they come: a pipe that nobody reads would stop the relay."""
    lines = [json.loads(line) async for line in stderr if line.startswith(b"{")]
    return [line for line in lines if line["event"] == "stream"]


async def _settled(admin: int) -> Scraped:
    """The first scrape that shows no stream."""
    async with asyncio.timeout(10):
        while True:
            scraped = Scraped((await fetch(admin, "GET", "/metrics"))[1].decode())
            if not scraped.value("relay_streams") and scraped.sum("relay_streams_ended_total") >= sum(KINDS.values()):
                return scraped


def pairs(scraped: Scraped, name: str, first: str, second: str) -> Counter[tuple[str, str]]:
    """The sums by two labels, without zeros."""
    sums: Counter[tuple[str, str]] = Counter()
    for labels, value in scraped.all(name).items():
        by = dict(each.split("=", 1) for each in labels)
        sums[by[first], by[second]] += int(value)
    return +sums


async def test_streams_add_up(run: Run) -> None:
    streams = sum(KINDS.values())
    assert run.counts.ends.total() == streams == 1000
    assert run.scraped.value("relay_streams_started_total") == streams
    assert pairs(run.scraped, "relay_streams_ended_total", "cause", "code") == run.counts.ends
    assert {cause for cause, _ in run.counts.ends} == {"finished", "failed", "deleted", "left"}
    assert run.scraped.sum("gen_ai_server_request_duration_seconds_count") == streams
    assert run.scraped.sum("relay_queue_seconds_count") == streams
    assert run.scraped.value("relay_faults_total") == run.scraped.value("relay_streams_live_only_total") == 0


async def test_attempts_add_up_with_what_upstream_was_asked(run: Run) -> None:
    outcomes = run.scraped.by("relay_attempts_total", "outcome")
    assert run.scraped.sum("relay_attempts_total") == len(run.upstream.requests) > sum(KINDS.values())
    assert run.scraped.sum("relay_upstream_connect_seconds_count") == len(run.upstream.requests)
    assert outcomes["finished"] == run.counts.ends["finished", "none"]
    assert (outcomes["deleted"], outcomes["left"]) == (KINDS["deleted"], KINDS["left"])
    assert (
        run.upstream.aborted >= KINDS["deleted"] + KINDS["left"]
    )  # and a whole answer's last bytes, on a busy machine
    assert outcomes["upstream_rejected"] == run.asked["rejected"] == KINDS["rejected"]
    flaky_finished = run.counts.ends["finished", "none"] - KINDS["finished"] - KINDS["openai"] - KINDS["resumed"]
    assert outcomes["upstream_unavailable"] == run.asked["broken"] + run.asked["flaky"] - flaky_finished


async def test_tokens_add_up(run: Run) -> None:
    assert pairs(run.scraped, "relay_tokens_total", "kind", "source") == run.counts.tokens
    for kind, name in (("input", "prompt"), ("output", "completion")):
        used = sum(count for (of, _), count in run.counts.tokens.items() if of == name)
        assert run.scraped.sum("gen_ai_client_token_usage_sum", gen_ai_token_type=kind) == used


async def test_readers_and_refusals_add_up(run: Run) -> None:
    assert run.scraped.value("relay_attached_total", **{"from": "cursor"}) == run.counts.resumed == KINDS["resumed"]
    assert run.scraped.value("relay_attached_total", **{"from": "beginning"}) == 0
    assert pairs(run.scraped, "relay_requests_refused_total", "status", "code") == run.counts.refused
    assert run.counts.refused["422", "invalid_request"] == NO_CHATS
    assert run.scraped.sum("relay_readers_ended_early_total") == 0


async def test_upstream_is_let_go_of_at_once_for_each_stream_that_was_stopped_or_left(run: Run) -> None:
    """Within ten times the 200 ms that a departure may take."""
    stopped = run.scraped.by("relay_cancel_lag_seconds_count", "cause")
    assert stopped == {"deleted": KINDS["deleted"], "left": KINDS["left"]}
    assert run.scraped.sum("relay_cancel_lag_seconds_bucket", le="2.5") == KINDS["deleted"] + KINDS["left"]


async def test_the_log_has_the_same_figures(run: Run) -> None:
    lines = run.lines
    assert len({line["stream"] for line in lines}) == len(lines) == sum(KINDS.values())
    assert Counter((line["cause"], line["code"] or "none") for line in lines) == run.counts.ends
    assert sum(line["attempts"] for line in lines) == sum(len(line["tries"]) for line in lines)
    outcomes = Counter(each["outcome"] for line in lines for each in line["tries"])
    assert outcomes == run.scraped.by("relay_attempts_total", "outcome")
    used: Counter[tuple[str, str]] = Counter()
    for line in lines:
        used["prompt", line["usage_source"]] += line["prompt_tokens"]
        used["completion", line["usage_source"]] += line["completion_tokens"]
    assert used == run.counts.tokens
    assert sum(line["cancel_lag_s"] is not None for line in lines) == KINDS["deleted"] + KINDS["left"]
    gaps = [line["longest_gap_s"] for line in lines if line["longest_gap_s"] is not None]
    assert run.scraped.sum("relay_longest_gap_seconds_count") == len(gaps) >= KINDS["resumed"]
    assert sum(gaps) == pytest.approx(run.scraped.sum("relay_longest_gap_seconds_sum"), abs=0.001 * len(gaps))
