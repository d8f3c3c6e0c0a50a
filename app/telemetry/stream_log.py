"""One line in the log for each generation that has ended: who asked for what, how it ended, and what it took.

Never what was said: no prompt, no answer, no subject, no key.
"""

import logging
import re
from typing import Final

import structlog

from app.summary import Summary

OPERATORS_STATUSES: Final = {401, 402, 403, 409, 429}
"""With `upstream_error`: upstream refuses our key or account, which no caller can mend; an operator must hear of it."""

_WORD: Final = re.compile(r"[\w.-]{1,32}", re.ASCII)

logger = structlog.get_logger("app.stream")


def tell(summary: Summary) -> None:
    """Times in seconds. What there was none of is null."""
    loud = summary.code == "upstream_error" and summary.upstream_status in OPERATORS_STATUSES
    usage = summary.usage
    logger.log(
        logging.ERROR if loud else logging.INFO,
        "stream",
        stream=summary.stream,
        request_id=summary.request_id,
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
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        usage_source=usage.source,
        queued_s=round(summary.queued_s, 3),
        first_token_s=None if summary.first_token_s is None else round(summary.first_token_s, 3),
        total_s=round(summary.total_s, 3),
    )


def _word(reason: str | None) -> str | None:
    """Upstreams may say whatever they like for a finish_reason, an answer among it."""
    return reason if reason is None or _WORD.fullmatch(reason) else "other"
