"""`Retry-After` (RFC 9110 §10.2.3): seconds, or a date."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

MAX_RETRY_AFTER_SECONDS: Final = 86_400.0

_SECONDS: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)


def seconds(header: str | None, now: datetime | None) -> float | None:
    """A day at most; None where it is neither, or not there. A date needs `now`, with its zone, to mean anything."""
    text = (header or "").strip()
    if _SECONDS.fullmatch(text):
        return min(float(text), MAX_RETRY_AFTER_SECONDS)
    if now is None:
        return None
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):  # the parser's own bugs on odd text are not ours to have
        return None
    # "-0000" makes a date without a zone; HTTP knows no zone but GMT (RFC 9110 §5.6.7).
    aware = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
    return min(max((aware - now).total_seconds(), 0.0), MAX_RETRY_AFTER_SECONDS)
