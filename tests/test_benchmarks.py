"""The rig is right: figures are only as honest as the programs that make the tokens and count them."""

import asyncio
import shutil
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks import measure as measures
from benchmarks import overload, processes, run, shared_log
from benchmarks.capacity import Search, largest
from benchmarks.contenders import DIRECT, RELAY
from benchmarks.departures import Lags
from benchmarks.goals import goals
from benchmarks.load import Job, holding, load
from benchmarks.measure import STANDING, Figures, Sizes
from benchmarks.paced import INTERVAL_US, Crowd, at, measure
from benchmarks.picture import draw
from benchmarks.processes import Server, end_streams, free_port, running_upstream, settle, upstream_stats
from benchmarks.report import BEGIN, DOCUMENT, END, NONE, ROWS, Goings, Rounds, Run, Table
from benchmarks.returning import Returned
from benchmarks.tables import markdown
from benchmarks.vanishing import Vanished

pytestmark = [
    pytest.mark.skipif(shutil.which("cc") is None, reason="cc is missing: the rig cannot be built"),
    pytest.mark.usefixtures("cores"),
]


@pytest.fixture
def upstream_port(programs: Path) -> Iterator[int]:
    with running_upstream(programs) as port:
        yield port


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


def test_the_paced_crowd_counts_the_tokens_of_its_window(programs: Path, upstream_port: int) -> None:
    streams, measure_ms = 30, 600
    paced = measure(Crowd(DIRECT, None, upstream_port, streams), measure_ms, programs)
    assert (paced.standing, paced.lost) == (streams, 0)
    assert paced.seconds == pytest.approx(measure_ms / 1000, rel=0.5)
    assert paced.came_share(streams) == pytest.approx(1, abs=0.2)
    assert 0 < at(paced.latency_us, 0.5) <= at(paced.latency_us, 0.99) <= at(paced.latency_us, 1) < 1e6
    assert 0 <= at(paced.jitter_us, 0.5) < INTERVAL_US
    stats = upstream_stats(upstream_port)
    assert (stats.started, stats.active) == (streams, 0)


def test_the_paced_crowd_says_who_was_refused(programs: Path, upstream_port: int) -> None:
    refused = msgspec.structs.replace(DIRECT, path="/nowhere")
    paced = measure(Crowd(refused, None, upstream_port, 5), 50, programs)
    assert (paced.standing, paced.lost, paced.bad_status, paced.tokens) == (0, 5, 404, 0)


def test_a_port_for_later_is_none_that_the_kernel_gives_away(monkeypatch: pytest.MonkeyPatch) -> None:
    given_away = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(free_port() < given_away for _ in range(100))
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(processes, "GIVEN_BY_HAND", (port, port + 2))
        assert {free_port() for _ in range(20)} == {port + 1}


