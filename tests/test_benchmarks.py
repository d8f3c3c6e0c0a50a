"""The rig is right: figures are only as honest as the programs that make the tokens and count them."""

import asyncio
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import overload, shared_log
from benchmarks.contenders import CONTENDERS
from benchmarks.load import Job, load
from benchmarks.processes import build, running_upstream, settle, upstream_stats

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="cc is missing: the rig cannot be built")

DIRECT = CONTENDERS[0]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    build(folder)
    return folder


@pytest.fixture
def upstream_port(programs: Path) -> Iterator[int]:
    with running_upstream(programs) as port:
        yield port


@pytest.fixture(autouse=True)
def cores() -> Iterator[None]:
    """The rig pins us to a core: what runs after it has all of them again."""
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


def _job(port: int, request: str, *, streams: int = 1, tokens: int = 1) -> Job:
    return Job(port, DIRECT.path, request, streams, streams, tokens)


@pytest.mark.parametrize("model", ["sim-50-0-8", "sim-50-1000-200", "sim-50-0-0-30"])
def test_load_counts_every_token_of_every_stream(programs: Path, upstream_port: int, model: str) -> None:
    loaded = load(_job(upstream_port, DIRECT.request(model), streams=20, tokens=50), programs=programs)
    assert (loaded.ok, loaded.failed, loaded.tokens) == (20, 0, 20 * 50)
    stats = upstream_stats(upstream_port)
    assert (stats.started, stats.completed, stats.aborted, stats.active) == (20, 20, 0, 0)


def test_a_stream_that_brings_too_little_is_no_success(programs: Path, upstream_port: int) -> None:
    loaded = load(_job(upstream_port, DIRECT.request("sim-49-0-8"), streams=3, tokens=50), programs=programs)
    assert (loaded.ok, loaded.failed) == (0, 3)


@pytest.mark.parametrize("request_body", ["", "nonsense", "{}", '["model"]'])
def test_what_is_no_request_is_refused_and_counted(programs: Path, upstream_port: int, request_body: str) -> None:
    loaded = load(_job(upstream_port, request_body, streams=3), programs=programs)
    assert (loaded.ok, loaded.failed, loaded.bad_status) == (0, 3, 400)
    assert "not a chat completion request" in loaded.first_failure
    assert upstream_stats(upstream_port).started == 0


@pytest.mark.parametrize("when", [{"ABORT_AFTER": 3}, {"ABORT_AFTER_MS": 500}, {"ABORT_SPREAD_MS": 500}])
@pytest.mark.parametrize("model", ["sim-1000-20000-8", "sim-1000-20000-8-60"])
def test_every_departure_is_seen_by_upstream(
    programs: Path, upstream_port: int, model: str, when: dict[str, int]
) -> None:
    loaded = load(_job(upstream_port, DIRECT.request(model), streams=10, tokens=1000), when, programs)
    stats = settle(upstream_port, seconds=5)
    assert (loaded.aborted, stats.aborted, stats.active) == (10, 10, 0)
    assert 0 <= stats.last_abort_ns - loaded.last_abort_ns < 1e9


async def test_a_token_counts_once_wherever_the_server_cuts_it(programs: Path) -> None:
    events = "".join(f"data: @{time.monotonic_ns():019} @12\n\n" for _ in range(5)).encode()
    chunks = [b"1\r\n%c\r\n" % byte for byte in events]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
        for byte in head + b"".join(chunks) + b"0\r\n\r\n":
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        job = _job(server.sockets[0].getsockname()[1], "{}", streams=2, tokens=5)
        loaded = await asyncio.to_thread(load, job, None, programs)
    assert (loaded.ok, loaded.tokens) == (2, 10)


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize(("status", "back", "least_seconds"), [(503, "told", 1.0), (429, "told", 1.0), (503, 100, 0.1)])
async def test_a_refusal_is_timed_and_its_client_comes_back(
    programs: Path, status: int, back: str | int, least_seconds: float, keeps: bool
) -> None:
    closing = "" if keeps else "connection: close\r\n"
    head = f"HTTP/1.1 {status} Busy\r\nretry-after: 1\r\ncontent-length: 4\r\n{closing}\r\n"
    asked = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        while await reader.readuntil(b"\r\n\r\n{}"):
            asked += 1
            if asked > 3:
                event = b"data: @%019d\n\n" % time.monotonic_ns()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(event) + event)
                break
            writer.write(head.encode() + b"busy")
            if not keeps:
                break
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        job = _job(server.sockets[0].getsockname()[1], "{}", streams=3)
        loaded = await asyncio.to_thread(load, job, {"REFUSED": back}, programs)
    assert (loaded.ok, loaded.failed, loaded.turned_away) == (3, 0, 0)
    assert (loaded.refused_429, loaded.refused_503) == ((3, 0) if status == 429 else (0, 3))
    assert 0 < loaded.refusal_us.max < 1e6
    assert loaded.seconds >= least_seconds


async def test_who_is_refused_to_the_end_is_turned_away(programs: Path) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n{}")
        writer.write(b"HTTP/1.1 503 Busy\r\nretry-after: 60\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        job = _job(server.sockets[0].getsockname()[1], "{}", streams=5)
        loaded = await asyncio.to_thread(load, job, {"REFUSED": "told", "FOR_MS": 300}, programs)
    assert (loaded.ok, loaded.failed, loaded.refused_503, loaded.turned_away) == (0, 0, 5, 5)
    assert 0.3 <= loaded.seconds < 5


def test_what_is_asked_for_a_while_ends_well(programs: Path, upstream_port: int) -> None:
    job = Job(upstream_port, DIRECT.path, DIRECT.request("sim-5-10000-8"), 1_000_000, 4, 5)
    loaded = load(job, {"FOR_MS": 300}, programs)
    assert loaded.failed == 0
    assert 4 < loaded.ok < 4 * 1000
    assert upstream_stats(upstream_port).completed == loaded.ok


async def test_an_overtaken_stream_is_seen(programs: Path) -> None:
    waiting: list[asyncio.StreamWriter] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n{}")
        waiting.append(writer)
        if len(waiting) < 3:
            return
        for turn in reversed(waiting):
            event = b"data: @%019d\n\n" % time.monotonic_ns()
            turn.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + event)
            turn.close()
            await turn.wait_closed()
            await asyncio.sleep(0.05)

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        job = _job(server.sockets[0].getsockname()[1], "{}", streams=3)
        loaded = await asyncio.to_thread(load, job, {"RAMP_US": 20_000}, programs)
    assert loaded.ok == 3
    assert loaded.overtaken_us > 80_000


def test_overload_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert overload.main(["--quick"]) == 0
    rows = {
        row.split("|")[1].strip(): row.split("|")[2:-1] for row in capsys.readouterr().out.splitlines() if "|" in row
    }
    calm, told, calm_herd, herd, deaf = (int(refusals) for refusals in rows["refusals"])
    assert calm == calm_herd == 0
    assert told > 0
    assert 0 < herd < deaf
    queued = [int(queued) > 0 for queued in rows["streams that waited in the queue"]]
    assert queued[1]
    assert queued[3]
    assert queued[4]


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed (tests/install)")
def test_the_shared_log_is_measured_on_two_processes(capsys: pytest.CaptureFixture[str]) -> None:
    shared_log.main(["--quick", "--rounds", "1"])
    said = capsys.readouterr().out
    assert "40 resumable streams at 20 tokens a second over two processes" in said
    cancel_ms = float(said.rpartition("reached upstream after ")[2].split(" ")[0])
    assert 0 < cancel_ms < 10 * 200
