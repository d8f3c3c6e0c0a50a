"""Why there is no whole answer, as the relay says it or as it is found on this side."""

from typing import Final

import msgspec


class ErrorObject(msgspec.Struct, frozen=True):
    """The error object of the contract. Its codes, and three found on this side: `unreachable` (nothing listens there),
    `connection_lost` (cut, and not to be had again), `not_a_relay` (something else answers there)."""

    code: str
    message: str
    type: str = ""
    param: str | None = None
    phase: str | None = None
    retryable: bool = False
    partial: bool = False
    upstream_status: int | None = None
    request_id: str | None = None


class RelayProblem(Exception):
    """Why there is no whole answer. `status` is the HTTP status, None inside a stream and without a connection.

    `retryable`: the same question may be answered another time, after `retry_after_s` where that is known. `partial`:
    text of the answer had come. `error` is all that the relay said.
    """

    def __init__(self, error: ErrorObject, *, status: int | None = None, retry_after_s: float | None = None) -> None:
        self.error: Final = error
        self.code: Final = error.code
        self.message: Final = error.message
        self.retryable: Final = error.retryable
        self.partial: Final = error.partial
        self.status: Final = status
        self.retry_after_s: Final = retry_after_s
        super().__init__(f"{error.code}: {error.message}")

    def with_text(self) -> "RelayProblem":
        """The same, found after text of the answer had come."""
        error = msgspec.structs.replace(self.error, partial=True)
        return RelayProblem(error, status=self.status, retry_after_s=self.retry_after_s)


def not_a_relay(why: str, *, status: int | None = None, retry_after_s: float | None = None) -> RelayProblem:
    """A gateway's own 502, 503 or 504 is what a relay that restarts looks like from outside: worth another try."""
    message = f"What answers there is no relay: {why}."
    error = ErrorObject("not_a_relay", message, retryable=status in (408, 429, 502, 503, 504))
    return RelayProblem(error, status=status, retry_after_s=retry_after_s)


def connection_lost(message: str) -> RelayProblem:
    return RelayProblem(ErrorObject("connection_lost", message, retryable=True))


def unreachable(url: str, why: Exception) -> RelayProblem:
    reason = str(why) or type(why).__name__
    return RelayProblem(ErrorObject("unreachable", f"No relay at {url}: {reason}", retryable=True))
