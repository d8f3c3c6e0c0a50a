"""W3C trace context: whose trace a generation is part of, and what upstream is told of it.

https://www.w3.org/TR/trace-context/. What does not follow it to the letter is as if it had not come: an id that was
guessed would put a stream into a trace of somebody else.
"""

import re
import secrets
from collections.abc import Sequence
from typing import Final, Self

import msgspec

MAX_STATE_LENGTH: Final = 512
MAX_STATE_MEMBERS: Final = 32
SAMPLED: Final = 0x01
RANDOM: Final = 0x02
"""Of `trace-flags`: that the caller keeps the trace, and that its id is random. Others are not passed on."""

# Lower case alone. A version to come may have more behind a dash; ff is none.
_PARENT: Final = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})(?P<span>[0-9a-f]{16})-"
    r"(?P<flags>[0-9a-f]{2})(?P<more>-.*)?",
    re.ASCII,
)
_MEMBER: Final = re.compile(
    r"(?P<key>[a-z0-9][a-z0-9_*/@-]{0,255})=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]", re.ASCII
)


class TraceContext(msgspec.Struct, frozen=True):
    """A span that others may be beneath. Ids are in hex; `state` is the `tracestate` that came, for others to read."""

    trace_id: str
    span_id: str
    flags: int
    state: str = ""

    @property
    def sampled(self) -> bool:
        return bool(self.flags & SAMPLED)

    def child(self) -> Self:
        """Another span beneath this one, of the same trace."""
        return msgspec.structs.replace(self, span_id=secrets.token_hex(8))

    def headers(self) -> dict[str, str]:
        """What a request to upstream says of the span that it is made in."""
        parent = {"traceparent": f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"}
        return parent | {"tracestate": self.state} if self.state else parent


def new_trace() -> TraceContext:
    """A span that nothing is above."""
    return TraceContext(secrets.token_hex(16), secrets.token_hex(8), RANDOM)


def received(parents: Sequence[str], states: Sequence[str]) -> TraceContext | None:
    """The caller's span, by all the `traceparent` and `tracestate` headers that came; None without one that is good."""
    found = _PARENT.fullmatch(parents[0]) if len(parents) == 1 else None
    if found is None or (found["version"] == "00" and found["more"] is not None):
        return None
    return TraceContext(found["trace"], found["span"], int(found["flags"], 16) & (SAMPLED | RANDOM), _state(states))


def _state(headers: Sequence[str]) -> str:
    """Whole or not at all: "if the vendor failed to parse tracestate, it MUST discard it"; the parent is good still."""
    members = [member for header in headers for part in header.split(",") if (member := part.strip(" \t"))]
    found = [_MEMBER.fullmatch(member) for member in members]
    keys = {each["key"] for each in found if each is not None}
    state = ",".join(members)
    good = len(keys) == len(members) <= MAX_STATE_MEMBERS and len(state) <= MAX_STATE_LENGTH
    return state if good else ""
