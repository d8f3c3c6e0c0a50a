"""One line in the log for each generation that is over: who asked for what, how it ended, and what it took.

Never what was said: no prompt, no answer, no subject, no key. docs/operate.md says what each field means, and a test
holds it to what is logged.
"""

import re
from typing import Final

import structlog

from app.stream import STOPPED
from app.summary import Course, Summary

OPERATORS_STATUSES: Final = {401, 402, 403, 409, 429}
"""With `upstream_error`: upstream refuses our key or account, which no caller can mend; an operator must hear of it."""

_WORD: Final = re.compile(r"[\w.-]{1,32}", re.ASCII)

logger = structlog.get_logger("app.stream")


def tell(summary: Summary, took_s: float) -> None:
    """Times in seconds. What there was none of is null."""
    loud = summary.code == "upstream_error" and summary.upstream_status in OPERATORS_STATUSES
    say = logger.error if loud else logger.info
    say(
        "stream",
        stream=summary.stream,
        request_id=summary.request_id,
        trace_id=summary.trace_id,
        caller=summary.grant.name,
        profile=summary.profile,
        model=summary.model,
        upstream=summary.upstream,
        cause=summary.cause,
        finish_reason=_word(summary.finish_reason),
        code=summary.code,
        phase=summary.phase,
        upstream_status=summary.upstream_status,
        attempts=summary.attempts,
        pieces=summary.pieces,
        text_bytes=summary.text_bytes,
        **_used(summary),
        queued_s=round(summary.queued_s, 3),
        first_token_s=_rounded(summary.first_token_s),
        total_s=round(summary.total_s, 3),
        cancel_lag_s=round(took_s, 4) if summary.cause in STOPPED else None,
        **_course(summary.course),
    )


def _used(summary: Summary) -> dict[str, object]:
    usage = summary.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "usage_source": usage.source,
    }


def _course(course: Course) -> dict[str, object]:
    tries = course.tries
    return {
        "tries": [
            {"upstream": each.upstream, "outcome": each.outcome, "connect_s": _rounded(each.connect_s)}
            for each in tries
        ],
        "connect_s": _rounded(tries[-1].connect_s) if tries else None,
        "longest_gap_s": _rounded(course.longest_gap_s),
        "most_readers": course.most_readers,
        "resumes": course.resumes,
        "log_bytes": course.log_bytes,
        "live_only": course.live_only,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _word(reason: str | None) -> str | None:
    """Upstreams may say whatever they like for a finish_reason, an answer among it."""
    return reason if reason is None or _WORD.fullmatch(reason) else "other"
