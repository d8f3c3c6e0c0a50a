"""A client that vanishes: its packets are dropped, no FIN or RST comes. How long until upstream is closed?

Everything runs in a network of its own (`unshare --net`), in which iptables drops the packets of two clients: of one
whose stream flows, and of one whose stream is silent but for the relay's pings. Where that cannot be had, it says so.
"""

import asyncio
import shutil
import subprocess
import sys
import time
from typing import Final

import msgspec

from benchmarks.contenders import RELAY, started
from benchmarks.processes import ROOT, abort_ns, build, running_upstream

HEARTBEAT_SECONDS: Final = 15
GIVE_UP_SECONDS: Final = 90.0
LOOK_SECONDS: Final = 0.05
PROCESS_SECONDS: Final = 180
FLOWING: Final = "sim-1000000-20000-8-0-1"
SILENT: Final = "sim-10-1000000000-8-0-2"
TOOLS: Final = ("unshare", "ip", "iptables")


class Vanished(msgspec.Struct, frozen=True):
    """Seconds from the first dropped packet until upstream saw its connection close; None: within 90 s it did not."""

    flowing_s: float | None
    silent_s: float | None


def vanished() -> Vanished | str:
    """What was measured, or why nothing was."""
    if absent := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"{absent[0]} is not installed: clients that vanish were not measured."
    inside = [sys.executable, "-m", "benchmarks.vanishing"]
    command = ["unshare", "--map-root-user", "--net", *inside]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=PROCESS_SECONDS, check=False)
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason was given"]
        return f"Clients that vanish were not measured, for want of a network of our own: {why[-1]}"
    return msgspec.json.decode(done.stdout, type=Vanished)


def main() -> int:
    """What runs in the network of its own."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    settings = {"RELAY_HEARTBEAT_SECONDS": str(HEARTBEAT_SECONDS), "RELAY_HOLD_STATUS_SECONDS": "0.1"}
    with running_upstream() as upstream_port, started(RELAY, upstream_port, **settings) as server:
        assert server is not None
        found = asyncio.run(_vanish(server.port, upstream_port))
    print(msgspec.json.encode(found).decode())
    return 0


async def _vanish(port: int, upstream_port: int) -> Vanished:
    clients = [await _client(port, model) for model in (FLOWING, SILENT)]
    began_ns = time.monotonic_ns()
    for _, writer in clients:
        _drop_packets(writer.get_extra_info("sockname")[1])
    try:
        flowing, silent = await asyncio.gather(*(_noticed_s(upstream_port, tag, began_ns) for tag in (1, 2)))
        return Vanished(flowing, silent)
    finally:
        for _, writer in clients:
            writer.transport.abort()


async def _client(port: int, model: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """One that has the head and the first event."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(RELAY.whole_request(port, model, "cancel"))
    await asyncio.wait_for(reader.readuntil(b'"start"'), HEARTBEAT_SECONDS)
    return reader, writer


def _drop_packets(client_port: int) -> None:
    for side in ("--sport", "--dport"):
        rule = ["iptables", "-w", "-I", "INPUT", "-p", "tcp", side, str(client_port), "-j", "DROP"]
        subprocess.run(rule, check=True)


async def _noticed_s(upstream_port: int, tag: int, began_ns: int) -> float | None:
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while time.monotonic() < deadline:
        if noticed_ns := await asyncio.to_thread(abort_ns, upstream_port, tag):
            return round((noticed_ns - began_ns) / 1e9, 2)
        await asyncio.sleep(LOOK_SECONDS)
    return None


if __name__ == "__main__":
    build()
    sys.exit(main())
