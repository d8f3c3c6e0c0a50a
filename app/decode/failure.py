"""Upstream's failures → ours (contract §3, the table of codes). The relay adds `phase`, `partial` and `request_id`.

Upstreams tell a failure by a number (`code`, `status`, `status_code`; as a string too) or by a name (`type`, `code`,
`status`, `metadata.error_type`). Names are compared by their letters: rate_limit_error, RateLimitError, RATE_LIMIT.
"""

import re
from collections.abc import Iterator
from datetime import datetime

from app.decode import tolerant
from app.decode.scrub import scrubbed
from app.decode.sse import Frames
from app.errors import RelayError
from app.retry_after import seconds

ACCOUNT = re.compile(
    "authenticat|apikey|unauthorized|permission|forbidden|accessdenied|accountdeactivated|unsupportedcountry"
)
QUOTA = re.compile("insufficientquota|insufficientbalance|insufficientcredit|exceededcurrentquota|billing|payment")
RATE = re.compile("ratelimit|toomanyrequests|resourceexhausted|throttl")
REQUEST = re.compile(
    "invalidrequest|badrequest|invalidargument|invalidprompt|notfound|unprocessable|unsupported|"
    "contextlength|contextwindow|contextsize|toolarge|toolong|contentpolicy|contentfilter"
)

ACCOUNT_STATUSES = frozenset({401, 402, 403, 409})
TIMEOUT_STATUSES = frozenset({408, 504, 524})


def in_band(error: object, *, carrying: bool) -> RelayError:
    """An error that came inside an answer: an error object, the document that holds it, or a mere string.

    `carrying`: something was carried before. A refusal of the request is then no longer the caller's: it was accepted.
    """
    tellings = list(_tellings(error))
    names = " ".join(_names(tellings))
    status = next(_statuses(tellings), None)
    if QUOTA.search(names) or ACCOUNT.search(names) or status in ACCOUNT_STATUSES:
        return _account(status)
    if RATE.search(names) or status == 429:
        return RelayError("rate_limited", "upstream's rate limit is reached", upstream_status=status)
    if status == 408:
        return RelayError("upstream_timeout", "upstream gave up waiting", upstream_status=status)
    if status is not None and status >= 500:
        return RelayError("upstream_error", "upstream failed while it answered", upstream_status=status)
    if status is None and not REQUEST.search(names):
        return RelayError("upstream_error", "upstream failed while it answered")
    if carrying:
        text = "upstream refused to go on with its answer"
        return RelayError("upstream_error", text, retryable=False, upstream_status=status)
    return _rejected(tellings, status)


def from_status(status: int, body: bytes, retry_after: str | None, *, now: datetime | None = None) -> RelayError:
    """A response that is not 2xx. `body`: as much of it as was read, decoded. `retry_after`: the header (RFC 9110
    §10.2.3), in seconds or as a date; a date needs `now` (with its time zone) to mean anything.
    """
    tellings = list(_tellings(_document(body)))
    wait_s = seconds(retry_after, now)
    match status:
        case _ if status in ACCOUNT_STATUSES or QUOTA.search(" ".join(_names(tellings))):
            return _account(status)
        case 429:
            text = "upstream's rate limit is reached"
            return RelayError("rate_limited", text, upstream_status=status, retry_after_s=wait_s)
        case _ if status in TIMEOUT_STATUSES:
            return RelayError("upstream_timeout", "upstream gave up waiting", upstream_status=status)
        case _ if 400 <= status < 500:
            return _rejected(tellings, status)
        case _:
            text = "upstream is not available"
            return RelayError("upstream_unavailable", text, upstream_status=status, retry_after_s=wait_s)


def _account(status: int | None) -> RelayError:
    """The relay's own key or account: its operator's business, told to nobody else, and no retry mends it."""
    return RelayError("upstream_error", "upstream does not serve this relay", retryable=False, upstream_status=status)


def _rejected(tellings: list[tolerant.Object], status: int | None) -> RelayError:
    words = next((scrubbed(words) for words in _words(tellings) if scrubbed(words)), "upstream refused the request")
    return RelayError("upstream_rejected", words, upstream_status=status)


def _tellings(error: object) -> Iterator[tolerant.Object]:
    """The objects that tell something: the innermost `error` and its metadata, then what surrounds them."""
    surroundings: list[tolerant.Object] = []
    while isinstance(error, dict) and error.get("error"):
        surroundings.insert(0, {key: value for key, value in error.items() if key != "error"})
        error = error["error"]
    match error:
        case dict():
            yield error
            if isinstance(metadata := error.get("metadata"), dict):
                yield metadata
        case str() if not re.search(r"\s", error.strip()):
            yield {"code": error.strip(), "message": error}
        case str():
            yield {"message": error}
        case int() | float():
            yield {"code": error}
    yield from surroundings


def _statuses(tellings: list[tolerant.Object]) -> Iterator[int]:
    for telling in tellings:
        for key in ("code", "status", "status_code"):
            match telling.get(key):
                case int() | float() as number if 400 <= number < 600:
                    yield int(number)
                case str() as text if re.fullmatch(r"[45][0-9]{2}", text.strip()):
                    yield int(text)


def _names(tellings: list[tolerant.Object]) -> Iterator[str]:
    for telling in tellings:
        for key in ("type", "code", "status", "error_type"):
            if isinstance(name := telling.get(key), str):
                yield re.sub(r"[^a-z0-9]", "", name[:100].lower())


def _words(tellings: list[tolerant.Object]) -> Iterator[str]:
    for telling in tellings:
        for key in ("message", "detail", "msg"):
            if isinstance(words := telling.get(key), str):
                yield words


def loosely(payload: bytes) -> object:
    """What an error frame says: JSON where it is JSON, else its words."""
    try:
        return tolerant.read(payload)
    except ValueError:
        return payload.decode("utf-8", "replace")


def _document(body: bytes) -> object:
    """The error that a body holds: JSON, or an event stream's first event."""
    document = loosely(body)
    if isinstance(document, str):
        frames = Frames(len(body))
        frames.receive(body)
        frames.receive_eof()
        frame = frames.next_frame()
        document = loosely(frame.data) if frame is not None else None
    if isinstance(document, list):
        document = next(iter(document), None)  # Gemini puts its error into a list
    return document if isinstance(document, dict) else None
