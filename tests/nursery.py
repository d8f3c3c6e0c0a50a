"""Relays that need not import anything: each is forked from a process that has.

It saves a test the two seconds in which an interpreter reads the relay's libraries; what is run is the same command, in
a process of its own.

`born` gives such a process. Behind it is one nursery for each worker of the tests, which ends with it, and its children
with the nursery.
"""

import asyncio
import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn, TypedDict

ROOT: Final = Path(__file__).parents[1]
MAX_REQUEST_BYTES: Final = 64 * 1024


class Request(TypedDict):
    arguments: list[str]
    folder: str
    environment: dict[str, str]


class Born:
    """As much of `asyncio.subprocess.Process` as tests use. `stderr` ends with the process."""

    def __init__(self, pid: int, stderr: asyncio.StreamReader, life: asyncio.StreamReader) -> None:
        self.pid: Final = pid
        self.stderr: Final = stderr
        self.returncode: int | None = None
        self._life = life

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        """What it exits with, or less the signal that ended it."""
        if said := await self._life.readline():
            self.returncode = int(said)
        assert self.returncode is not None, "the nursery is gone"
        return self.returncode


@contextlib.asynccontextmanager
async def born(arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> AsyncIterator[Born]:
    """`sse-relay` with these arguments, killed when the block ends if it still runs."""
    request = Request(arguments=list(arguments), folder=str(folder), environment=dict(environment))
    async with _pipe() as (stderr, its_stderr), _pipe() as (life, its_life):
        socket.send_fds(_nursery(), [json.dumps(request).encode()], [its_stderr, its_life])
        os.close(its_stderr)
        os.close(its_life)
        child = Born(int(await life.readline()), stderr, life)
        try:
            yield child
        finally:
            child.kill()
            await child.wait()


@contextlib.asynccontextmanager
async def _pipe() -> AsyncIterator[tuple[asyncio.StreamReader, int]]:
    """What is read of it, and the end to write to, which is the caller's to close."""
    ours, its = os.pipe()
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(ours, "rb", buffering=0)
    )
    try:
        yield reader, its
    finally:
        transport.close()
        await asyncio.sleep(0)  # the transport closes its descriptor in the next turn of the loop


_running: list[socket.socket] = []


def _nursery() -> socket.socket:
    if not _running:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            process = subprocess.Popen(
                (sys.executable, "-m", "tests.nursery"), stdin=its.fileno(), stdout=subprocess.DEVNULL, cwd=ROOT
            )
        _running.append(ours)
        atexit.register(_end, ours, process)
    return _running[0]


def _end(ours: socket.socket, process: "subprocess.Popen[bytes]") -> None:
    ours.close()
    process.wait()


# The other side.


def _serve() -> None:
    """Until the tests have ended, and whatever is left of theirs with them."""
    import app.cli
    import app.elsewhere
    import app.quotas.server
    import app.server  # noqa: F401  # what a child has to have read

    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers go without being asked after
    with socket.socket(fileno=os.dup(0)) as requests:
        while True:
            request, descriptors, _, _ = socket.recv_fds(requests, MAX_REQUEST_BYTES, 2)
            if not request:
                os.killpg(0, signal.SIGKILL)
            if os.fork() == 0:
                requests.close()
                _keep(json.loads(request), *descriptors)
            for descriptor in descriptors:
                os.close(descriptor)


def _keep(request: Request, stderr: int, life: int) -> NoReturn:
    """Forks the child, tells its number, and when it is over what it ended with."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(life)
        _live(request, stderr)
    os.close(stderr)
    os.write(life, b"%d\n" % pid)
    _, status = os.waitpid(pid, 0)
    os.write(life, b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _live(request: Request, stderr: int) -> NoReturn:
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor, standard in ((nothing, 0), (nothing, 1), (stderr, 2)):
        os.dup2(descriptor, standard)
    os.closerange(3, 64)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", 1, closefd=False)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["sse-relay", *request["arguments"]]
    from app.cli import main

    main()
    raise SystemExit  # on through `_serve`: it ends as a program does


if __name__ == "__main__":
    _serve()
