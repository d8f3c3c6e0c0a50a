"""JSON Web Tokens (RFC 7519) before and after their signature is verified; which it is not here.

Two kinds are kept apart by their header's `typ` (RFC 8725 §3.11): tokens of somebody whom we trust, and our own, of
which one is for a page's scripts and the other, that of a session, for its cookie.
"""

import base64
import re
from collections.abc import Collection, Iterable
from typing import Final, TypeVar

import msgspec

from app.admission.credentials import MAX_CREDENTIAL_CHARACTERS, Reason, Refused

TOKEN_TYPE: Final = "relay-token+jwt"
SESSION_TYPE: Final = "relay-session+jwt"
ISSUERS_TYPES: Final = (None, "jwt", "at+jwt", "application/jwt", "application/at+jwt")
"""A logout token or a proof of possession is signed by the same issuer, and lets nobody in."""

OURSELVES: Final = "sse-relay"
"""Issuer and audience of our own tokens."""

OUR_ALGORITHM: Final = "HS256"
OUR_LEEWAY_SECONDS: Final = 5
"""How far the clocks of two processes of ours may be apart."""

MAX_SUBJECT_CHARACTERS: Final = 255
_SEGMENT: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
Kind = TypeVar("Kind")


class Head(msgspec.Struct, frozen=True):
    """Of a token's header what is looked at. Keys that it brings along (`jwk`, `jku`, `x5c`) are not.

    What is critical and not understood makes a token invalid (RFC 7515 §4.1.11), and nothing is understood here.
    """

    alg: str
    kid: str | None = None
    typ: str | None = None
    crit: None = None


class Addressed(msgspec.Struct, frozen=True):
    """Whose token it says it is: by this the issuer is chosen whose keys have to bear it out."""

    iss: str
    aud: str | list[str] = []

    @property
    def audience(self) -> list[str]:
        return [self.aud] if isinstance(self.aud, str) else self.aud


class Opened(msgspec.Struct, frozen=True):
    """A token taken apart. Nothing in it is true before its signature is verified."""

    text: str
    head: Head
    payload: bytes


class Claims(msgspec.Struct, frozen=True):
    """What an issuer says of a caller. Times in seconds since the epoch."""

    sub: str
    exp: int | float
    nbf: int | float | None = None
    iat: int | float | None = None


class Limits(msgspec.Struct, frozen=True, omit_defaults=True):
    """How much the subject of a browser token may use, within what its key may; None is no limit."""

    max_streams: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None


class BrowserToken(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The claims of a token of ours. `key` is the table of the key that it was made with."""

    iss: str = OURSELVES
    aud: str = OURSELVES
    sub: str
    key: str
    jti: str
    iat: int
    exp: int
    profile: str | None = None
    limits: Limits | None = None


def opened(text: str) -> Opened:
    """A token's parts. Raises `Refused` for what is none."""
    parts = text.split(".")
    if len(text) > MAX_CREDENTIAL_CHARACTERS or len(parts) != 3 or not all(map(_SEGMENT.fullmatch, parts)):
        raise Refused("malformed")
    try:
        head, payload = (base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in parts[:2])
    except ValueError:
        raise Refused("malformed") from None
    return Opened(text, _read(head, Head, "malformed"), payload)


def addressed(payload: bytes) -> Addressed:
    return _read(payload, Addressed, "claims")


def subject_of(payload: bytes, now: float, leeway_s: float) -> str:
    """Whom the verified token of an issuer is about. Raises `Refused` where it is not, or not now, valid."""
    claims = _read(payload, Claims, "claims")
    _check_times(claims.exp, (claims.nbf, claims.iat), now, leeway_s)
    if not is_subject(claims.sub):
        raise Refused("claims")
    return claims.sub


def browser_token(payload: bytes, now: float) -> BrowserToken:
    """What a verified token of ours says. Raises `Refused` where it is not valid now."""
    token = _read(payload, BrowserToken, "claims")
    _check_times(token.exp, (token.iat,), now, OUR_LEEWAY_SECONDS)
    return token


def is_subject(text: str) -> bool:
    """What can be printed: neither a control character, nor half a surrogate pair, nor what turns a line round."""
    return 0 < len(text) <= MAX_SUBJECT_CHARACTERS and text.isprintable()


def may_make(profiles: Collection[str], wanted: str | None) -> bool:
    """Whether a key with these profiles, none meaning all, may make a token for one."""
    return wanted is None or not profiles or wanted in profiles


def _check_times(ends: float, starts: Iterable[float | None], now: float, leeway_s: float) -> None:
    """RFC 7519 §4.1.4 to 4.1.6. What was issued in the future is of a clock that is wrong, or of a forger."""
    if ends <= now - leeway_s:
        raise Refused("expired")
    if any(moment is not None and moment > now + leeway_s for moment in starts):
        raise Refused("not_yet_valid")


def _read(content: bytes, kind: type[Kind], otherwise: Reason) -> Kind:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refused(otherwise) from None
