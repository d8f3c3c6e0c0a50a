"""What those are told who are not let in."""

from app.errors import RelayError


def overloaded(what: str, queued: int, wait_s: float) -> RelayError:
    waiting = f" and {queued} requests wait" if queued else ""
    return RelayError("overloaded", f"{what}{waiting}; try again", phase="admission", retry_after_s=wait_s)


def too_many_streams(limit: int, *, retry_after_s: float) -> RelayError:
    message = f"you have as many streams as you may ({limit}); try again when one has ended"
    return RelayError("rate_limited", message, phase="admission", retry_after_s=retry_after_s)


def draining() -> RelayError:
    return RelayError("draining", "the relay is shutting down", phase="admission", retry_after_s=1.0)