async def test_latency_and_jitter_are_those_of_the_tokens(programs: Path, tmp_path: Path) -> None:
    """Every token is 100 ms old, and every other one 30 ms older."""
    ended: list[asyncio.Future[None]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended.append(end := asyncio.get_running_loop().create_future())
        await reader.readuntil(b"\r\n\r\n{}")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        for turn in range(200):
            late_ns = 100_000_000 + turn % 2 * 30_000_000
            writer.write(b"data: @%019d\n\n" % (time.monotonic_ns() - late_ns))
            await asyncio.sleep(0.01)
            if reader.at_eof() or writer.is_closing():
                break
        writer.close()
        end.set_result(None)

    request = tmp_path / "request"
    request.write_bytes(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        command = [str(part) for part in (programs / "paced", port, request, 2, 1000, 0, 500)]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True)
        await asyncio.gather(*ended)
    found = msgspec.json.decode(done.stdout.splitlines()[1])
    latency, jitter = dict(found["latency_us"]), dict(found["jitter_us"])
    assert latency[0] == pytest.approx(100_000, rel=0.05)
    assert latency[0.75] == pytest.approx(130_000, rel=0.1)
    assert jitter[0.5] == pytest.approx(30_000, rel=0.3)


async def test_a_herd_is_served_when_each_has_a_token_of_the_stream_that_it_left(
    programs: Path, tmp_path: Path
) -> None:
    asked: list[bytes] = []
    ended: list[asyncio.Future[None]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended.append(end := asyncio.get_running_loop().create_future())
        head = await reader.readuntil(b"\r\n\r\n")
        returns = head.startswith(b"GET")
        asked.extend([head.split(b" ")[1]] if returns else [])
        refused = len(asked) == 4
        await asyncio.sleep(0.2 if returns else 0)
        writer.write(b"HTTP/1.1 %s\r\nx-stream-id: s%d\r\n\r\n" % (b"404 Gone" if refused else b"200 OK", id(writer)))
        writer.write(b"" if refused else b"data: @%019d\n\n" % time.monotonic_ns())
        if not returns:
            await reader.read()
        writer.close()
        end.set_result(None)

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        stood, back = await asyncio.to_thread(_herd, programs, tmp_path, server.sockets[0].getsockname()[1])
        await asyncio.gather(*ended)
    assert stood == {"standing": 4}
    assert (back["served"], back["lost"], back["bad_status"]) == (3, 1, 404)
    assert 200 <= back["p50_ms"] <= back["max_ms"] < 2000
    assert len(set(asked)) == 4
    assert all(path.startswith(b"/x/s") and path.endswith(b"?after=0") for path in asked)


def _herd(programs: Path, folder: Path, port: int) -> list[dict[str, Any]]:
    """What four readers say of standing and of coming back."""
    request = folder / "request"
    request.write_bytes(b"POST /x HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
    command = [str(part) for part in (programs / "returns", port, request, "/x", 4, 1000)]
    done = subprocess.run(command, input=b"now\n", capture_output=True, check=True)
    return [msgspec.json.decode(line) for line in done.stdout.splitlines()]


def _received(client: socket.socket) -> bytes:
    """Until nothing more comes."""
    got = b""
    while True:
        try:
            more = client.recv(65_536)
        except TimeoutError:
            return got
        if not more:
            return got
        got += more


def test_who_stands_idle_gets_no_token_until_upstream_is_told_to_end(upstream_port: int) -> None:
    with socket.create_connection(("127.0.0.1", upstream_port)) as client:
        client.sendall(DIRECT.whole_request(upstream_port, STANDING))
        client.settimeout(0.3)
        assert _received(client).count(b"@") == 3
        end_streams(upstream_port)
        assert b'"finish_reason":"stop"' in _received(client)
    stats = settle(upstream_port, seconds=5)
    assert (stats.active, stats.completed) == (0, 1)


def test_those_who_stand_idle_all_end_when_told(programs: Path, upstream_port: int) -> None:
    with holding(_job(upstream_port, DIRECT.request(STANDING), streams=20, tokens=6), programs):
        assert settle(upstream_port, seconds=5, beside=20).active == 20
        end_streams(upstream_port)
        stats = settle(upstream_port, seconds=5)
    assert (stats.active, stats.completed, stats.aborted) == (0, 20, 0)


def test_processor_time_is_exact_in_a_short_window() -> None:
    busy = "import time\nprint('ready', flush=True)\ninput()\nend = time.process_time() + 0.0437\n"
    busy += "while time.process_time() < end: pass\nprint('done', flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        before = Server(process.pid, 0).cpu_seconds()
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.readline()
        spent = Server(process.pid, 0).cpu_seconds() - before
        process.stdin.close()
    assert spent == pytest.approx(0.0437, abs=0.004)


@pytest.mark.parametrize("fits", [0, 1, 7, 100, 640, 4_000])
@pytest.mark.parametrize("first", [1, 90, 3_000])
def test_the_search_finds_what_fits(fits: int, first: int) -> None:
    search = Search(first, measure_ms=1, steps=20)
    found = largest(lambda streams: streams <= fits, search)
    assert found <= fits
    assert found >= fits * (1 - search.share) - 1


def _figures(times: float) -> Figures:
    """What a contender shows that is slower by this factor."""
    latency_us = tuple((share, int(times * us)) for share, us in ((0, 20), (0.5, 35), (0.99, 180), (0.9999, 2_200)))
    flat: dict[str, object] = dict.fromkeys(Figures.__struct_fields__, times * 1000.0)
    return msgspec.convert(flat | {"latency_us": latency_us, "flood_tokens_per_s": 1e6 / times}, Figures)


def _canned() -> Run:
    times = {"direct": 1, "relay": 4, "tutorial": 100, "floor": 2.05, "nginx": 2}
    main = Table(tuple(Rounds(name, (_figures(factor),)) for name, factor in times.items()))
    lags, back = (Lags(10, 0, 1.0, 2.0, 3.0),), (Returned(10, 0, 0, 1.0, 2.0, 500.0),)
    goings = Goings(100, 10, lags, (Lags(10, 1, 1.0, 2.0, 3.0),), back, back, Vanished(20.0, 30.0))
    capacities = {name: (int(2000 / factor),) for name, factor in times.items()}
    return Run("a machine", ("Python 3",), "2026-01-31", ("A note.",), main, main, capacities, goings)


def test_a_run_is_told_as_tables_that_are_whole() -> None:
    told = markdown(_canned())
    tables = [[row for row in part.splitlines() if row.startswith("|")] for part in told.split("\n\n")]
    widths = [{row.count("|") for row in rows} for rows in tables if rows]
    assert len(widths) == 4
    assert all(len(width) == 1 for width in widths)
    for row in ROWS:
        assert sum(line.startswith(f"| {row.title} |") for line in told.splitlines()) == 1
    assert "| CPU to open a stream, 200 others open (µs) | 4000 | 100000 | 2050 | 2000 | 0.04 | 1.95 | 2.00 |" in told
    assert "| relay | 500 | 1.00 |" in told
    assert f"| {NONE} | {NONE} | 1 never |" in told
    assert told.endswith("A note.")


def test_goals_are_met_missed_or_not_measured() -> None:
    whole = _canned()
    said = {goal.title: goal.met for goal in goals(whole)}
    assert said["CPU per token, 50 streams, relay / tutorial"] is True
    assert said["CPU to open a stream, nothing else open, relay / tutorial"] is True
    assert said["flooded tokens/s, relay / tutorial"] is True
    assert said["departure to upstream closed, 500 flooding, p99 (ms)"] is False
    bare = msgspec.structs.replace(whole, main=Table(whole.main.contenders[:2]), capacities={}, goings=None)
    said = {goal.title: goal.met for goal in goals(bare)}
    assert said["CPU to open a stream, 200 others open, relay / tutorial"] is None
    assert said["streams per core, relay / tutorial"] is None


def test_the_picture_is_whole_and_no_label_covers_another() -> None:
    svg = "{http://www.w3.org/2000/svg}"
    picture = ET.fromstring(draw(_canned()))
    curves = {line.get("class", "").split()[1].removeprefix("stroke"): line for line in picture.iter(f"{svg}polyline")}
    labels = {
        kind.removeprefix("fill"): float(text.get("y", "0"))
        for text in picture.iter(f"{svg}text")
        if (kind := text.get("class", "")).startswith("fill")
    }
    assert curves.keys() == labels.keys() == {"0", "1", "2", "3"}
    heights = sorted(labels.values())
    assert min(below - above for above, below in pairwise(heights)) >= 12
    bars = [float(bar.get("width", "0")) for bar in picture.iter(f"{svg}rect") if bar.get("class") != "ground"]
    assert [round(bar / max(bars), 2) for bar in bars] == [0.5, 0.02, 0.97, 1.0]


def test_the_document_has_the_places_that_a_run_writes_to() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    assert document.index(BEGIN) < document.index(END)


def test_a_short_run_measures_the_relay(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = Sizes(paced_ms=300, share=0.05, idle_streams=30)
    monkeypatch.setattr(run, "QUICKLY", msgspec.structs.replace(run.QUICKLY, sizes=sizes))
    monkeypatch.setattr(run, "CONTENDERS", (DIRECT, RELAY))
    monkeypatch.setattr(measures, "MANY_STREAMS", 60)
    assert run.main(["--quick", "--only", "main"]) == 0
    said = capsys.readouterr().out
    cells = {row.split("|")[1].strip(): row.split("|")[2].strip() for row in said.splitlines() if row.startswith("|")}
    for title in (row.title for row in ROWS if not row.added):
        assert float(cells[title]) > 0, title
    assert cells["departures that reached upstream, of 20"] == "20"
