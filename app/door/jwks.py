"""The keys of an issuer: out of a file, or as it publishes them."""

import asyncio
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol

import msgspec
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import ECKey, JWKRegistry, Key, OctKey, OKPKey, RSAKey

from app.errors import RelayError

MAX_AGE_SECONDS: Final = 600.0
"""After that the keys are asked for anew: one that was withdrawn is good for so long."""

BETWEEN_FETCHES_SECONDS: Final = 30.0
"""Tokens that name a key which is not there can make us ask this often, and no oftener, however many there are."""

RETRY_SECONDS: Final = 5.0
"""The same while there are no keys at all."""

MAX_KEYS: Final = 100
_PRIVATE: Final = "there is a private key in it; only the public one belongs here"
_PEM: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----(?:(?!-----BEGIN ).)+?-----END \1-----", re.DOTALL)
"""A block ends before the next begins: else each beginning without an end would be looked for to the document's end."""
_UNUSABLE: Final = (
    *(JoseError, SecurityWarning, UnsupportedAlgorithm),
    *(ValueError, TypeError, LookupError, ArithmeticError),
)
"""What the library raises for a key that is of no known kind, wrong, or too short (RFC 7518 §3.2, §3.3)."""

logger = structlog.get_logger("app.door")


class Unreadable(Exception):
    """Keys that cannot be had; the words are for the operator."""


class Document(Protocol):
    """What an issuer publishes."""

    async def fetch(self) -> bytes:
        """Raises `Unreadable`."""
        ...

    async def aclose(self) -> None: ...


class Keys(Protocol):
    """The keys of one issuer."""

    async def named(self, kid: str | None) -> Iterable[Key]:
        """Those that a token which names its key so may be signed by. Raises `overloaded` while there are none."""
        ...

    async def aclose(self) -> None: ...


class KeySet:
    """Keys that tokens are verified by. One without a name of its own, as in PEM, may be meant by any."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys: Final = tuple(keys)

    def __contains__(self, kid: str | None) -> bool:
        return kid is None or any(key.get("kid") in (None, kid) for key in self._keys)

    def named(self, kid: str | None) -> Iterator[Key]:
        return (key for key in self._keys if kid is None or key.get("kid") in (None, kid))


class Fixed:
    """Keys out of a file."""

    def __init__(self, keys: KeySet) -> None:
        self._keys: Final = keys

    async def named(self, kid: str | None) -> Iterable[Key]:
        return self._keys.named(kid)

    async def aclose(self) -> None:
        pass


class Published:
    """Keys at a URL: asked for when a token needs them, one request at a time; kept while none better can be had."""

    def __init__(self, issuer: str, document: Document, clock: Callable[[], float]) -> None:
        self._issuer: Final = issuer
        self._document: Final = document
        self._clock: Final = clock
        self._keys: KeySet | None = None
        self._read_at = self._asked_at = float("-inf")
        self._failed = False
        self._asking: asyncio.Task[None] | None = None

    async def named(self, kid: str | None) -> Iterable[Key]:
        lacking = self._keys is None or kid not in self._keys
        is_old = self._clock() - self._read_at >= MAX_AGE_SECONDS
        asking = self._asked_anew() if lacking or is_old else None
        # An issuer that is away must not hold up those whose keys are here.
        if asking is not None and (lacking or not self._failed):
            await asyncio.wait([asking])
        if self._keys is None:
            message = "the keys that this token is verified by cannot be had at the moment"
            raise RelayError("overloaded", message, phase="admission", retry_after_s=RETRY_SECONDS)
        return self._keys.named(kid)

    async def aclose(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])
        await self._document.aclose()

    def _asked_anew(self) -> asyncio.Task[None] | None:
        """The request that is under way, or a new one; None while it is too early for that."""
        if self._asking is not None:
            return self._asking
        pause_s = RETRY_SECONDS if self._keys is None else BETWEEN_FETCHES_SECONDS
        if self._clock() - self._asked_at < pause_s:
            return None
        self._asked_at = self._clock()
        self._asking = asyncio.create_task(self._ask(), name=f"keys of {self._issuer}")
        return self._asking

    async def _ask(self) -> None:
        try:
            self._keys = KeySet(read(await self._document.fetch()))
            self._read_at = self._clock()
            self._failed = False
        except Unreadable as error:
            self._failed = True
            logger.warning("an issuer's keys cannot be had", issuer=self._issuer, why=str(error), kept=bool(self._keys))
        finally:
            self._asking = None


def from_file(file: Path, *, secret_bytes: int | None) -> KeySet:
    """The keys in a file; see `read`. Raises `Unreadable`."""
    try:
        return KeySet(read(file.read_bytes(), secret_bytes=secret_bytes))
    except OSError as error:
        raise Unreadable(f"{file} cannot be read ({type(error).__name__})") from None
    except Unreadable as error:
        raise Unreadable(f"{file}: {error}") from None


def read(document: bytes, *, secret_bytes: int | None = None) -> Sequence[Key]:
    """Keys that verify, out of a JSON Web Key Set or PEM: the public halves of pairs or, with `secret_bytes`, shared
    secrets of at least so many bytes.

    Those of other kinds are passed over (RFC 7517 §5). Raises `Unreadable` where nothing is left, and for a private
    key: who can read it can sign.
    """
    candidates = list(_in_pem(document) if b"-----BEGIN " in document else _in_json(document))
    if secret_bytes is not None:
        secrets = [key for key in candidates if isinstance(key, OctKey) and len(key.raw_value) >= secret_bytes]
        return secrets or _nothing(f"no shared secret (oct) of at least {secret_bytes} bytes")
    pairs = [key for key in candidates if not isinstance(key, OctKey)]
    if any(key.is_private for key in pairs):
        raise Unreadable(_PRIVATE)
    return pairs or _nothing("no public key (RSA, EC, OKP) for signatures")


def _nothing(wanted: str) -> NoReturn:
    raise Unreadable(f"there is {wanted} in it")


def _in_json(document: bytes) -> Iterator[Key]:
    try:
        found = msgspec.json.decode(document, type=dict[str, Any]).get("keys")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise Unreadable("it is neither a JSON Web Key Set nor PEM")
    for entry in found[:MAX_KEYS]:
        if isinstance(entry, dict) and (key := _imported(JWKRegistry.import_key, entry)) is not None:
            yield key


def _in_pem(document: bytes) -> Iterator[Key]:
    for block in list(_PEM.finditer(document))[:MAX_KEYS]:
        if b"PRIVATE" in block[1]:
            raise Unreadable(_PRIVATE)
        kinds: tuple[Callable[[Any], Key], ...] = (RSAKey.import_key, ECKey.import_key, OKPKey.import_key)
        yield from filter(None, (_imported(kind, block[0]) for kind in kinds))


def _imported(kind: Callable[[Any], Key], value: object) -> Key | None:
    """A key; None where it cannot be used."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SecurityWarning)  # of too short a key
            key = kind(value)
            key.check_use("sig")
            return key
    except _UNUSABLE:
        return None
