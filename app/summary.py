"""What is told of a generation that has ended: to the log, to metrics, to its caller's account, to the webhook."""

from collections.abc import Callable

import msgspec

from app.admission.callers import Caller, Grant
from app.events import Usage
from app.stream import Cause


class Summary(msgspec.Struct, frozen=True):
    """One generation, whole. Times in seconds.

    `text` is None unless the profile asks for it, and cut where `text_cut`. `upstream` is the last that was asked.
    """

    stream: str
    request_id: str
    owner: Caller
    grant: Grant
    profile: str | None
    model: str
    upstream: str | None
    cause: Cause
    finish_reason: str | None
    code: str | None
    phase: str | None
    upstream_status: int | None
    attempts: int
    pieces: int
    text_bytes: int
    prompt_tokens: int
    usage: Usage
    queued_s: float
    first_token_s: float | None
    total_s: float
    text: str | None = None
    text_cut: bool = False


Listener = Callable[[Summary], None]
"""Is called once for each generation, in the step that ends it, and neither waits nor raises."""
