"""A redis-server for a measure: it keeps nothing on disk and runs on the rig's core."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.processes import Server


@contextmanager
def redis_server(folder: Path) -> Iterator[Server]:
    """On `folder`/redis.sock; RuntimeError where it is not installed."""
    program = shutil.which("redis-server")
    if program is None:
        raise RuntimeError("redis-server is not installed")
    path = str(folder / "redis.sock")
    command = [program, "--port", "0", "--unixsocket", path, "--save", "", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            while not Path(path).exists() or _refuses(path):
                time.sleep(0.01)
            yield Server(process.pid, 0)
        finally:
            process.terminate()


def _refuses(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) != 0
