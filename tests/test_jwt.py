"""Tokens of issuers whom we trust: those that are good, and all the ways in which one can be forged."""

import json
import warnings
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, Key, OctKey, RSAKey

from app.admission.callers import Caller, Grant, Quota
from app.admission.credentials import MAX_CREDENTIAL_CHARACTERS, Refused
from app.door.doorkeeper import Doorkeeper
from app.settings import SettingsError
from tests.credentials import (
    AUDIENCE,
    EC,
    ED,
    ISSUER,
    NOW,
    RSA,
    SECRET,
    SIGNERS,
    claims,
    door,
    handmade,
    issuer,
    key_set,
    signed,
    token,
)
from tests.tls import trusted_by_itself

OTHER: Final = RSAKey.generate_key(2048, {"kid": "rsa"})
"""Not of the issuer, though it has the name of one that is."""

with warnings.catch_warnings():
    warnings.simplefilter("ignore", SecurityWarning)
    WEAK_RSA: Final = RSAKey.generate_key(1024, {"kid": "weak"})

BOUNDED: Final = settings(
    max_examples=100, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def keeper(tmp_path_factory: pytest.TempPathFactory) -> Doorkeeper:
    """Knows one issuer by its RSA, EC and Ed25519 keys."""
    return door(issuers={"idp": issuer(tmp_path_factory.mktemp("issuer"))})


async def reason(keeper: Doorkeeper, credential: str) -> str | None:
    """Why it was refused; None where it was not."""
    try:
        admitted = await keeper.admit([f"Bearer {credential}"], None)
    except Refused as refused:
        return refused.reason
    assert admitted is not None
    return None


@pytest.mark.parametrize("alg", SIGNERS)
async def test_a_token_is_its_subjects(tmp_path: Path, alg: str) -> None:
    content = key_set(SIGNERS[alg])
    keeper = door(issuers={"idp": issuer(tmp_path, content, algorithms=[alg], requests_per_minute=5)})
    admitted = await keeper.admit([f"Bearer {token(SIGNERS[alg], alg, sub='user-7')}"], None)
    assert admitted is not None
    assert admitted.caller == Caller("jwt:idp", "user-7")
    assert admitted.grant == Grant(name="jwt:idp", quotas=(Quota("jwt:idp/user-7", requests_per_minute=5),))


GOOD: Final[dict[str, str]] = {
    "several audiences": token(aud=["other", AUDIENCE]),
    "no iat": token(iat=None),
    "valid from now on": token(nbf=int(NOW)),
    "a clock that goes before": token(iat=int(NOW) + 29, nbf=int(NOW) + 29),
    "a clock that goes after": token(exp=int(NOW) - 29),
    "fractions of seconds": token(exp=NOW + 0.5),
    "an access token": token(header={"typ": "at+jwt"}),
    "no type": token(header={"typ": None}),
    "no kid": token(header={"kid": None}),
    "unknown claims and parameters": token(header={"cat": "x", "x5t": "y"}, scope="a b", roles=[1, {"a": None}]),
    "keys of its own beside": token(header={"jwk": EC.as_dict(private=False), "jku": "https://evil.example/"}),
    "a subject of any script": token(sub="Ünïcödé 用户"),
    "the longest subject": token(sub="x" * 255),
}


@pytest.mark.parametrize("name", GOOD)
async def test_a_good_token_is_accepted(keeper: Doorkeeper, name: str) -> None:
    assert await reason(keeper, GOOD[name]) is None


PUBLIC_PEM: Final = RSA.as_pem(private=False)


def confused(secret: bytes) -> str:
    """Signed with what is public, as if it were a secret."""
    return token(OctKey(secret, secret, {"kid": "rsa"}), "HS256")


def cut(text: str) -> str:
    return text[: text.rindex(".") + 1]


BAD: Final[dict[str, tuple[str, str]]] = {
    "expired": (token(exp=int(NOW) - 30), "expired"),
    "expired long ago": (token(exp=-(10**30)), "expired"),
    "not yet valid": (token(nbf=int(NOW) + 31), "not_yet_valid"),
    "issued in the future": (token(iat=int(NOW) + 31), "not_yet_valid"),
    "for somebody else": (token(aud="other"), "audience"),
    "for part of us": (token(aud=AUDIENCE[:-1]), "audience"),
    "for nobody": (token(aud=None), "audience"),
    "for no list": (token(aud={"relay": 1}), "claims"),
    "of another issuer": (token(iss="https://evil.example/"), "issuer"),
    "of an issuer in other letters": (token(iss=ISSUER.upper()), "issuer"),
    "of no issuer": (token(iss=None), "claims"),
    "without an end": (token(exp=None), "claims"),
    "with an end in words": (token(exp="2099-01-01"), "claims"),
    "with a true end": (token(exp=True), "claims"),
    "without a subject": (token(sub=None), "claims"),
    "an empty subject": (token(sub=""), "claims"),
    "a subject that is a number": (token(sub=7), "claims"),
    "too long a subject": (token(sub="x" * 256), "claims"),
    "a subject of two lines": (token(sub="a\nlevel=error"), "claims"),
    "a subject that turns the line round": (token(sub="a\u202eb"), "claims"),
    "half a character": (token(sub="\ud800"), "claims"),
    "a logout token": (token(header={"typ": "logout+jwt"}), "type"),
    "a proof": (token(header={"typ": "dpop+jwt"}), "type"),
    "a session of ours": (token(header={"typ": "relay-session+jwt"}), "type"),
    "of a stranger's key": (token(OTHER), "signature"),
    "of a stranger's key that it brings along": (
        token(OTHER, header={"jwk": OTHER.as_dict(private=False), "kid": None}),
        "signature",
    ),
    "a kid that is not there": (token(header={"kid": "other"}), "signature"),
    "a kid of another kind of key": (token(header={"kid": "ec"}), "signature"),
    "a kid that is a path": (token(header={"kid": "../../../dev/null"}), "signature"),
    "a kid that is a number": (token(header={"kid": 1}), "malformed"),
    "unsigned": (handmade({"alg": "none", "typ": "JWT"}, claims()), "malformed"),
    "unsigned, with something there": (handmade({"alg": "none"}, claims(), b"x"), "algorithm"),
    "unsigned, in other letters": (handmade({"alg": "nOnE"}, claims(), b"x"), "algorithm"),
    "signed by the name of no algorithm": (handmade({"alg": ""}, claims(), b"x"), "algorithm"),
    "the public key as a secret, in PEM": (confused(PUBLIC_PEM), "algorithm"),
    "the public key as a secret, as JSON": (confused(key_set(RSA)), "algorithm"),
    "another algorithm of the same key": (token(RSA, "PS384"), "algorithm"),
    "a signature of another token": (cut(token()) + token(sub="x").rpartition(".")[2], "signature"),
    "no signature": (cut(token()), "malformed"),
    "a signature that is too short": (cut(token(EC, "ES256")) + "AAAA", "signature"),
    "a signature of nothing": (cut(token(EC, "ES256")) + "A" * 86, "signature"),
    "something critical": (token(header={"crit": ["exp"], "exp": 1}), "malformed"),
    "critical nonsense": (handmade({"alg": "RS256", "crit": 5}, claims(), b"x"), "malformed"),
    "no header": (handmade(b"", claims(), b"x"), "malformed"),
    "a header that is no object": (handmade(["alg", "RS256"], claims(), b"x"), "malformed"),
    "a header that is no JSON": (handmade(b"{'alg'}", claims(), b"x"), "malformed"),
    "a header of no characters": (handmade(b"\xff\xfe", claims(), b"x"), "malformed"),
    "a deep header": (handmade(b'{"alg":"RS256","x":' + b"[" * 4000, claims(), b"x"), "malformed"),
    "claims that are no object": (handmade({"alg": "RS256"}, [1], b"x"), "claims"),
    "claims that are no JSON": (handmade({"alg": "RS256"}, b"nope", b"x"), "claims"),
    "deep claims": (handmade({"alg": "RS256"}, b'{"iss":' + b"[" * 4000, b"x"), "claims"),
    "padding": (token() + "==", "malformed"),
    "another alphabet": (token().replace("_", "/").replace("-", "+") + "+", "malformed"),
    "two parts": ("a.b", "unknown_key"),
    "encrypted": ("a.b.c.d.e", "unknown_key"),
    "nothing in it": ("..", "malformed"),
    "an endless one": (token(name="x" * MAX_CREDENTIAL_CHARACTERS), "malformed"),
    "long claims with a good signature": (token(header={"x": "y" * 5000}), "signature"),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_token_is_refused(keeper: Doorkeeper, name: str) -> None:
    credential, why = BAD[name]
    assert await reason(keeper, credential) == why


@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
@pytest.mark.parametrize("secret", [PUBLIC_PEM, PUBLIC_PEM.strip(), key_set(RSA)], ids=["PEM", "stripped", "JWKS"])
async def test_a_public_key_is_no_secret_whatever_is_allowed(tmp_path: Path, secret: bytes, alg: str) -> None:
    """Also where an operator means shared secrets, and there is a public key in the file beside one."""
    content = json.dumps({"keys": [RSA.as_dict(private=False), SECRET.as_dict()]}).encode()
    keeper = door(issuers={"idp": issuer(tmp_path, content, algorithms=["HS256", "HS384", "HS512"])})
    for kid in ("rsa", "oct", None):
        forged = token(OctKey(secret, secret, {"kid": "rsa"}), alg, header={"kid": kid})
        assert await reason(keeper, forged) == "signature"
    assert await reason(keeper, token(SECRET, alg)) is None


async def test_a_secret_that_was_published_with_public_keys_signs_nothing(tmp_path: Path) -> None:
    keeper = door(issuers={"idp": issuer(tmp_path, key_set(RSA, SECRET), algorithms=["RS256"])})
    assert await reason(keeper, token(SECRET, "HS256")) == "algorithm"
    assert await reason(keeper, token(SECRET, "HS256", header={"alg": "RS256"})) == "signature"


async def test_an_issuer_in_two_tables_is_told_apart_by_audience(tmp_path: Path) -> None:
    tables = {name: issuer(tmp_path, audience=name) for name in ("web", "batch")}
    keeper = door(issuers=tables)
    for name in tables:
        admitted = await keeper.admit([f"Bearer {token(aud=name)}"], None)
        assert admitted is not None
        assert admitted.caller == Caller(f"jwt:{name}", "user-1")
    assert await reason(keeper, token(aud="third")) == "audience"


async def test_another_issuers_key_does_not_sign_for_this_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    tables = {
        "a": issuer(tmp_path / "a", key_set(RSA)),
        "b": issuer(tmp_path / "b", key_set(OTHER), issuer="https://b.example/"),
    }
    keeper = door(issuers=tables)
    assert await reason(keeper, token(RSA)) is None
    assert await reason(keeper, token(OTHER, iss="https://b.example/")) is None
    assert await reason(keeper, token(OTHER)) == "signature"
    assert await reason(keeper, token(RSA, iss="https://b.example/")) == "signature"


@pytest.mark.parametrize(("alg", "key"), [("RS256", RSA), ("ES256", EC), ("EdDSA", ED)])
async def test_a_key_in_pem_is_meant_by_any_name(tmp_path: Path, alg: str, key: Key) -> None:
    assert not isinstance(key, OctKey)
    keeper = door(issuers={"idp": issuer(tmp_path, b"# ours\n" + key.as_pem(private=False))})
    assert await reason(keeper, token(key, alg, header={"kid": "whatever"})) is None
    assert await reason(keeper, token(OTHER)) == "signature"


async def test_several_keys_in_pem_are_all_good(tmp_path: Path) -> None:
    keeper = door(issuers={"idp": issuer(tmp_path, b"".join(key.as_pem(private=False) for key in (EC, OTHER, RSA)))})
    for key, alg in ((RSA, "RS256"), (OTHER, "RS256"), (EC, "ES256")):
        assert await reason(keeper, token(key, alg)) is None


async def test_a_key_in_a_certificate_is_good(tmp_path: Path) -> None:
    certificate, _ = trusted_by_itself(tmp_path)
    key = ECKey.import_key((tmp_path / "key.pem").read_bytes())
    keeper = door(issuers={"idp": issuer(tmp_path, certificate.read_bytes())})
    assert await reason(keeper, token(key, "ES256", header={"kid": None})) is None
    assert await reason(keeper, token(EC, "ES256")) == "signature"


NO_GOOD: Final[dict[str, tuple[bytes, str]]] = {
    "a private key": (key_set(RSA, private=True), "private key"),
    "a private key in PEM": (RSA.as_pem(private=True), "private key"),
    "only a secret": (key_set(SECRET), "no public key"),
    "only too short a key": (key_set(WEAK_RSA), "no public key"),
    "only a key for something else": (key_set(RSAKey.generate_key(2048, {"use": "enc"})), "no public key"),
    "no keys": (b'{"keys": []}', "no public key"),
    "keys of kinds to come": (
        b'{"keys": [{"kty": "AKP"}, 7, {"kty": "EC", "crv": "?", "x": "", "y": ""}]}',
        "no public",
    ),
    "a key and no set": (json.dumps(RSA.as_dict(private=False)).encode(), "neither a JSON Web Key Set nor PEM"),
    "nothing": (b"", "neither a JSON Web Key Set nor PEM"),
    "bytes": (b"\xff\x00", "neither a JSON Web Key Set nor PEM"),
    "a deep one": (b'{"keys":' * 5000, "neither a JSON Web Key Set nor PEM"),
    "broken PEM": (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "no public key"),
}


@pytest.mark.parametrize("name", NO_GOOD)
def test_a_file_that_is_no_good_is_told_before_the_first_request(tmp_path: Path, name: str) -> None:
    content, why = NO_GOOD[name]
    with pytest.raises(SettingsError) as refused:
        door(issuers={"idp": issuer(tmp_path, content), "other": issuer(tmp_path, content)})
    assert [message.split(":")[0] for message in refused.value.messages] == [
        "issuers.idp.jwks_file",
        "issuers.other.jwks_file",
    ]
    assert why in refused.value.messages[0]


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    table = issuer(tmp_path) | {"jwks_file": str(tmp_path / "nowhere")}
    with pytest.raises(SettingsError, match=r"issuers.idp.jwks_file: .*nowhere cannot be read \(FileNotFoundError\)"):
        door(issuers={"idp": table})


@pytest.mark.parametrize(
    ("algorithms", "size", "good"),
    [(["HS256"], 32, True), (["HS256"], 31, False), (["HS256", "HS512"], 64, True), (["HS256", "HS512"], 63, False)],
)
def test_a_shared_secret_is_as_long_as_its_hash(tmp_path: Path, algorithms: list[str], size: int, good: bool) -> None:
    content = key_set(OctKey.import_key(bytes(range(1, size + 1))))
    if good:
        door(issuers={"idp": issuer(tmp_path, content, algorithms=algorithms)})
        return
    with pytest.raises(SettingsError, match="no shared secret"):
        door(issuers={"idp": issuer(tmp_path, content, algorithms=algorithms)})


VALUES: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@BOUNDED
@given(credential=st.text(st.characters(max_codepoint=0xFF), max_size=200))
async def test_whatever_is_sent_is_refused_in_order(keeper: Doorkeeper, credential: str) -> None:
    with pytest.raises(Refused):
        await keeper.admit([credential], None)


@BOUNDED
@given(parts=st.lists(st.binary(max_size=60), min_size=3, max_size=3))
async def test_whatever_is_in_a_token_it_is_refused_in_order(keeper: Doorkeeper, parts: list[bytes]) -> None:
    assert await reason(keeper, handmade(*parts)) is not None


@BOUNDED
@given(
    header=st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk", "x5c", "zip"]), VALUES),
    changed=st.dictionaries(st.sampled_from(["iss", "sub", "aud", "exp", "nbf", "iat", "jti"]), VALUES),
)
async def test_whatever_an_issuer_signs_is_accepted_or_refused_in_order(
    keeper: Doorkeeper, header: dict[str, Any], changed: dict[str, Any]
) -> None:
    """Also what it signs in ways that no library would."""
    credential = signed({"alg": "RS256", "kid": "rsa"} | header, claims() | changed)
    if await reason(keeper, credential) is None:
        assert changed.get("iss", ISSUER) == ISSUER
        assert 0 < len(changed.get("sub", "user-1")) <= 255


@BOUNDED
@given(
    document=st.binary(max_size=200)
    | st.dictionaries(st.just("keys"), st.lists(VALUES)).map(lambda x: json.dumps(x).encode())
)
def test_whatever_is_in_a_file_of_keys_it_is_told_in_order(
    tmp_path_factory: pytest.TempPathFactory, document: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp()
    with pytest.raises(SettingsError):
        door(issuers={"idp": issuer(folder, document)})


@BOUNDED
@given(
    key=st.sampled_from([RSA, EC, ED]),
    changed=st.dictionaries(
        st.sampled_from(["kty", "crv", "x", "y", "n", "e", "kid", "use", "alg", "key_ops", "x5c"]), VALUES, min_size=1
    ),
)
def test_a_key_that_was_tampered_with_is_passed_over(
    tmp_path_factory: pytest.TempPathFactory, key: Key, changed: dict[str, Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", SecurityWarning)
        content = {"keys": [key.as_dict(private=False) | changed, OTHER.as_dict(private=False)]}
        door(issuers={"idp": issuer(tmp_path_factory.getbasetemp(), json.dumps(content).encode())})
