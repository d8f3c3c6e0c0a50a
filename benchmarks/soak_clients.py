"""Clients of the soak: what each asks for, what it does with it, and whether it got what it should have.

Each has a connection of its own, which it closes when it leaves; whoever reads to the end waits for the server to
close.
"""

import asyncio
import json
import random
import re
from collections.abc import Callable
from typing import Final, Literal

import msgspec

from benchmarks.contenders import RELAY, VARIANTS, Contender

Kind = Literal["read", "leave", "stop", "resume", "fault"]
KINDS: Final[dict[Kind, int]] = {"read": 45, "leave": 15, "stop": 10, "resume": 15, "fault": 15}
"""Of a hundred streams."""

FAULTS: Final = ("cut", "reset", "garbage", "error", "stall", "status")
INTERVALS_US: Final = (0, 1_000, 5_000, 20_000, 50_000)
WAITS_MS: Final = (0, 0, 0, 20, 200)
MEAN_TOKENS: Final = 15
MOST_TOKENS: Final = 300
LONGEST_SECONDS: Final = 4.0
CLIENT_SECONDS: Final = 60.0
READ_BYTES: Final = 64 * 1024

ENDS: Final = {
    "native": b"data: [DONE]",
    "openai": b"data: [DONE]",
    "ai_sdk": b"data: [DONE]",
    "ag_ui": b'"RUN_FINISHED"',
}
DIALECTS: Final = tuple(one for one in VARIANTS if not one.needs and one.on_disconnect is None)
_SEQ: Final = re.compile(rb'"seq":([0-9]+)')
_ID: Final = re.compile(rb"(?i)x-stream-id: *(\S+)")


class Plan(msgspec.Struct, frozen=True):
    """One stream: its shape, and at which token its client does what it is there for."""

    kind: Kind
    dialect: Contender
    tokens: int
    interval_us: int
    filler_bytes: int
    wait_ms: int
    fault: str
    at_token: int

    @property
    def model(self) -> str:
        shape = f"sim-{self.tokens}-{self.interval_us}-{self.filler_bytes}-{self.wait_ms}"
        return f"{shape}!{self.fault}" if self.fault else shape


def planned(chance: random.Random) -> Plan:
    kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
    interval_us = chance.choice(INTERVALS_US)
    longest = int(LONGEST_SECONDS * 1e6 / interval_us) if interval_us else MOST_TOKENS
    tokens = max(4, min(longest, MOST_TOKENS, int(chance.expovariate(1 / MEAN_TOKENS))))
    return Plan(
        kind=kind,
        dialect=chance.choice(DIALECTS) if kind in ("read", "leave") else RELAY,
        tokens=tokens,
        interval_us=interval_us,
        filler_bytes=chance.choice((8, 40, 200)),
        wait_ms=chance.choice(WAITS_MS),
        fault=chance.choice(FAULTS) if kind == "fault" else "",
        at_token=chance.randint(0 if kind == "leave" else 1, tokens),
    )


async def client(port: int, plan: Plan) -> str | None:
    """What went wrong, if something did."""
    try:
        async with asyncio.timeout(CLIENT_SECONDS):
            return await _ACTS[plan.kind](port, plan)
    except TimeoutError:
        return f"{plan.kind}: no end within {CLIENT_SECONDS:g} s"
    except OSError as error:
        return f"{plan.kind}: {type(error).__name__}"


class _Reading:
    """One answer, as far as it has come."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.bytes = b""

    @classmethod
    async def of(cls, port: int, request: bytes) -> "_Reading":
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        return cls(reader, writer)

    async def until(self, enough: Callable[[bytes], bool]) -> None:
        """Reads until there is enough, or no more."""
        while not enough(self.bytes) and (more := await self._reader.read(READ_BYTES)):
            self.bytes += more

    def close(self) -> None:
        self._writer.close()

    @property
    def id(self) -> str:
        found = _ID.search(self.bytes)
        return found[1].decode() if found else ""

    @property
    def seqs(self) -> list[int]:
        return [int(seq) for seq in _SEQ.findall(self.bytes)]


async def _read(port: int, plan: Plan) -> str | None:
    reading = await _Reading.of(port, _closing(plan.dialect.whole_request(port, plan.model)))
    try:
        await reading.until(lambda _: False)
    finally:
        reading.close()
    whole = ENDS[plan.dialect.asks] in reading.bytes and reading.bytes.count(b"@") == plan.tokens
    return None if whole else f"read, {plan.dialect.name}: {_told(reading, plan)}"


async def _leave(port: int, plan: Plan) -> str | None:
    reading = await _Reading.of(port, plan.dialect.whole_request(port, plan.model))
    await reading.until(lambda got: got.count(b"@") >= plan.at_token)
    reading.close()
    return None


async def _stop(port: int, plan: Plan) -> str | None:
    reading = await _Reading.of(port, _closing(RELAY.whole_request(port, plan.model)))
    try:
        await reading.until(lambda got: got.count(b"@") >= plan.at_token)
        order = f"DELETE {RELAY.path}/{reading.id} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        stopping = await _Reading.of(port, order.encode())
        await stopping.until(lambda _: False)
        stopping.close()
        await reading.until(lambda _: False)
    finally:
        reading.close()
    ended = b'"type":"done"' in reading.bytes and ENDS["native"] in reading.bytes
    return None if ended and b" 202 " in stopping.bytes else f"stop: {_told(reading, plan)}"


async def _resume(port: int, plan: Plan) -> str | None:
    """Leaves, and comes back from the last event that was whole: none is missing, none comes twice."""
    first = await _Reading.of(port, _closing(RELAY.whole_request(port, plan.model)))
    await first.until(lambda got: got.count(b"@") >= plan.at_token)
    first.close()
    seqs = first.seqs
    path = f"{RELAY.path}/{first.id}?after={seqs[-1]}"
    again = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\nConnection: close\r\n\r\n"
    second = await _Reading.of(port, again.encode())
    try:
        await second.until(lambda _: False)
    finally:
        second.close()
    seqs += second.seqs
    over = b" 204 " in second.bytes[:16] or ENDS["native"] in second.bytes
    # 0 is the start, then one for each token and the end.
    return None if over and seqs == list(range(plan.tokens + 2)) else f"resume: {_told(second, plan)}"


async def _fault(port: int, plan: Plan) -> str | None:
    """The end is told, whatever upstream did: as an event, or as an HTTP status with an error."""
    reading = await _Reading.of(port, _closing(RELAY.whole_request(port, plan.model)))
    try:
        await reading.until(lambda _: False)
    finally:
        reading.close()
    ended = ENDS["native"] in reading.bytes and b'"error"' in reading.bytes
    return None if ended else f"fault {plan.fault}: {_told(reading, plan)}"


_ACTS: Final = {"read": _read, "leave": _leave, "stop": _stop, "resume": _resume, "fault": _fault}


def _closing(request: bytes) -> bytes:
    return request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)


def _told(reading: _Reading, plan: Plan) -> str:
    return json.dumps({"asked": plan.model, "at": plan.at_token, "got": reading.bytes[-200:].decode("latin-1")})
