"""Tokens of those whom we trust: which issuer a token says it is of, and whether that one bears it out."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from app.admission.credentials import Refused
from app.admission.tokens import ISSUERS_TYPES, Addressed, Opened, addressed, subject_of
from app.door.fetching import Fetcher
from app.door.grants import Admitted, Terms
from app.door.jwks import Fixed, Keys, Published, Unreadable, from_file
from app.door.signatures import Algorithms, verify
from app.settings import SettingsError
from app.settings.tables import SECRET_ALGORITHMS, IssuerTable

ProxyOf = Callable[[str], str | None]
"""The proxy by which a URL is reached; None for none."""


class Issuer(msgspec.Struct, frozen=True):
    """A table of issuers, with its keys."""

    table: IssuerTable
    terms: Terms
    algorithms: Algorithms
    keys: Keys


class Issuers:
    """All that are trusted. Raises `SettingsError` for files of keys that cannot be used."""

    def __init__(self, tables: Mapping[str, IssuerTable], proxy_of: ProxyOf, clock: Callable[[], float]) -> None:
        problems: list[str] = []
        self._issuers: Final[list[Issuer]] = []
        for name, table in tables.items():
            try:
                self._issuers.append(_issuer(name, table, proxy_of, clock))
            except Unreadable as error:
                problems.append(f"issuers.{name}.jwks_file: {error}")
        if problems:
            raise SettingsError(problems)

    async def admitted(self, token: Opened, now: float) -> Admitted:
        """Whom a token is about. Raises `Refused`, and `overloaded` while its issuer's keys cannot be had."""
        if token.head.typ is not None and token.head.typ.lower() not in ISSUERS_TYPES:
            raise Refused("type")
        says = addressed(token.payload)
        issuer = self._meant(says)
        if token.head.alg not in issuer.algorithms.names:
            raise Refused("algorithm")  # before its keys are asked for
        verify(token, await issuer.keys.named(token.head.kid), issuer.algorithms)
        if issuer.table.audience not in says.audience:
            raise Refused("audience")
        return issuer.terms.to_subject(subject_of(token.payload, now, issuer.table.leeway_seconds))

    async def aclose(self) -> None:
        for issuer in self._issuers:
            await issuer.keys.aclose()

    def _meant(self, says: Addressed) -> Issuer:
        """One issuer may be in several tables, with an audience in each."""
        candidates = [issuer for issuer in self._issuers if issuer.table.issuer == says.iss]
        if not candidates:
            raise Refused("issuer")
        return next((issuer for issuer in candidates if issuer.table.audience in says.audience), candidates[0])


def _issuer(name: str, table: IssuerTable, proxy_of: ProxyOf, clock: Callable[[], float]) -> Issuer:
    keys: Keys
    match table.jwks_file, table.jwks_url:
        case Path() as file, _:
            keys = Fixed(from_file(file, secret_bytes=_secret_bytes(table)))
        case _, str() as url:
            keys = Published(name, Fetcher(url, proxy_of(url)), clock)
        case _:
            raise AssertionError(name)  # the settings have one of them
    return Issuer(table, Terms.of(f"jwt:{name}", table), Algorithms(table.algorithms), keys)


def _secret_bytes(table: IssuerTable) -> int | None:
    """How long a shared secret is at least: as its longest hash (RFC 7518 §3.2). None for key pairs."""
    sizes = [int(name.removeprefix("HS")) // 8 for name in table.algorithms if name in SECRET_ALGORITHMS]
    return max(sizes, default=None)
