"""Knows who may come in: by an API key, by a token of an issuer, by a browser token, by its cookie, or as a stranger.

A credential that is wrong is refused and never taken for none. Signatures are checked anew with each request: that
costs 30 to 170 µs, which is little beside a stream, and nothing that was withdrawn lives on in a cache.

joserfc is imported where there are tokens: a relay without callers need not wait for it.
"""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from app.admission.callers import Grant
from app.admission.credentials import Refused, bearer
from app.admission.keys import KeyRing, Known
from app.admission.spent import Spent
from app.admission.tokens import TOKEN_TYPE, Limits, opened
from app.door.grants import Admitted, Application, Terms, application
from app.door.refusals import Refusals
from app.errors import RelayError
from app.settings import Settings
from app.settings.tables import MAX_TOKEN_SECONDS

if TYPE_CHECKING:
    from app.door.browser_tokens import BrowserTokens, Signed, Spend
    from app.door.issuers import Issuers, ProxyOf


class Doorkeeper:
    """All credentials that are known. Raises `SettingsError` for a file of keys that cannot be used.

    `proxy_of` says how a URL is reached; `now` is the time of day in seconds since the epoch, `clock` one that never
    goes back. `spend` may be put in the place of this process's own memory, where several processes share one.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        proxy_of: "ProxyOf" = lambda _: None,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings: Final = settings
        self._now: Final = now
        self._clock: Final = clock
        self._applications: Final = {name: application(name, table) for name, table in settings.keys.items()}
        self._ring: Final = KeyRing(
            Known(name, bytes.fromhex(digest)) for name, table in settings.keys.items() for digest in table.sha256
        )
        self._issuers: Final = _issuers(settings, proxy_of, clock)
        self._browser_tokens: Final = _browser_tokens(settings, self._applications, now)
        self._refusals: Final = Refusals(clock)
        self._strangers: Final = Terms.of("anonymous", settings.anonymous)
        self._spent: Final = Spent(MAX_TOKEN_SECONDS)
        self.spend: Spend = self._spend_here

    @property
    def knows_callers(self) -> bool:
        """Whether there are credentials at all: without any, what clients send as one has no meaning."""
        return bool(self._settings.keys or self._settings.issuers)

    @property
    def admits_strangers(self) -> bool:
        return self._settings.allow_anonymous or not self.knows_callers

    async def admit(
        self, authorization: Sequence[str], session: str | None, address: str | None = None
    ) -> Admitted | None:
        """Who asks, by its `Authorization` headers or else by its session's cookie; None is a stranger.

        Raises `unauthorized`, and `overloaded` while the keys of a token's issuer cannot be had.
        """
        if not self.knows_callers:
            return None
        with self._refusals.told(address):
            if (credential := bearer(authorization)) is not None:
                return await self._bearer(credential)
        if session is not None and (admitted := self._by_session(session, address)) is not None:
            return admitted
        if not self.admits_strangers:
            raise Refused("missing")
        return None

    def stranger(self, address: str | None) -> Grant:
        """What a caller without a credential may ask for."""
        return self._strangers.to_stranger(address)

    def minter(self, authorization: Sequence[str], address: str | None = None) -> Application:
        """Whose API key makes a token. Raises `unauthorized`, and `forbidden` where it makes none."""
        with self._refusals.told(address):
            credential = bearer(authorization)
            if credential is None:
                raise Refused("missing")
            found = self._application(credential)
            if found is None and not _is_token(credential):
                raise Refused("unknown_key")
        if found is None or not found.mints:
            message = "tokens are made with an API key whose table in relay.toml says `mint = true`"
            raise RelayError("forbidden", message, param="Authorization", phase="admission")
        return found

    def mint(
        self, minter: Application, *, subject: str, seconds: int, profile: str | None, limits: Limits | None
    ) -> "Signed":
        """A browser token; raises as `BrowserTokens.mint` does."""
        assert self._browser_tokens is not None  # there is a minter
        return self._browser_tokens.mint(minter, subject=subject, seconds=seconds, profile=profile, limits=limits)

    async def exchange(self, token: str, address: str | None = None) -> "Signed":
        """The value of a session's cookie for a browser token, once. Raises `unauthorized`."""
        with self._refusals.told(address):
            if self._browser_tokens is None:
                raise Refused("revoked")
            return await self._browser_tokens.exchange(token, self.spend)

    async def aclose(self) -> None:
        if self._issuers is not None:
            await self._issuers.aclose()

    async def _bearer(self, credential: str) -> Admitted:
        if (found := self._application(credential)) is not None:
            return found.admitted
        if not _is_token(credential):
            raise Refused("unknown_key")
        token = opened(credential)
        if token.head.typ == TOKEN_TYPE:
            if self._browser_tokens is None:
                raise Refused("revoked")
            return self._browser_tokens.bearer(token)
        if self._issuers is None:
            raise Refused("issuer")
        return await self._issuers.admitted(token, self._now())

    def _application(self, key: str) -> Application | None:
        name = self._ring.find(key)
        if name is None:
            return None
        found = self._applications[name]
        if found.is_over(self._now()):
            raise Refused("expired_key")
        return found

    def _by_session(self, cookie: str, address: str | None) -> Admitted | None:
        """None is a session that is over, where strangers are admitted: its page cannot take the cookie back."""
        if self._browser_tokens is None:
            return None
        try:
            with self._refusals.told(address):
                return self._browser_tokens.session(cookie)
        except Refused:
            if self.admits_strangers:
                return None
            raise

    async def _spend_here(self, token_id: str, _seconds: float) -> bool:
        return self._spent.spend(token_id, self._clock())


def _is_token(credential: str) -> bool:
    return credential.count(".") == 2


def _issuers(settings: Settings, proxy_of: "ProxyOf", clock: Callable[[], float]) -> "Issuers | None":
    if not settings.issuers:
        return None
    from app.door.issuers import Issuers

    return Issuers(settings.issuers, proxy_of, clock)


def _browser_tokens(
    settings: Settings, applications: dict[str, Application], now: Callable[[], float]
) -> "BrowserTokens | None":
    if not any(found.mints for found in applications.values()):
        return None
    from app.door.browser_tokens import BrowserTokens

    return BrowserTokens(settings, applications, now)
