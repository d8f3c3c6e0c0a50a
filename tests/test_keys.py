"""API keys: what they look like, how they are found, and what their table lets them do."""

import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from app.admission.callers import Caller, Caps, Grant, Quota
from app.admission.credentials import MAX_CREDENTIAL_CHARACTERS, Refused
from app.admission.credentials import bearer as read_bearer
from app.admission.keys import KeyRing, Known, digest_of, key_from
from app.admission.scopes import of_address, of_subject
from app.errors import RelayError
from tests.credentials import KEYS, NOW, Clock, door, hashes


def test_a_key_has_its_mark_and_256_bits() -> None:
    assert re.fullmatch(r"rk_[A-Za-z0-9_-]{43}", key_from(b"\xff" * 32))
    assert len({key_from(bytes([number]) * 32) for number in range(256)}) == 256


@pytest.mark.parametrize("asked", [KEYS[0], KEYS[1], KEYS[2], "rk_unknown"])
def test_a_key_is_compared_with_every_key_whichever_it_is(asked: str) -> None:
    compared: list[bytes] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return one == other

    ring = KeyRing([Known(str(index), digest_of(key)) for index, key in enumerate(KEYS[:3])], compare)
    found = ring.find(asked)
    assert compared == [digest_of(key) for key in KEYS[:3]]
    assert found == (str(KEYS.index(asked)) if asked in KEYS else None)


@pytest.mark.parametrize(
    ("headers", "credential"),
    [
        ([], None),
        (["Bearer abc"], "abc"),
        (["bearer abc"], "abc"),
        (["BEARER   abc "], "abc"),
        (["Basic dXNlcjpwYXNz"], None),
        (["Digest username=x"], None),
        (["Negotiate abc"], None),
    ],
)
def test_a_credential_is_what_a_bearer_sends(headers: list[str], credential: str | None) -> None:
    assert read_bearer(headers) == credential


@pytest.mark.parametrize(
    "headers",
    [
        *(["Bearer"], ["Bearer "], ["Bearer a b"], ["Bearer a\tb"], ["Bearer \xe9"], ["Bearer a\0"], [""]),
        *(["abc"], [KEYS[0]], ["Token abc"], ["Bearer abc", "Bearer abc"], ["Bearer abc", "Basic abc"]),
        ["Bearer " + "a" * (MAX_CREDENTIAL_CHARACTERS + 1)],
    ],
    ids=lambda headers: str(headers)[:40],
)
def test_what_cannot_be_read_is_refused_and_never_passed_over(headers: list[str]) -> None:
    with pytest.raises(Refused) as refused:
        read_bearer(headers)
    assert refused.value.reason == "malformed"


@pytest.mark.parametrize(
    ("host", "scope"),
    [
        ("192.0.2.1", "ip:192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "ip:2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "ip:2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", "ip:192.0.2.1"),
        ("fe80::1%eth0", "ip:fe80::/64"),
        (None, "ip:-"),
        ("", "ip:-"),
        ("unix:", "ip:-"),
    ],
)
def test_an_address_is_counted_with_those_its_owner_can_choose(host: str | None, scope: str) -> None:
    assert of_address(host) == scope


@pytest.mark.parametrize("subject", ["user-1", "a@example.com", "x" * 64])
def test_a_plain_subject_is_counted_under_its_name(subject: str) -> None:
    assert of_subject("key:web", subject) == f"key:web/{subject}"


@pytest.mark.parametrize("subject", ["", "a b", "a/b", "x" * 65, "#abc", "ü", "\u202e", "a:b", "a\n"])
def test_an_odd_subject_is_counted_under_its_hash(subject: str) -> None:
    assert re.fullmatch(r"key:web/#[0-9a-f]{32}", of_subject("key:web", subject))


async def refusal(asking: Any) -> Refused:
    with pytest.raises(Refused) as refused:
        await asking
    return refused.value


async def test_a_key_is_its_applications_own_caller() -> None:
    keeper = door(keys={"web": hashes(KEYS[0]), "batch": hashes(KEYS[1])})
    for key, name in ((KEYS[0], "key:web"), (KEYS[1], "key:batch")):
        admitted = await keeper.admit([f"Bearer {key}"], None)
        assert admitted is not None
        assert (admitted.caller, admitted.grant) == (Caller(name, ""), Grant(name=name))


