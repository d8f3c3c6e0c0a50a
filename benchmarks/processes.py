"""The processes of a run: built, started on their core, measured from /proc, ended.

The server under test has a core to itself; the rig (upstream, load and we) shares the other, so that the cost of
producing and counting tokens is not taken for the cost of relaying them.
"""

import contextlib
import http.client
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

ROOT: Final = Path(__file__).resolve().parent.parent
SOURCES: Final = ROOT / "benchmarks"
BIN: Final = SOURCES / "bin"
OUT: Final = SOURCES / "out"
PROGRAMS: Final = ("upstream", "load", "paced", "returns")

RIG_CORE: Final = min(os.sched_getaffinity(0))
SERVER_CORE: Final = max(os.sched_getaffinity(0))

GIVEN_BY_HAND: Final = (10_000, 32_768)

START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 10.0
SETTLE_SECONDS: Final = 20.0
_TICK_SECONDS: Final = 1 / os.sysconf("SC_CLK_TCK")


class Stats(msgspec.Struct, frozen=True):
    """What upstream counts; `last_abort_ns` is on the clock of `time.monotonic_ns`."""

    active: int
    started: int
    completed: int
    aborted: int
    faulted: int
    last_abort_ns: int


class Server(msgspec.Struct, frozen=True):
    """A server that accepts connections."""

    pid: int
    port: int

    def cpu_seconds(self) -> float:
        """User and system time of the process tree: of the threads that it has now, where the kernel tells theirs in
        nanoseconds; else in ticks of 10 ms, ended threads and children included."""
        return sum(_cpu_seconds(pid) for pid in _tree(self.pid))

    def memory_bytes(self) -> int:
        """Proportional set size of the process tree: pages it shares are counted by the share."""
        return sum(_kib(pid, "smaps_rollup", "Pss:") for pid in _tree(self.pid)) * 1024

    def resident_bytes(self) -> int:
        return _kib(self.pid, "status", "VmRSS:") * 1024

    def peak_resident_bytes(self) -> int:
        """The most it ever held since it started, as the kernel kept it."""
        return _kib(self.pid, "status", "VmHWM:") * 1024

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


def build(into: Path = BIN) -> None:
    """Compiles what is written in C; `subprocess.CalledProcessError` when the compiler refuses."""
    into.mkdir(parents=True, exist_ok=True)
    for name in PROGRAMS:
        subprocess.run(["cc", "-O2", "-Wall", "-o", into / name, SOURCES / f"{name}.c"], check=True)


def free_port() -> int:
    """For a server that listens later. It is below those that the kernel picks for outgoing connections and for port 0,
    where it could be somebody else's by then."""
    while True:
        port = random.randrange(*GIVEN_BY_HAND)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def pin_rig() -> None:
    """Puts us, and what we start from now on, on the rig's core."""
    os.sched_setaffinity(0, {RIG_CORE})


@contextlib.contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], port: int) -> Iterator[Server]:
    """The server under test on its own core, from the first accepted connection to the end of the block.

    It sees only the environment given, and works in `benchmarks/out`: an operator's `.env` or `relay.toml` must
    neither shape the figures nor send the load to a provider.
    """
    OUT.mkdir(parents=True, exist_ok=True)
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    os.sched_setaffinity(0, {SERVER_CORE})
    try:
        with (OUT / "server.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env={**inherited, "PYTHONPATH": str(ROOT), **environment},
                cwd=OUT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
    finally:
        pin_rig()
    try:
        wait_for_port(process, port)
        yield Server(process.pid, port)
    finally:
        _stop(process)


@contextlib.contextmanager
def running_upstream(programs: Path = BIN) -> Iterator[int]:
    """The upstream, on our core; gives its port."""
    with subprocess.Popen([programs / "upstream", "0"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline().rpartition(":")[2])
        finally:
            _stop(process)


def upstream_stats(port: int) -> Stats:
    return msgspec.json.decode(_get(port, "/stats"), type=Stats)


def end_streams(port: int) -> None:
    """Upstream ends whatever it streams, in good order."""
    _get(port, "/end")


def abort_ns(port: int, tag: int) -> int:
    """When upstream saw the stream of this tag aborted, on the clock of `time.monotonic_ns`; 0: it has not."""
    return msgspec.json.decode(_get(port, f"/aborts/{tag}"), type=dict[str, int])["ns"]


def _get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


def settle(upstream_port: int, seconds: float = SETTLE_SECONDS, beside: int = 0) -> Stats:
    """Waits until upstream has no open stream, but for those `beside`, at most so long: one measure must not pay for
    the one before."""
    deadline = time.monotonic() + seconds
    while (stats := upstream_stats(upstream_port)).active > beside and time.monotonic() < deadline:
        time.sleep(0.01)
    return stats


def found(command: str) -> bool:
    return shutil.which(command) is not None


def wait_for_port(process: subprocess.Popen[bytes], port: int) -> None:
    """RuntimeError when it ends first, or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError(f"{process.args!r} does not accept connections; see {OUT / 'server.log'}")


def _stop(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tree(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(below for child in children for below in _tree(int(child)))]


def _cpu_seconds(pid: int) -> float:
    if not Path(f"/proc/{pid}/schedstat").exists():  # a kernel that was built without it
        return _cpu_ticks(pid) * _TICK_SECONDS
    return sum(_thread_ns(thread) for thread in Path(f"/proc/{pid}/task").iterdir()) / 1e9


def _thread_ns(thread: Path) -> int:
    """The first field is the time on a processor."""
    try:
        return int((thread / "schedstat").read_text().split()[0])
    except (FileNotFoundError, ProcessLookupError):  # it ended while we looked
        return 0


def _cpu_ticks(pid: int) -> int:
    """proc(5): utime, stime, cutime and cstime are fields 14 to 17; the name before them may hold spaces."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15])


def _kib(pid: int, file: str, name: str) -> int:
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/{pid}/{file} has no {name}")
