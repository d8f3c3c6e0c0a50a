"""1,000 readers that lose their connections in one moment and come back in the same: how long until all are served."""

import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.contenders import RELAY, started
from benchmarks.paced import Crowd, standing
from benchmarks.processes import BIN, Server, running_upstream

MODEL: Final = "sim-1000-2000000-8"
"""A token every other second: the herd is the load, not what it reads."""

RAMP_US: Final = 5_000
RETURN_SECONDS: Final = 240


class Returned(msgspec.Struct, frozen=True):
    """From the first new connection until a reader had its first token again; see returns.c."""

    served: int
    lost: int
    bad_status: int
    p50_ms: float
    p99_ms: float
    max_ms: float


def returned(herd: int, beside: int) -> Returned:
    """So many come back, while the relay carries `beside` streams of ordinary pace."""
    with running_upstream() as upstream_port, started(RELAY, upstream_port) as server, ExitStack() as stack:
        assert server is not None
        if beside:
            stack.enter_context(standing(Crowd(RELAY, server, upstream_port, beside)))
        return _returned(server, herd)


def _returned(server: Server, herd: int) -> Returned:
    with tempfile.TemporaryDirectory() as folder:
        request = Path(folder, "request")
        request.write_bytes(RELAY.whole_request(server.port, MODEL))
        command = [str(BIN / "returns"), str(server.port), str(request), RELAY.path, str(herd), str(RAMP_US)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                stand = msgspec.json.decode(process.stdout.readline(), type=dict[str, int])["standing"]
                if stand != herd:
                    raise RuntimeError(f"{stand} of {herd} readers stand")
                output, _ = process.communicate(b"now\n", timeout=RETURN_SECONDS)
            finally:
                process.kill()
    return msgspec.json.decode(output, type=Returned)
