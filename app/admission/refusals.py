"""What those are told who are not let in."""

from typing import Final

from app.errors import RelayError

ALL_TAKEN: Final = "all streams are taken"
"""Without their number: strangers are told so too."""


def overloaded(what: str, wait_s: float) -> RelayError:
    return RelayError("overloaded", f"{what}; try again", phase="admission", retry_after_s=wait_s)


def too_many_streams(limit: int, *, retry_after_s: float) -> RelayError:
    message = f"you have as many streams as you may ({limit}); try again when one has ended"
    return RelayError("rate_limited", message, phase="admission", retry_after_s=retry_after_s)


def draining() -> RelayError:
    return RelayError("draining", "the relay is shutting down", phase="admission", retry_after_s=1.0)