async def test_what_a_table_allows_is_granted() -> None:
    table = hashes(KEYS[0]) | {
        "models": ["m", "n"],
        "profiles": ["support"],
        "caps": {"max_tokens": 100, "temperature": 1.0},
        "max_answer_bytes": 4096,
        "max_streams": 3,
        "tokens_per_day": 10_000,
    }
    keeper = door(keys={"web": table}, profiles={"support": {}})
    admitted = await keeper.admit([f"Bearer {KEYS[0]}"], None)
    assert admitted is not None
    assert admitted.grant == Grant(
        name="key:web",
        models=frozenset({"m", "n"}),
        profiles=frozenset({"support"}),
        caps=(Caps(max_tokens=100, temperature=1.0),),
        max_answer_bytes=4096,
        quotas=(Quota("key:web", max_streams=3, tokens_per_day=10_000),),
    )


async def test_two_keys_of_a_table_are_good_at_a_time() -> None:
    keeper = door(keys={"web": hashes(KEYS[0], KEYS[1])})
    for key in KEYS[:2]:
        admitted = await keeper.admit([f"Bearer {key}"], None)
        assert admitted is not None
        assert admitted.caller == Caller("key:web", "")
    assert (await refusal(keeper.admit([f"Bearer {KEYS[2]}"], None))).reason == "unknown_key"


@pytest.mark.parametrize("expires", [datetime.fromtimestamp(NOW, UTC), datetime.fromtimestamp(NOW, UTC).isoformat()])
async def test_a_key_is_good_until_it_expires(expires: object) -> None:
    now = Clock(NOW - 1)
    keeper = door(keys={"web": hashes(KEYS[0]) | {"expires": expires}}, now=now)
    assert await keeper.admit([f"Bearer {KEYS[0]}"], None) is not None
    now.now = NOW
    refused = await refusal(keeper.admit([f"Bearer {KEYS[0]}"], None))
    assert (refused.reason, refused.problem.message) == ("expired_key", "this API key has expired")


async def test_who_has_no_credential_is_a_stranger_only_where_such_are_admitted() -> None:
    known = {"web": hashes(KEYS[0])}
    assert (await refusal(door(keys=known).admit([], None))).reason == "missing"
    assert await door(keys=known, allow_anonymous=True).admit([], None) is None
    assert await door().admit([], None) is None


@pytest.mark.parametrize("credential", ["rk_wrong", KEYS[1], "a.b.c"])
async def test_a_wrong_credential_is_refused_also_where_strangers_are_admitted(credential: str) -> None:
    keeper = door(keys={"web": hashes(KEYS[0])}, allow_anonymous=True)
    problem = (await refusal(keeper.admit([f"Bearer {credential}"], None))).problem
    assert (problem.code, problem.status, problem.retryable, problem.param, problem.phase) == (
        *("unauthorized", 401, False, "Authorization", "admission"),
    )
    assert credential not in problem.message


@pytest.mark.parametrize("credential", ["sk-anything", KEYS[0], "a.b.c", "\xe9"])
async def test_without_callers_a_credential_means_nothing(credential: str) -> None:
    assert await door().admit([f"Bearer {credential}"], "a session") is None


def test_a_stranger_is_counted_by_its_address() -> None:
    keeper = door(anonymous={"max_streams": 1, "models": ["m"]})
    for host, scope in (("192.0.2.1", "ip:192.0.2.1"), ("2001:db8::1", "ip:2001:db8::/64")):
        granted = Grant(name="anonymous", models=frozenset({"m"}), quotas=(Quota(scope, max_streams=1),))
        assert keeper.stranger(host) == granted
    assert door().stranger("192.0.2.1") == Grant(name="anonymous")


async def test_the_operator_is_told_once_a_second_and_never_the_credential(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    keeper = door(keys={"web": hashes(KEYS[0])}, clock=clock, log_format="json")
    for number in range(5):
        await refusal(keeper.admit([f"Bearer rk_canary{number}"], None, "192.0.2.1"))
    await refusal(keeper.admit(["Bearer a.canary.c"], None, "192.0.2.2"))
    await refusal(keeper.admit([], None, "192.0.2.3"))
    with pytest.raises(Refused):
        keeper.minter([], "192.0.2.3")
    clock.now += 1
    await refusal(keeper.admit(["Bearer rk_canary"], None, "192.0.2.4"))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["level"], line["reason"], line["address"], line["others_since"]) for line in lines] == [
        ("warning", "unknown_key", "192.0.2.1", 0),
        ("warning", "malformed", "192.0.2.2", 0),
        ("warning", "unknown_key", "192.0.2.4", 4),
    ]
    assert "canary" not in json.dumps(lines)


async def test_where_no_key_makes_tokens_none_is_made() -> None:
    keeper = door(keys={"web": hashes(KEYS[0])})
    with pytest.raises(RelayError) as refused:
        keeper.minter([f"Bearer {KEYS[0]}"])
    assert (refused.value.problem.status, "`mint = true`" in refused.value.problem.message) == (403, True)
