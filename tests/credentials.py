"""Credentials, right and wrong: API keys, and issuers with keys of their own that sign what they are told to."""

import base64
import json
from pathlib import Path
from typing import Any, Final

from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from app.admission.keys import digest_of, key_from
from app.door.doorkeeper import Doorkeeper
from app.telemetry import logs
from tests.relay import settings_for

NOW: Final = 1_800_000_000.0
HOUR: Final = 3600
ISSUER: Final = "https://issuer.example.com/"
AUDIENCE: Final = "relay"
KEYS: Final = [key_from(bytes([number]) * 32) for number in range(4)]
"""API keys of ours."""

RSA: Final = RSAKey.generate_key(2048, {"kid": "rsa"})
EC: Final = ECKey.generate_key("P-256", {"kid": "ec"})
ED: Final = OKPKey.generate_key("Ed25519", {"kid": "ed"})
SECRET: Final = OctKey.import_key(b"a shared secret that is long enough for SHA-512, as 64 bytes are", {"kid": "oct"})
SIGNERS: Final[dict[str, Key]] = {"RS256": RSA, "PS384": RSA, "ES256": EC, "EdDSA": ED, "HS256": SECRET}


class Clock:
    """Says the time that it is told to say."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def hashes(*keys: str) -> dict[str, Any]:
    """The beginning of a table of keys."""
    return {"sha256": [digest_of(key).hex() for key in keys]}


def bearer(credential: str) -> dict[str, str]:
    return {"authorization": f"Bearer {credential}"}


def door(*, now: Clock | None = None, clock: Clock | None = None, **settings: Any) -> Doorkeeper:
    """A doorkeeper who knows what these settings name."""
    now = now or Clock()
    known = settings_for("http://127.0.0.1:9/v1", **settings)
    logs.configure(known)  # a test before may have had its log on a screen that is gone
    return Doorkeeper(known, now=now, clock=clock or now)


def claims(now: float = NOW, **changed: Any) -> dict[str, Any]:
    """Those of a good token; None takes one away."""
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "user-1", "exp": int(now) + HOUR, "iat": int(now)}
    return {name: value for name, value in (good | changed).items() if value is not None}


def token(key: Key = RSA, alg: str = "RS256", *, header: dict[str, Any] | None = None, **changed: Any) -> str:
    """A JWT that is good but for what is changed."""
    named = {"alg": alg, "typ": "JWT"} | ({"kid": key.kid} if key.kid else {}) | (header or {})
    return signed({name: value for name, value in named.items() if value is not None}, claims(**changed), key, alg)


def signed(header: object, payload: object, key: Key = RSA, alg: str = "RS256") -> str:
    """Any header and any payload, signed in order, whatever the header says."""
    text = handmade(header, payload).rpartition(".")[0]
    return f"{text}.{encoded(JWSRegistry.algorithms[alg].sign(text.encode(), key))}"


def handmade(header: object, payload: object, signature: bytes = b"") -> str:
    """Three parts, of which nothing need be right. Bytes are taken as they are."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    return ".".join(map(encoded, (*parts, signature)))


def encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def key_set(*keys: Key, private: bool = False) -> bytes:
    """A JSON Web Key Set, of public keys unless they are secrets."""
    return json.dumps({"keys": [key.as_dict(private=private and key.is_private) for key in keys]}).encode()


def issuer(folder: Path, content: bytes | None = None, **table: Any) -> dict[str, Any]:
    """A table of an issuer whose keys are in a file."""
    file = folder / "keys"
    file.write_bytes(key_set(RSA, EC, ED) if content is None else content)
    return {"issuer": ISSUER, "audience": AUDIENCE, "jwks_file": str(file), **table}
