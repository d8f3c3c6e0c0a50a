"""What is said to a relay and heard from it: requests, bytes to events, refusals to problems. It remembers nothing."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import msgspec

from app.client.conversation import Message
from app.client.events import Answer, ClientEvent
from app.client.problems import ErrorObject, RelayProblem, not_a_relay

EVENTS: Final = "text/event-stream"
MAX_LINE_BYTES: Final = 1024 * 1024
"""The relay's lines stay under 64 KiB; a server that sends this much without a line feed is no relay."""

NOT_DECODED: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding raises; the last one for JSON that is nested without end."""

Messages = str | Sequence[Message | Mapping[str, Any]]
"""One user message, or OpenAI's list: `Message`, or mappings as OpenAI has them (images, tool results)."""


class Request(msgspec.Struct, frozen=True):
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes | None = None


class Head(msgspec.Struct, frozen=True):
    """An answer's status and those of its headers that count."""

    status: int
    content_type: str
    stream_id: str | None
    retry_after: str

    @property
    def opens_a_stream(self) -> bool:
        return self.status == 200 and self.content_type.startswith(EVENTS)


def head(status: int, headers: Mapping[str, str]) -> Head:
    return Head(
        status, headers.get("content-type", "").lower(), headers.get("x-stream-id"), headers.get("retry-after", "")
    )


# Of a compressed stream a gateway holds back what does not fill a block.
_STREAMED: Final = {"Accept": EVENTS, "Accept-Encoding": "identity"}
HEALTH: Final = Request("GET", "/healthz", {})


def ask(messages: Messages, fields: Mapping[str, object]) -> Request:
    """`POST /chat/stream`; fields that are None are left out."""
    question = {"message": messages} if isinstance(messages, str) else {"messages": messages}
    given = {name: value for name, value in fields.items() if value is not None}
    body = msgspec.json.encode({"on_disconnect": "wait"} | question | given)
    return Request("POST", "/chat/stream", _STREAMED | {"Content-Type": "application/json"}, body)


def attach(stream_id: str, after: int) -> Request:
    return Request("GET", f"{_path(stream_id)}?after={after}", _STREAMED)


def stop(stream_id: str) -> Request:
    return Request("DELETE", _path(stream_id), {})


def result(stream_id: str) -> Request:
    return Request("GET", f"{_path(stream_id)}/result", {})


def _path(stream_id: str) -> str:
    return f"/chat/stream/{quote(stream_id, safe='')}"


class Lines:
    """Bytes in any cut to the payloads of `data` lines; the dialect puts each event on one, ended by LF."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def receive_data(self, data: bytes) -> list[bytes]:
        self._rest += data
        lines: list[bytes] = []
        if b"\n" in data:  # else a long line that comes in small pieces would be looked through with each of them
            *lines, rest = bytes(self._rest).split(b"\n")
            self._rest = bytearray(rest)
        if len(self._rest) > MAX_LINE_BYTES:
            raise not_a_relay(f"a line of more than {MAX_LINE_BYTES} bytes")
        return [line.removeprefix(b"data: ") for line in lines if line.startswith(b"data: ")]


def decode_event(payload: bytes) -> ClientEvent:
    try:
        event = msgspec.json.decode(payload, type=ClientEvent)
    except NOT_DECODED as error:
        raise not_a_relay(str(error)) from None
    return msgspec.structs.replace(event, json=payload.decode("utf-8", "replace"))


def decode_result(answered: Head, body: bytes) -> Answer:
    if answered.status != 200:
        raise decode_refusal(answered, body)
    try:
        return msgspec.json.decode(body, type=Answer)
    except NOT_DECODED as error:
        raise not_a_relay(str(error), status=200) from None


class _Refusal(msgspec.Struct):
    error: ErrorObject


def decode_refusal(answered: Head, body: bytes) -> RelayProblem:
    """What an answer that is no stream says: the error object as JSON, or in an `error` event."""
    status = answered.status
    retry_after_s = float(answered.retry_after) if answered.retry_after.isdecimal() else None
    for payload in _payloads(body):
        try:
            error = msgspec.json.decode(payload, type=_Refusal).error
        except NOT_DECODED:
            continue
        return RelayProblem(error, status=status, retry_after_s=retry_after_s)
    why = f"HTTP {status} without the relay's error object"
    return not_a_relay(why, status=status, retry_after_s=retry_after_s)


def _payloads(body: bytes) -> Iterator[bytes]:
    yield body
    yield from Lines().receive_data(body)
