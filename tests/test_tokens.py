"""Browser tokens: what an application makes for its pages, what they let in, and what can be forged of them."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.admission.callers import Caller, Grant, Quota
from app.admission.credentials import Refused
from app.admission.spent import Spent
from app.admission.tokens import Limits
from app.door.doorkeeper import Doorkeeper
from app.door.signatures import secret
from app.errors import RelayError
from tests.credentials import KEYS, NOW, RSA, Clock, bearer, door, handmade, hashes, issuer, signed, token
from tests.relay import Relay, ask, chat, fetch, running
from tests.upstream import Upstream, answer

MINTER, PLAIN, BOUND = KEYS[:3]
TABLES: Final[dict[str, Any]] = {
    "profiles": {"support": {"model": "m"}, "sales": {"model": "m"}},
    "keys": {
        "web": hashes(MINTER) | {"mint": True, "models": ["m"], "requests_per_minute": 100},
        "plain": hashes(PLAIN),
        "bound": hashes(BOUND) | {"mint": True, "profiles": ["support"]},
    },
}
TOKEN_SECRET: Final = "a secret of the relay, long enough"
BOUNDED: Final = settings(
    max_examples=100, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def minted(
    keeper: Doorkeeper,
    subject: str = "user-1",
    *,
    key: str = MINTER,
    seconds: int = 600,
    profile: str | None = None,
    limits: Limits | None = None,
) -> str:
    minter = keeper.minter([f"Bearer {key}"])
    return keeper.mint(minter, subject=subject, seconds=seconds, profile=profile, limits=limits).text


async def refusal(keeper: Doorkeeper, credential: str, session: str | None = None) -> str:
    with pytest.raises(Refused) as refused:
        await keeper.admit([f"Bearer {credential}"] if credential else [], session)
    return refused.value.reason


async def test_a_token_is_its_subjects_within_what_its_key_may() -> None:
    keeper = door(**TABLES)
    limits = Limits(max_streams=2, tokens_per_day=1000)
    admitted = await keeper.admit([f"Bearer {minted(keeper, profile='support', limits=limits)}"], None)
    assert admitted is not None
    assert admitted.caller == Caller("key:web", "user-1")
    assert admitted.grant == Grant(
        name="key:web",
        models=frozenset({"m"}),
        profiles=frozenset({"support"}),
        quotas=(
            Quota("key:web", requests_per_minute=100),
            Quota("key:web/user-1", max_streams=2, tokens_per_day=1000),
        ),
    )


async def test_a_token_of_nothing_in_particular_may_what_its_key_may() -> None:
    keeper = door(**TABLES)
    for key, profiles in ((MINTER, frozenset[str]()), (BOUND, frozenset({"support"}))):
        admitted = await keeper.admit([f"Bearer {minted(keeper, key=key)}"], None)
        application = await keeper.admit([f"Bearer {key}"], None)
        assert admitted is not None
        assert application is not None
        assert admitted.grant == application.grant
        assert admitted.grant.profiles == profiles


@pytest.mark.parametrize(
    ("key", "profile", "code", "status"),
    [(BOUND, "sales", "forbidden", 403), (BOUND, "none", "forbidden", 403), (MINTER, "none", "not_found", 404)],
)
def test_a_token_is_for_a_profile_that_is_there_and_the_keys(key: str, profile: str, code: str, status: int) -> None:
    with pytest.raises(RelayError) as refused:
        minted(door(**TABLES), key=key, profile=profile)
    problem = refused.value.problem
    assert (problem.code, problem.status, problem.param) == (code, status, "profile")


@pytest.mark.parametrize(
    ("credential", "status"), [("", 401), ("rk_unknown", 401), (PLAIN, 403), ("token", 403), (token(), 403)]
)
def test_only_a_key_that_may_makes_tokens(credential: str, status: int) -> None:
    keeper = door(**TABLES)
    credential = minted(keeper) if credential == "token" else credential
    with pytest.raises(RelayError) as refused:
        keeper.minter([f"Bearer {credential}"] if credential else [])
    assert refused.value.problem.status == status


async def test_a_token_is_good_for_its_time() -> None:
    now = Clock()
    keeper = door(**TABLES, now=now)
    text = minted(keeper, seconds=60)
    now.now = NOW + 60
    assert await keeper.admit([f"Bearer {text}"], None) is not None  # clocks of processes may differ a little
    now.now = NOW + 65
    assert await refusal(keeper, text) == "expired"
    now.now = NOW - 6
    assert await refusal(keeper, text) == "not_yet_valid"


def changed(**key: Any) -> dict[str, Any]:
    return TABLES | {"keys": TABLES["keys"] | {"web": TABLES["keys"]["web"] | key}}


REVOKED: Final[dict[str, dict[str, Any]]] = {
    "the key is gone": TABLES | {"keys": {"bound": TABLES["keys"]["bound"]}},
    "the key makes no tokens any more": changed(mint=False),
    "the key has expired": changed(expires=datetime.fromtimestamp(NOW - 1, UTC)),
    "the profile is not the key's any more": changed(profiles=["sales"]),
    "the profile is gone": TABLES | {"profiles": {"support": {}}, "keys": {"web": TABLES["keys"]["web"]}},
    "no key makes tokens": changed(mint=False) | {"keys": {"web": hashes(MINTER)}},
}


@pytest.mark.parametrize("name", REVOKED)
async def test_what_the_key_may_not_any_more_its_tokens_may_not_either(name: str) -> None:
    before = door(**TABLES, token_secret=TOKEN_SECRET)
    text = minted(before, profile="sales" if "gone" in name and "profile" in name else "support")
    session = (await before.exchange(text)).text
    after = door(**REVOKED[name], token_secret=TOKEN_SECRET)
    assert await refusal(after, text) == "revoked"
    if name != "no key makes tokens":
        assert await refusal(after, "", session) == "revoked"
    with pytest.raises(Refused):
        await after.exchange(text)


async def test_a_key_that_was_changed_leaves_its_tokens_good() -> None:
    text = minted(door(**TABLES, token_secret=TOKEN_SECRET))
    rotated = door(**changed(**hashes(KEYS[3])), token_secret=TOKEN_SECRET)
    assert await rotated.admit([f"Bearer {text}"], None) is not None


async def test_a_token_is_good_where_its_secret_is_known_and_nowhere_else() -> None:
    text = minted(door(**TABLES, token_secret=TOKEN_SECRET))
    assert await door(**TABLES, token_secret=TOKEN_SECRET).admit([f"Bearer {text}"], None) is not None
    assert await refusal(door(**TABLES, token_secret=TOKEN_SECRET.upper()), text) == "signature"
    assert await refusal(door(**TABLES), text) == "signature"
    one, other = door(**TABLES), door(**TABLES)
    assert await refusal(other, minted(one)) == "signature"


async def test_a_token_is_exchanged_once_and_goes_on_being_good() -> None:
    now = Clock()
    keeper = door(**TABLES, now=now, session_seconds=1800)
    text = minted(keeper, "user-7", profile="support")
    session = await keeper.exchange(text)
    assert (session.seconds, session.expires_at) == (1800, NOW + 1800)
    for _ in range(2):
        with pytest.raises(Refused) as refused:
            await keeper.exchange(text)
        assert refused.value.reason == "spent"
    now.now = NOW + 1799  # the session outlives the token
    admitted = await keeper.admit([], session.text)
    assert admitted is not None
    assert (admitted.caller, admitted.grant.profiles) == (Caller("key:web", "user-7"), frozenset({"support"}))
    now.now = NOW + 1805
    assert await refusal(keeper, "", session.text) == "expired"


async def test_a_session_is_no_token_and_a_token_no_session() -> None:
    keeper = door(**TABLES)
    text = minted(keeper)
    session = (await keeper.exchange(text)).text
    assert await refusal(keeper, session) == "issuer"
    assert await refusal(keeper, "", minted(keeper)) == "type"
    with pytest.raises(Refused) as refused:
        await keeper.exchange(session)
    assert refused.value.reason == "type"


async def test_a_session_that_is_over_makes_a_stranger_only_where_such_are_admitted() -> None:
    assert await refusal(door(**TABLES), "", "a.b.c") == "malformed"
    assert await door(**TABLES, allow_anonymous=True).admit([], "a.b.c") is None


def ours(changes: dict[str, Any]) -> dict[str, Any]:
    good = {"iss": "sse-relay", "aud": "sse-relay", "sub": "user-1", "key": "web", "jti": "1", "iat": NOW, "exp": NOW}
    good |= {"iat": int(NOW), "exp": int(NOW) + 60}
    return {name: value for name, value in (good | changes).items() if value is not None}


HEAD: Final = {"alg": "HS256", "typ": "relay-token+jwt"}
FORGED: Final[dict[str, tuple[dict[str, Any], dict[str, Any], str]]] = {
    "as it should be": (HEAD, {}, ""),
    "for another audience": (HEAD, {"aud": "other"}, "audience"),
    "of another issuer": (HEAD, {"iss": "other"}, "audience"),
    "of no key": (HEAD, {"key": None}, "claims"),
    "of a key that is not there": (HEAD, {"key": "other"}, "revoked"),
    "of a key that makes none": (HEAD, {"key": "plain"}, "revoked"),
    "without an end": (HEAD, {"exp": None}, "claims"),
    "without a subject": (HEAD, {"sub": None}, "claims"),
    "of another type": (HEAD | {"typ": "JWT"}, {}, "issuer"),
    "of another algorithm": (HEAD | {"alg": "HS512"}, {}, "algorithm"),
    "of no algorithm": (HEAD | {"alg": "none"}, {}, "algorithm"),
    "of a key pair": (HEAD | {"alg": "RS256"}, {}, "algorithm"),
}


@pytest.mark.parametrize("name", FORGED)
async def test_what_is_signed_with_our_secret_is_held_to_its_claims(name: str) -> None:
    header, changes, why = FORGED[name]
    keeper = door(**TABLES, token_secret=TOKEN_SECRET)
    text = signed(header, ours(changes), secret(TOKEN_SECRET.encode()), "HS256")
    if why:
        assert await refusal(keeper, text) == why
    else:
        assert await keeper.admit([f"Bearer {text}"], None) is not None


@pytest.mark.parametrize("key", [b"", b"sse-relay", TOKEN_SECRET.encode()])
async def test_a_token_that_is_signed_with_something_else_is_refused(key: bytes) -> None:
    forger = secret(key + b"?") if key else secret(bytes(32))
    keeper = door(**TABLES, token_secret=TOKEN_SECRET)
    assert await refusal(keeper, signed(HEAD, ours({}), forger, "HS256")) == "signature"
    assert await refusal(keeper, handmade(HEAD, ours({}), bytes(32))) == "signature"


async def test_an_issuer_cannot_make_tokens_of_ours(tmp_path_factory: pytest.TempPathFactory) -> None:
    keeper = door(**TABLES, issuers={"idp": issuer(tmp_path_factory.mktemp("keys"), issuer="sse-relay")})
    for alg in ("RS256", "HS256"):
        text = signed(HEAD | {"alg": alg, "kid": "rsa"}, ours({}), RSA)
        assert await refusal(keeper, text) in ("algorithm", "signature")


def test_a_token_that_is_spent_is_remembered_while_it_lives_and_not_longer() -> None:
    spent = Spent(keep_s=600, most=3)
    assert [spent.spend("a", 0), spent.spend("a", 1), spent.spend("b", 300)] == [True, False, True]
    assert spent.spend("a", 599.9) is False
    assert (spent.spend("a", 600), len(spent)) == (True, 2)
    assert (spent.spend("c", 901), len(spent)) == (True, 2)


def test_no_token_is_forgotten_to_make_room() -> None:
    spent = Spent(keep_s=600, most=2)
    spent.spend("a", 0)
    spent.spend("b", 10)
    with pytest.raises(RelayError) as refused:
        spent.spend("c", 100)
    problem = refused.value.problem
    assert (problem.code, problem.status, problem.retryable, problem.retry_after_s) == ("overloaded", 503, True, 500)
    assert [spent.spend("a", 100), spent.spend("c", 600)] == [False, True]


async def test_who_else_keeps_what_is_spent_is_asked_instead() -> None:
    keeper = door(**TABLES)
    spent: list[tuple[str, float]] = []

    async def spend(token_id: str, seconds: float) -> bool:
        spent.append((token_id, seconds))
        return len(spent) == 1

    keeper.spend = spend
    text = minted(keeper, seconds=60)
    await keeper.exchange(text)
    with pytest.raises(Refused):
        await keeper.exchange(text)
    assert spent == [(spent[0][0], 60.0)] * 2


@pytest.fixture(scope="module")
async def relay() -> AsyncIterator[Relay]:
    async with Upstream() as upstream, running(upstream.base_url, **TABLES) as relay:
        upstream.script(answer("ok"))
        yield relay


async def post(relay: Relay, body: object, key: str = MINTER, path: str = "/tokens") -> tuple[int, Any]:
    response, content = await fetch(relay.port, "POST", path, body, bearer(key))
    return response.status, json.loads(content)


async def test_a_token_is_made_over_http_and_answers_a_question(relay: Relay) -> None:
    asked = {"subject": "user-1", "profile": "support", "seconds": 90, "limits": {"max_streams": 5}}
    response, content = await fetch(relay.port, "POST", "/tokens", asked, bearer(MINTER))
    made = json.loads(content)
    assert (response.status, response.headers["cache-control"]) == (201, "no-store")
    assert "set-cookie" not in response.headers
    assert (made.keys(), made["seconds"]) == ({"token", "expires_at", "seconds"}, 90)
    left_s = (datetime.fromisoformat(made["expires_at"]) - datetime.now(UTC)).total_seconds()
    assert (80 < left_s <= 90, made["expires_at"][-1]) == (True, "Z")
    response, events = await ask(relay.port, chat(), headers=bearer(made["token"]))
    assert (response.status, events[-1]["type"]) == (200, "[DONE]")
    assert "set-cookie" not in response.headers


async def test_two_subjects_of_a_key_see_nothing_of_each_other(relay: Relay) -> None:
    tokens = [(await post(relay, {"subject": subject}))[1]["token"] for subject in ("one", "other")]
    response, _ = await ask(relay.port, chat(), headers=bearer(tokens[0]) | {"x-on-disconnect": "wait"})
    path = f"/chat/stream/{response.headers['x-stream-id']}/result"
    found = [(await fetch(relay.port, "GET", path, headers=bearer(each)))[0].status for each in (*tokens, PLAIN)]
    assert found == [200, 404, 404]


async def test_a_token_makes_no_token(relay: Relay) -> None:
    made = (await post(relay, {"subject": "user-1"}))[1]["token"]
    status, refused = await post(relay, {"subject": "admin"}, made)
    assert (status, refused["error"]["code"]) == (403, "forbidden")


WRONG: Final[list[tuple[object, int, str]]] = [
    (b"", 400, "body"),
    (b"nope", 400, "body"),
    ([], 422, "body"),
    ({}, 422, "subject"),
    ({"subject": ""}, 422, "subject"),
    ({"subject": 7}, 422, "subject"),
    ({"subject": "x" * 256}, 422, "subject"),
    ({"subject": "a\nb"}, 422, "subject"),
    ({"subject": "a\u202eb"}, 422, "subject"),
    (b'{"subject": "\\ud800"}', 400, "body"),
    ({"subject": "a", "profile": "none"}, 404, "profile"),
    ({"subject": "a", "profile": ""}, 422, "profile"),
    ({"subject": "a", "seconds": 0}, 422, "seconds"),
    ({"subject": "a", "seconds": 601}, 422, "seconds"),
    ({"subject": "a", "seconds": 1.5}, 422, "seconds"),
    ({"subject": "a", "seconds": "60"}, 422, "seconds"),
    ({"subject": "a", "limits": {"max_streams": 0}}, 422, "limits.max_streams"),
    ({"subject": "a", "limits": {"max_streams": 10**400}}, 422, "limits.max_streams"),
    ({"subject": "a", "limits": []}, 422, "limits"),
]


@pytest.mark.parametrize(("body", "status", "param"), WRONG, ids=lambda value: str(value)[:40])
async def test_a_wrong_wish_names_its_field(relay: Relay, body: object, status: int, param: str) -> None:
    answered, refused = await post(relay, body)
    assert (answered, refused["error"]["param"]) == (status, param)


@pytest.mark.parametrize(
    ("body", "param", "near"),
    [
        ({"subject": "a", "profil": "x"}, "profil", "profile"),
        ({"subject": "a", "second": 5}, "second", "seconds"),
        ({"subject": "a", "limits": {"max_stream": 5}}, "limits.max_stream", "max_streams"),
    ],
)
async def test_a_misspelt_field_is_told_with_the_nearest(relay: Relay, body: object, param: str, near: str) -> None:
    status, refused = await post(relay, body)
    assert (status, refused["error"]["param"]) == (422, param)
    assert refused["error"]["message"].endswith(f"did you mean `{near}`?")


async def test_who_may_not_make_tokens_is_told_before_the_body_is_read(relay: Relay) -> None:
    for headers, status in (({}, 401), (bearer("rk_x"), 401), (bearer(PLAIN), 403)):
        response, content = await fetch(relay.port, "POST", "/tokens", b"nope", headers)
        assert (response.status, json.loads(content)["error"]["param"]) == (status, "Authorization")
    response, _ = await fetch(relay.port, "POST", "/tokens", b"x", bearer(MINTER) | {"content-type": "text/plain"})
    assert response.status == 415


@BOUNDED
@given(value=st.text(st.characters(min_codepoint=0x20, max_codepoint=0x2FF, exclude_categories=["Cc"]), max_size=80))
async def test_whatever_says_who_asks_is_never_a_fault_of_ours(relay: Relay, value: str) -> None:
    """In the header and in the cookie."""
    for headers in (
        {"authorization": value},
        {"authorization": f"Bearer {value}"},
        {"cookie": f"relay_session={value}"},
    ):
        response, content = await fetch(relay.port, "GET", "/chat/stream/s_" + "0" * 32, None, headers)
        assert (response.status, json.loads(content)["error"]["code"]) == (401, "unauthorized")


async def test_a_token_fits_into_a_cookie(relay: Relay) -> None:
    """4096 bytes is what a browser keeps: also with the longest subject, of the longest characters."""
    limits = dict.fromkeys(("max_streams", "requests_per_minute", "tokens_per_minute", "tokens_per_day"), 10**12)
    _, made = await post(relay, {"subject": "\U0001f600" * 255, "profile": "support", "limits": limits})
    response, _ = await fetch(relay.port, "POST", "/session", {"token": made["token"]})
    assert (response.status, len(response.headers["set-cookie"]) < 4096) == (204, True)
    cookie = response.headers["set-cookie"].partition(";")[0]
    assert (await ask(relay.port, chat(), headers={"cookie": cookie}))[0].status == 200


def test_what_a_token_says_is_written_as_short_as_can_be() -> None:
    assert msgspec.json.encode(Limits(max_streams=1)) == b'{"max_streams":1}'
