"""What is told of a stream that has ended, as the JSON body of a call."""

from datetime import datetime
from typing import Final, Literal

import msgspec

from app.events import Usage
from app.stream import Cause
from app.summary import Summary

Status = Literal["done", "cancelled", "error"]

MAX_WORD_CHARACTERS: Final = 256
"""Of what upstream called the end."""


class Error(msgspec.Struct, frozen=True):
    """Codes and phases are those of the error object that clients get."""

    code: str | None
    phase: str | None
    upstream_status: int | None


class Timings(msgspec.Struct, frozen=True):
    """Seconds; all from the beginning of the stream but `queued_s`."""

    queued_s: float
    first_token_s: float | None
    total_s: float


class Data(msgspec.Struct, frozen=True):
    """`text` and `text_cut` are there only where the stream's profile asks for them.

    `subject` is None for the application itself, and for an anonymous caller: that one's subject is its cookie, and who
    has that can read its streams.
    """

    stream: str
    request_id: str
    status: Status
    finish_reason: str | None
    error: Error | None
    caller: str
    subject: str | None
    profile: str | None
    model: str
    upstream: str | None
    attempts: int
    usage: Usage
    timings: Timings
    text: str | msgspec.UnsetType = msgspec.UNSET
    text_cut: bool | msgspec.UnsetType = msgspec.UNSET


class Message(msgspec.Struct, frozen=True, tag_field="type", tag="stream.ended"):
    """`timestamp`: when the stream ended, whenever the call arrives."""

    timestamp: datetime
    data: Data


def body(summary: Summary, ended: datetime) -> bytes:
    return msgspec.json.encode(Message(ended, _data(summary)))


def _data(summary: Summary) -> Data:
    failed = summary.code is not None
    reason = summary.finish_reason
    return Data(
        stream=summary.stream,
        request_id=summary.request_id,
        status=_status(summary.cause),
        finish_reason=reason and reason[:MAX_WORD_CHARACTERS],
        error=Error(summary.code, summary.phase, summary.upstream_status) if failed else None,
        caller=summary.grant.name,
        subject=_sound(summary.owner.subject) if summary.owner.subject and summary.owner.key else None,
        profile=summary.profile,
        model=_sound(summary.model),
        upstream=summary.upstream,
        attempts=summary.attempts,
        usage=summary.usage,
        timings=Timings(summary.queued_s, summary.first_token_s, summary.total_s),
        text=msgspec.UNSET if summary.text is None else summary.text,
        text_cut=msgspec.UNSET if summary.text is None else summary.text_cut,
    )


def _sound(name: str) -> str:
    """JSON of a client's making, a token's included, can hold half a surrogate pair, which UTF-8 cannot."""
    return name.encode("utf-8", "replace").decode()


def _status(cause: Cause) -> Status:
    match cause:
        case "finished":
            return "done"
        case "deleted" | "left":
            return "cancelled"
        case "failed" | "drained" | "lost":
            return "error"
