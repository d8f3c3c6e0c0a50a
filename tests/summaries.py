"""Ends of streams, as a relay tells them to its listeners."""

from typing import Any, Final

import msgspec

from app.admission.callers import Caller, Grant
from app.events import Usage
from app.summary import Summary

FINISHED: Final = Summary(
    stream="s_1",
    request_id="r_1",
    owner=Caller("key:app", "user-7"),
    grant=Grant("key:app"),
    profile="support",
    model="small",
    upstream="first",
    cause="finished",
    finish_reason="stop",
    code=None,
    phase=None,
    upstream_status=None,
    attempts=2,
    pieces=9,
    text_bytes=40,
    prompt_tokens=3,
    usage=Usage(3, 9, 12, "reported"),
    queued_s=0.1,
    first_token_s=0.4,
    total_s=2.0,
)


def ended(number: int = 1, **changes: Any) -> Summary:
    return msgspec.structs.replace(FINISHED, stream=f"s_{number}", **changes)


def failed(number: int = 1, code: str = "upstream_error", **changes: Any) -> Summary:
    given = {"cause": "failed", "code": code, "phase": "stream", "finish_reason": None}
    return ended(number, **(given | {"usage": Usage(3, 2, 5, "estimated")} | changes))


def cancelled(number: int = 1, **changes: Any) -> Summary:
    given = {"cause": "deleted", "finish_reason": "cancelled", "usage": Usage(3, 4, 7, "estimated")}
    return ended(number, **(given | changes))
