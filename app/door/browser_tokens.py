"""Tokens that an application makes for its pages: made, read, and exchanged for a session."""

import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple

import msgspec

from app.admission.credentials import Refused
from app.admission.tokens import (
    OUR_ALGORITHM,
    OURSELVES,
    SESSION_TYPE,
    TOKEN_TYPE,
    BrowserToken,
    Limits,
    Opened,
    browser_token,
    may_make,
    opened,
)
from app.door import signatures
from app.door.grants import Admitted, Application, to_bearer
from app.errors import RelayError
from app.settings import Settings

SECRET_BYTES: Final = 32
ID_BYTES: Final = 16

Spend = Callable[[str, float], Awaitable[bool]]
"""Whether the token of this id is exchanged for the first time; it is remembered for so many seconds at least."""


class Signed(NamedTuple):
    """A token of ours, and for how long it is good."""

    text: str
    expires_at: int
    seconds: int


class BrowserTokens:
    """Signs with the secret of the settings, or with one of this process that is gone with it."""

    def __init__(self, settings: Settings, applications: Mapping[str, Application], now: Callable[[], float]) -> None:
        given = settings.token_secret
        self._key: Final = signatures.secret(
            secrets.token_bytes(SECRET_BYTES) if given is None else given.get_secret_value().encode()
        )
        self._session_seconds: Final = max(int(settings.session_seconds), 1)
        self._profiles: Final = frozenset(settings.profiles)
        self._applications: Final = applications
        self._now: Final = now

    def mint(
        self, minter: Application, *, subject: str, seconds: int, profile: str | None, limits: Limits | None
    ) -> Signed:
        """Raises `not_found` and `forbidden` for a profile that is not there, or not the key's."""
        if profile is not None and not may_make(minter.admitted.grant.profiles, profile):
            raise RelayError("forbidden", "this profile is not yours to use", param="profile", phase="admission")
        if profile is not None and profile not in self._profiles:
            message = f"there is no profile `{profile[:64]}`"
            raise RelayError("not_found", message, param="profile", phase="admission")
        token = BrowserToken(
            sub=subject, key=minter.name, jti=secrets.token_hex(ID_BYTES), iat=0, exp=0, profile=profile, limits=limits
        )
        return self._signed(token, TOKEN_TYPE, seconds)

    def bearer(self, token: Opened) -> Admitted:
        """Who has this token. Raises `Refused`."""
        return self._admitted(self._read(token, TOKEN_TYPE))

    def session(self, cookie: str) -> Admitted:
        """Who has this session. Raises `Refused`."""
        return self._admitted(self._read(opened(cookie), SESSION_TYPE))

    async def exchange(self, text: str, spend: Spend) -> Signed:
        """A session for a token. Raises `Refused`, and what `spend` raises."""
        token = self._read(opened(text), TOKEN_TYPE)
        self._admitted(token)
        if not await spend(token.jti, token.exp - self._now()):
            raise Refused("spent")
        return self._signed(token, SESSION_TYPE, self._session_seconds)

    def _signed(self, token: BrowserToken, kind: str, seconds: int) -> Signed:
        made = int(self._now())
        dated = msgspec.structs.replace(token, iat=made, exp=made + seconds)
        return Signed(signatures.sign(msgspec.json.encode(dated), kind, self._key), dated.exp, seconds)

    def _read(self, token: Opened, kind: str) -> BrowserToken:
        if token.head.typ != kind:
            raise Refused("type")
        if token.head.alg != OUR_ALGORITHM:
            raise Refused("algorithm")
        signatures.verify(token, [self._key], signatures.OURS)
        says = browser_token(token.payload, self._now())
        if (says.iss, says.aud) != (OURSELVES, OURSELVES):
            raise Refused("audience")
        return says

    def _admitted(self, token: BrowserToken) -> Admitted:
        """What the key may do now holds, not what it was allowed when the token was made."""
        minter = self._applications.get(token.key)
        if minter is None or not minter.mints or minter.is_over(self._now()):
            raise Refused("revoked")
        if token.profile is not None and token.profile not in self._profiles:
            raise Refused("revoked")
        if not may_make(minter.admitted.grant.profiles, token.profile):
            raise Refused("revoked")
        return to_bearer(minter, token)
