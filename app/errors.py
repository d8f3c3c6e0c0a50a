"""Every error raised on purpose: its code, HTTP status, phase, whether a retry can help, and its words.

The same `Problem` is the body of an HTTP error, the `error` event of a stream and the entry in the log, so a
client learns one object. Nothing else in the project invents a status or a code.
"""

from typing import Final, Literal, NamedTuple

import msgspec

Phase = Literal["admission", "connect", "first_token", "stream", "relay"]


class Code(NamedTuple):
    """What a code means unless the one who raises it knows better."""

    status: int
    retryable: bool
    type: str


CODES: Final = {
    "invalid_request": Code(422, False, "invalid_request_error"),
    "unauthorized": Code(401, False, "authentication_error"),
    "forbidden": Code(403, False, "permission_error"),
    "not_found": Code(404, False, "not_found_error"),
    "idempotency_conflict": Code(409, False, "invalid_request_error"),
    "cancelled": Code(409, False, "cancelled_error"),
    "not_resumable": Code(410, False, "not_found_error"),
    "rate_limited": Code(429, True, "rate_limit_error"),
    "overloaded": Code(503, True, "overloaded_error"),
    "draining": Code(503, True, "overloaded_error"),
    "upstream_rejected": Code(400, False, "invalid_request_error"),
    "upstream_error": Code(502, True, "upstream_error"),
    "upstream_unavailable": Code(502, True, "upstream_error"),
    "upstream_timeout": Code(504, True, "timeout_error"),
    "upstream_protocol": Code(502, True, "upstream_error"),
    "upstream_truncated": Code(502, True, "upstream_error"),
    "relay_lost": Code(500, True, "relay_error"),
    "internal": Code(500, False, "relay_error"),
}


class Problem(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What a client is told. `status`, `retry_after_s` and `headers` are for HTTP alone, not in the JSON object."""

    code: str
    message: str
    type: str
    param: str | None = None
    phase: Phase | None = None
    retryable: bool
    partial: bool = False
    upstream_status: int | None = None
    request_id: str | None = None
    status: int
    retry_after_s: float | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def as_json(self) -> dict[str, object]:
        """The error object of the contract, the same over HTTP and inside a stream."""
        return {
            "code": self.code,
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "phase": self.phase,
            "retryable": self.retryable,
            "partial": self.partial,
            "upstream_status": self.upstream_status,
            "request_id": self.request_id,
        }


class RelayError(Exception):
    """A failure with its answer. Raised where it is noticed, translated nowhere else."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int | None = None,
        retryable: bool | None = None,
        phase: Phase | None = None,
        param: str | None = None,
        upstream_status: int | None = None,
        retry_after_s: float | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        meaning = CODES[code]
        self.problem: Final = Problem(
            code=code,
            message=message,
            type=meaning.type,
            param=param,
            phase=phase,
            retryable=meaning.retryable if retryable is None else retryable,
            upstream_status=upstream_status,
            status=meaning.status if status is None else status,
            retry_after_s=retry_after_s,
            headers=headers,
        )
        super().__init__(f"{code}: {message}")


def invalid_request(message: str, *, param: str | None = None, status: int = 422) -> RelayError:
    """The request is ours to refuse; `param` names the field or header at fault."""
    return RelayError("invalid_request", message, param=param, status=status, phase="admission")
