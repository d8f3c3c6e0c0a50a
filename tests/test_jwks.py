"""Keys that an issuer publishes: when they are asked for, and what becomes of tokens while they cannot be had."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
from joserfc.jwk import RSAKey

from app.admission.callers import Caller
from app.admission.credentials import Refused
from app.door import fetching
from app.door.doorkeeper import Doorkeeper
from app.door.jwks import BETWEEN_FETCHES_SECONDS, MAX_AGE_SECONDS, RETRY_SECONDS
from app.errors import RelayError
from tests.credentials import AUDIENCE, ISSUER, NOW, RSA, Clock, door, key_set, token
from tests.relay import settings_for
from tests.upstream import Answer, Upstream, head, reset, send, silent, status, wait

NEXT: Final = RSAKey.generate_key(2048, {"kid": "next"})
OLD, BOTH, NEW = key_set(RSA), key_set(RSA, NEXT), key_set(NEXT)


class Publisher:
    """An issuer's server, a doorkeeper who asks it, and a clock that is moved by hand."""

    def __init__(self, server: Upstream, **table: Any) -> None:
        self.server: Final = server
        self.clock: Final = Clock()
        named = {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": f"{server.base_url}/keys"}
        self.keeper: Final = door(now=Clock(), clock=self.clock, issuers={"idp": named | table})

    def publish(self, *documents: bytes | Answer) -> None:
        self.server.script(*(status(200, each) if isinstance(each, bytes) else each for each in documents))

    @property
    def asked(self) -> int:
        return len(self.server.requests)

    async def says(self, credential: str) -> str:
        """`admitted`, or the code of the refusal."""
        try:
            admitted = await self.keeper.admit([f"Bearer {credential}"], None)
        except RelayError as error:
            return error.problem.code
        assert admitted is not None
        assert admitted.caller == Caller("jwt:idp", "user-1")
        return "admitted"


@contextlib.asynccontextmanager
async def publisher(**table: Any) -> AsyncIterator[Publisher]:
    async with Upstream() as server:
        made = Publisher(server, **table)
        try:
            yield made
        finally:
            await made.keeper.aclose()


async def test_keys_are_asked_for_once_for_many_tokens() -> None:
    async with publisher() as issuer:
        issuer.publish(OLD)
        assert issuer.asked == 0
        assert {await issuer.says(token()) for _ in range(5)} == {"admitted"}
        assert issuer.asked == 1
        [asked] = issuer.server.requests
        assert (asked.method, asked.path) == ("GET", "/v1/keys")
        assert asked.headers["user-agent"].startswith("sse-relay/")


async def test_tokens_that_come_at_once_wait_for_one_request() -> None:
    released = asyncio.Event()
    async with publisher() as issuer:
        issuer.publish((wait(released), *status(200, OLD)))
        tokens = [asyncio.create_task(issuer.says(token())) for _ in range(20)]
        await issuer.server.wait_for(lambda server: server.active == 1)
        tokens[0].cancel()  # who leaves takes the keys from nobody
        released.set()
        assert {await task for task in tokens[1:]} == {"admitted"}
        assert issuer.asked == 1


async def test_a_new_key_is_found_and_an_old_one_goes() -> None:
    async with publisher() as issuer:
        issuer.publish(OLD, BOTH, NEW)
        assert await issuer.says(token()) == "admitted"
        issuer.clock.now += BETWEEN_FETCHES_SECONDS
        assert [await issuer.says(token(key)) for key in (NEXT, RSA)] == ["admitted", "admitted"]
        assert issuer.asked == 2
        issuer.clock.now += MAX_AGE_SECONDS
        assert [await issuer.says(token(key)) for key in (RSA, NEXT)] == ["unauthorized", "admitted"]
        assert issuer.asked == 3


async def test_a_flood_of_names_of_keys_asks_once_in_a_while() -> None:
    async with publisher() as issuer:
        issuer.publish(OLD)
        assert await issuer.says(token()) == "admitted"
        for _ in range(3):
            issuer.clock.now += BETWEEN_FETCHES_SECONDS
            flood = [issuer.says(token(header={"kid": f"kid-{number}"})) for number in range(50)]
            assert {*await asyncio.gather(*flood)} == {"unauthorized"}
            assert await issuer.says(token()) == "admitted"
        assert issuer.asked == 4


async def test_what_cannot_be_of_the_issuer_asks_for_nothing() -> None:
    async with publisher() as issuer:
        issuer.publish(OLD)
        for credential in (token(iss="https://evil.example/"), token(header={"alg": "none"}), "a.b.c", token() + "=="):
            assert await issuer.says(credential) == "unauthorized"
        assert issuer.asked == 0


FAILING: Final[dict[str, Answer]] = {
    "an error": status(500, b"no"),
    "a redirect": status(302, b"", {"location": "http://127.0.0.1:9/"}),
    "nothing": status(204),
    "no keys": status(200, b'{"keys": []}'),
    "a page": status(200, b"<html>"),
    "too much": status(200, OLD + b" " * fetching.MAX_DOCUMENT_BYTES),
    "without an end": (head(content_length=10_000), send(OLD), reset()),
    "a private key": status(200, key_set(RSA, private=True)),
    "a cut": (head(content_length=10_000), reset()),
    "no HTTP": (send(b"hello\r\n\r\n"),),
    "gzip": status(200, b"\x1f\x8b" + OLD, {"content-encoding": "gzip"}),
}


@pytest.mark.parametrize("name", FAILING)
async def test_without_keys_nobody_is_refused_for_good(name: str) -> None:
    async with publisher() as issuer:
        issuer.publish(FAILING[name], OLD)
        with pytest.raises(RelayError) as failed:
            await issuer.keeper.admit([f"Bearer {token()}"], None)
        assert not isinstance(failed.value, Refused)
        problem = failed.value.problem
        assert (problem.code, problem.status, problem.retryable) == ("overloaded", 503, True)
        assert problem.retry_after_s == RETRY_SECONDS
        assert await issuer.says(token()) == "overloaded"
        assert issuer.asked == 1
        issuer.clock.now += RETRY_SECONDS
        assert await issuer.says(token()) == "admitted"


@pytest.mark.parametrize("name", FAILING)
async def test_the_keys_that_are_here_are_kept_while_no_others_can_be_had(name: str) -> None:
    async with publisher() as issuer:
        issuer.publish(OLD, FAILING[name])
        for asked in (1, 2, 3):
            assert await issuer.says(token()) == "admitted"
            assert await issuer.says(token(NEXT)) == "unauthorized"
            await issuer.server.wait_for(lambda server: server.active == 0)
            assert issuer.asked == asked
            issuer.clock.now += MAX_AGE_SECONDS


async def test_an_issuer_that_hangs_holds_up_only_those_whose_key_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "FETCH_SECONDS", 0.05)
    async with publisher() as issuer:
        issuer.publish(OLD, silent())
        assert await issuer.says(token()) == "admitted"
        issuer.clock.now += MAX_AGE_SECONDS
        assert await issuer.says(token()) == "admitted"  # after the time that an answer is given
        issuer.clock.now += BETWEEN_FETCHES_SECONDS
        monkeypatch.setattr(fetching, "FETCH_SECONDS", 60)
        async with asyncio.timeout(1):
            assert await issuer.says(token()) == "admitted"
        await issuer.server.wait_for(lambda server: len(server.requests) == 3)


