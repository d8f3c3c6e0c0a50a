"""A generation that somebody has asked for, before there is one."""

import msgspec

from app.admission.callers import Caller
from app.request.chat import Chat
from app.trace_context import TraceContext


class Key(msgspec.Struct, frozen=True):
    """An `Idempotency-Key` of a caller, with the hash of the body it was sent with.

    `name` and `claim` are how other processes know it, where there are any.
    """

    caller: Caller
    value: str
    body_hash: bytes
    name: str = ""
    claim: bytes = b""


class Order(msgspec.Struct, frozen=True):
    """What is to be generated, for whom, and how long it runs on unread (`linger_s`: 0, some seconds, infinity).

    `parent`: the span that the request was made in.
    """

    chat: Chat
    owner: Caller
    request_id: str
    linger_s: float
    key: Key | None
    parent: TraceContext | None = None
