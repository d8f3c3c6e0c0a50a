"""Signatures of Standard Webhooks 1.0.0: HMAC-SHA256 over `id.timestamp.body`."""

import base64
import binascii
import hashlib
import hmac
from typing import Final

from app.settings import SettingsError

PREFIX: Final = "whsec_"
"""Says that base64 of the key follows (§ Signature scheme). Any other secret is the key itself."""


class Signer:
    """Signs with one secret. Raises SettingsError for one that is no key."""

    def __init__(self, secret: str) -> None:
        self._key = _key(secret)

    def headers(self, id: str, body: bytes, *, now: float) -> dict[str, str]:
        """`now`: seconds since the epoch, of this attempt; `id` is the same in all attempts, and holds no full stop."""
        timestamp = str(int(now))
        signed = b".".join((id.encode(), timestamp.encode(), body))
        signature = base64.b64encode(hmac.digest(self._key, signed, hashlib.sha256)).decode()
        return {"webhook-id": id, "webhook-timestamp": timestamp, "webhook-signature": f"v1,{signature}"}


def _key(secret: str) -> bytes:
    if not secret.startswith(PREFIX):
        return secret.encode()
    encoded = secret.removeprefix(PREFIX).rstrip("=")
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except binascii.Error:
        key = b""
    if not key:
        raise SettingsError([f"webhook: what follows `{PREFIX}` in its secret must be base64"])
    return key
