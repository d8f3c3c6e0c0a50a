"""What is told of a generation that has ended: to metrics, to its caller's account, to the webhook, to the log."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from app.admission.callers import Caller, Grant
from app.events import Done, Failed, Usage
from app.stream import Cause
from app.trace_context import TraceContext

if TYPE_CHECKING:
    from app.attempts import Attempts
    from app.progress import Progress
    from app.relay import Generation


class Try(msgspec.Struct, frozen=True):
    """One attempt at one upstream. `outcome`: `finished`, the code of an error, or what else ended the generation.

    `connect_s`: until the request had left; None where it never did. `asked_s` and `ended_s`: from the beginning of the
    generation on. `span_id` is what upstream was told, where it was told of a trace.
    """

    upstream: str
    outcome: str
    connect_s: float | None
    asked_s: float = 0.0
    ended_s: float = 0.0
    span_id: str | None = None


class Course(msgspec.Struct, frozen=True):
    """How a generation went. `longest_gap_s`: between two pieces of content, in seconds, without the times in which a
    slow reader kept upstream from being read; None with fewer than two.

    `most_readers` at once, and `resumes` from a cursor on: of this process. `log_bytes`: what the log is charged for at
    the end, packed where it can be read again; `live_only` where it no longer can, and was to be.
    """

    tries: tuple[Try, ...] = ()
    longest_gap_s: float | None = None
    most_readers: int = 0
    resumes: int = 0
    log_bytes: int = 0
    live_only: bool = False


class Summary(msgspec.Struct, frozen=True):
    """One generation, whole. Times in seconds.

    `text` is None unless the profile asks for it, and cut where `text_cut`. `upstream` is the last that was asked.
    `parent` is the caller's span, `trace` the generation's own where traces are kept.
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
    course: Course = Course()
    parent: TraceContext | None = None
    trace: TraceContext | None = None

    @property
    def trace_id(self) -> str | None:
        """Also of a trace that is kept by others alone."""
        known = self.trace or self.parent
        return None if known is None else known.trace_id


Listener = Callable[[Summary], None]
"""Is called once for each generation, in the step that ends it, and neither waits nor raises."""

Afterwards = Callable[[Summary, float], None]
"""Is called once for each generation, when nothing of it remains, with the seconds since its end."""


def summary_of(generation: "Generation", attempts: "Attempts", progress: "Progress", end: Done | Failed) -> Summary:
    """Of one whose end has a cause."""
    error, cause = (end.error if isinstance(end, Failed) else None), generation.cause or "lost"
    return Summary(
        stream=generation.id,
        request_id=generation.request_id,
        owner=generation.owner,
        grant=generation.chat.grant,
        profile=generation.chat.profile,
        model=generation.chat.model,
        upstream=attempts.upstream,
        cause=cause,
        finish_reason=end.finish_reason if isinstance(end, Done) else None,
        code=None if error is None else error.code,
        phase=None if error is None else error.phase,
        upstream_status=None if error is None else error.upstream_status,
        attempts=attempts.count,
        pieces=progress.pieces,
        text_bytes=progress.text_bytes,
        prompt_tokens=progress.prompt_tokens,
        usage=progress.usage(),
        queued_s=attempts.queued_s,
        first_token_s=progress.first_carried_s,
        total_s=generation.clocks.elapsed_s,
        text=progress.text,
        text_cut=progress.text_cut,
        course=_course(generation, attempts.tries(cause if error is None else error.code), progress.pieces),
        parent=generation.parent,
        trace=generation.trace,
    )


def _course(generation: "Generation", tries: tuple[Try, ...], pieces: int) -> Course:
    return Course(
        tries,
        longest_gap_s=generation.clocks.longest_gap_s if pieces > 1 else None,
        most_readers=generation.most_readers,
        resumes=generation.resumes,
        log_bytes=generation.log.kept_bytes,
        live_only=generation.log.live_from is not None,
    )