async def test_a_request_under_way_ends_with_the_doorkeeper() -> None:
    async with publisher() as issuer:
        issuer.publish(silent())
        waiting = asyncio.create_task(issuer.says(token()))
        await issuer.server.wait_for(lambda server: server.active == 1)
        await issuer.keeper.aclose()
        assert await waiting == "overloaded"
        await issuer.server.wait_for(lambda server: server.aborted == 1)


async def test_nobody_there_is_no_keys() -> None:
    async with publisher(jwks_url="http://127.0.0.1:9/keys") as issuer:
        assert await issuer.says(token()) == "overloaded"


async def test_keys_are_asked_for_by_the_proxy() -> None:
    async with Upstream() as proxy:
        proxy.script(status(200, OLD))
        table = {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": "http://issuer.invalid/keys"}
        settings = settings_for("http://127.0.0.1:9/v1", issuers={"idp": table})
        address = proxy.base_url.removesuffix("/v1")
        keeper = Doorkeeper(settings, proxy_of=lambda url: address if "invalid" in url else None, now=lambda: NOW)
        assert await keeper.admit([f"Bearer {token()}"], None) is not None
        assert [request.path for request in proxy.requests] == ["http://issuer.invalid/keys"]
        await keeper.aclose()


async def test_an_issuer_without_a_shared_secret_is_not_asked_for_one() -> None:
    with pytest.raises(Exception, match="HS… needs `jwks_file`"):
        async with publisher(algorithms=["HS256"]):
            pass


def test_a_set_holds_at_most_a_hundred_keys() -> None:
    """The others are passed over: each costs its time to read."""
    from app.door.jwks import MAX_KEYS, read

    many = {"keys": [RSA.as_dict(private=False) | {"kid": str(number)} for number in range(MAX_KEYS + 5)]}
    assert len(read(json.dumps(many).encode())) == MAX_KEYS
