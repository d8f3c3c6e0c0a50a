"""Signatures of JSON Web Tokens, by joserfc. It is imported where there are tokens, since it takes its time."""

import hashlib
import hmac
from collections.abc import Iterable
from typing import Any, Final

from joserfc import jws
from joserfc.errors import JoseError, UnsupportedAlgorithmError
from joserfc.jwk import Key, OctKey
from joserfc.jws import JWSRegistry

from app.admission.credentials import Refused
from app.admission.tokens import OUR_ALGORITHM, OURSELVES, Opened


class Algorithms(JWSRegistry):
    """These and no others, whatever a token's header says; without the library's warning of EdDSA's new name."""

    max_header_length = 4096

    def __init__(self, names: Iterable[str]) -> None:
        self.names: Final = frozenset(names)
        # RFC 7515 §4: parameters that are not understood are ignored, and some issuers have them.
        super().__init__(algorithms=self.names, strict_check_header=False)

    def get_alg(self, name: str) -> Any:  # the model that is meant is no public name of the library
        if name not in self.names:
            raise UnsupportedAlgorithmError(name)
        return self.algorithms[name]


def verify(token: Opened, keys: Iterable[Key], algorithms: Algorithms) -> None:
    """Raises `Refused` unless one of the keys has signed it."""
    for key in keys:
        if _signed(token, key, algorithms):
            return
    raise Refused("signature")


def sign(payload: bytes, kind: str, key: Key) -> str:
    """A token of ours of the given type."""
    header = {"alg": OUR_ALGORITHM, "typ": kind}
    return jws.serialize_compact(header, payload, key, registry=OURS)


def secret(value: bytes) -> Key:
    """A key of ours to sign with, made of a secret of whatever form."""
    return OctKey.import_key(hmac.digest(value, OURSELVES.encode(), hashlib.sha256))


def _signed(token: Opened, key: Key, algorithms: Algorithms) -> bool:
    try:
        jws.deserialize_compact(token.text, key, registry=algorithms)
    except (JoseError, ValueError, TypeError, RecursionError):
        return False
    return True


OURS: Final = Algorithms([OUR_ALGORITHM])
