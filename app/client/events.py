"""The native dialect as a reader sees it: bytes to frozen events. Pure; what it does not know passes or is left out."""

from collections.abc import Iterator
from typing import Final

import msgspec

from app.events import Usage

MAX_LINE_BYTES: Final = 1024 * 1024
"""The relay's lines stay under 64 KiB; a server that sends this much without a line feed is no relay."""


class ErrorObject(msgspec.Struct, frozen=True):
    """The error object of the contract. Its codes, and three found on this side: `unreachable` (nothing listens there),
    `connection_lost` (cut, and not to be had again), `not_a_relay` (something else answers there)."""

    code: str
    message: str
    type: str = ""
    param: str | None = None
    phase: str | None = None
    retryable: bool = False
    partial: bool = False
    upstream_status: int | None = None
    request_id: str | None = None


class Timings(msgspec.Struct, frozen=True):
    total_s: float
    first_token_s: float | None = None


class ToolCallPiece(msgspec.Struct, frozen=True):
    """`id` and `name` come with a call's first piece; `arguments` (JSON text) are to be joined."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


class ClientEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event of any type; `content` is text of the answer in every one, so that joining it gives the answer.

    Types: start, delta, reasoning, refusal, tool_call, ping, live_only, done, error; ignore those you do not know.
    `json` is the event as it was received.
    """

    type: str
    content: str = ""
    seq: int | None = None
    id: str | None = None
    model: str | None = None
    resumable: bool = False
    reasoning: str = ""
    refusal: str = ""
    tool_call: ToolCallPiece | None = None
    phase: str | None = None
    elapsed_s: float | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    error: ErrorObject | None = None
    json: str = ""


class RelayProblem(Exception):
    """Why there is no whole answer. `status` is the HTTP status, None inside a stream and without a connection."""

    def __init__(self, error: ErrorObject, *, status: int | None = None, retry_after_s: float | None = None) -> None:
        self.error: Final = error
        self.code: Final = error.code
        self.message: Final = error.message
        self.retryable: Final = error.retryable
        self.partial: Final = error.partial
        self.status: Final = status
        self.retry_after_s: Final = retry_after_s
        super().__init__(f"{error.code}: {error.message}")


class Lines:
    """Bytes in any cut to the payloads of `data` lines; the dialect puts each event on one, ended by LF."""

    def __init__(self) -> None:
        self._rest = b""

    def receive_data(self, data: bytes) -> list[bytes]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            raise not_a_relay(f"a line of more than {MAX_LINE_BYTES} bytes")
        return [line.removeprefix(b"data: ") for line in lines if line.startswith(b"data: ")]


def decode_event(payload: bytes) -> ClientEvent:
    try:
        event = msgspec.json.decode(payload, type=ClientEvent)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise not_a_relay(str(error)) from None
    return msgspec.structs.replace(event, json=payload.decode("ascii", "replace"))


class _Refusal(msgspec.Struct):
    error: ErrorObject


def decode_refusal(body: bytes, status: int, retry_after: str) -> RelayProblem:
    """What an answer that is no stream says: the error object as JSON, or in an `error` event."""
    retry_after_s = float(retry_after) if retry_after.isdecimal() else None
    for payload in _payloads(body):
        try:
            error = msgspec.json.decode(payload, type=_Refusal).error
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        return RelayProblem(error, status=status, retry_after_s=retry_after_s)
    return not_a_relay(f"HTTP {status} without the relay's error object", status=status)


def _payloads(body: bytes) -> Iterator[bytes]:
    yield body
    yield from Lines().receive_data(body)


def not_a_relay(why: str, *, status: int | None = None) -> RelayProblem:
    return RelayProblem(ErrorObject("not_a_relay", f"What answers there is no relay: {why}."), status=status)


def connection_lost(message: str, *, partial: bool) -> RelayProblem:
    return RelayProblem(ErrorObject("connection_lost", message, retryable=True, partial=partial))
