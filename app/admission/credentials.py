"""What a request brings to say who asks, and the words for what is not accepted.

Why a credential was refused is told to its bearer in few words and to the operator in one (`Reason`); the credential
itself is told to nobody.
"""

import re
from collections.abc import Sequence
from typing import Final, Literal

from app.errors import RelayError

MAX_CREDENTIAL_CHARACTERS: Final = 8 * 1024
"""Nothing of a longer one is looked at."""

_VISIBLE: Final = re.compile(r"[\x21-\x7e]+", re.ASCII)
_SENT_UNASKED: Final = ("basic", "digest", "negotiate", "ntlm")
"""Schemes that a browser answers by itself, for a proxy before us: they say nothing about our callers."""

Reason = Literal[
    "missing",
    "malformed",
    "unknown_key",
    "expired_key",
    "type",
    "algorithm",
    "issuer",
    "signature",
    "audience",
    "claims",
    "expired",
    "not_yet_valid",
    "revoked",
    "spent",
]

_NOT_ACCEPTED: Final = "this token is not accepted"
_WORDS: Final[dict[Reason, str]] = {
    "missing": "send `Authorization: Bearer …` with an API key or a token",
    "malformed": "the credential cannot be read; send `Authorization: Bearer …` once, with an API key or a token",
    "unknown_key": "this API key is not known",
    "expired_key": "this API key has expired",
    "type": _NOT_ACCEPTED,
    "algorithm": _NOT_ACCEPTED,
    "issuer": _NOT_ACCEPTED,
    "signature": _NOT_ACCEPTED,
    "audience": _NOT_ACCEPTED,
    "claims": _NOT_ACCEPTED,
    "expired": "this token has expired",
    "not_yet_valid": "this token is not valid yet",
    "revoked": "the API key that this token was made with may not make it any more",
    "spent": "this token has been exchanged before, and each is exchanged once",
}


class Refused(RelayError):
    """A credential that is not accepted, or is missing: 401, with the challenge of RFC 6750 §3."""

    def __init__(self, reason: Reason) -> None:
        challenge = "Bearer" if reason == "missing" else 'Bearer error="invalid_token"'
        super().__init__(
            "unauthorized",
            _WORDS[reason],
            param="Authorization",
            phase="admission",
            headers=(("www-authenticate", challenge),),
        )
        self.reason: Final = reason


def bearer(headers: Sequence[str]) -> str | None:
    """The credential of a request's `Authorization` headers; None without one. Raises `Refused`.

    A wrong one is never passed over: its sender would take itself for somebody.
    """
    if not headers:
        return None
    if len(headers) > 1:
        raise Refused("malformed")
    scheme, _, credential = headers[0].partition(" ")
    if scheme.lower() in _SENT_UNASKED:
        return None
    credential = credential.strip(" ")
    if scheme.lower() != "bearer" or not is_sendable(credential):
        raise Refused("malformed")
    return credential


def is_sendable(credential: str) -> bool:
    """Whether it can be a credential at all: visible ASCII, and not too much of it."""
    return len(credential) <= MAX_CREDENTIAL_CHARACTERS and _VISIBLE.fullmatch(credential) is not None
