"""Who a caller says it is reached from: a proxy's word counts where the proxy is trusted, and a client's never."""

import contextlib
from collections.abc import AsyncIterator
from typing import Final

import pytest

from tests.hostile import CHAT, HOST, JSON, chunked, exchanged
from tests.relay import Relay, ask, chat, running
from tests.upstream import Upstream, answer

TRUSTED: Final = ("127.0.0.1", "10.0.0.0/8")
ONCE: Final = {"requests_per_minute": 1}


@contextlib.asynccontextmanager
async def counting(*proxies: str) -> AsyncIterator[tuple[Upstream, Relay]]:
    """A relay that serves each address once; the test itself comes from 127.0.0.1."""
    async with (
        Upstream() as upstream,
        running(upstream.base_url, trusted_proxies=proxies, anonymous=ONCE, log_level="error") as relay,
    ):
        upstream.script(answer("ok"))
        yield upstream, relay


async def served(relay: Relay, *chains: str) -> list[int]:
    """The status for each value of X-Forwarded-For, one after the other."""
    return [(await ask(relay.port, chat(), headers={"x-forwarded-for": chain}))[0].status for chain in chains]


async def test_an_address_that_nobody_vouches_for_counts_for_nothing() -> None:
    async with counting() as (upstream, relay):
        assert await served(relay, "192.0.2.1", "192.0.2.2", "2001:db8::1", "127.0.0.1", "") == [
            200,
            429,
            429,
            429,
            429,
        ]
        assert len(upstream.requests) == 1


async def test_a_trusted_proxys_word_is_who_is_counted() -> None:
    async with counting(*TRUSTED) as (_, relay):
        assert await served(relay, "192.0.2.1", "192.0.2.2", "192.0.2.1") == [200, 200, 429]


CHAINS: Final = [
    "{forged}, 192.0.2.9",
    "{forged}, 192.0.2.9, 10.1.2.3",
    "{forged},192.0.2.9,10.1.2.3,127.0.0.1",
    "{forged}, {forged}, 192.0.2.9:4711",
    "{forged}\t, 192.0.2.9 ",
    "10.9.9.9, {forged}, ::ffff:192.0.2.9",
]


@pytest.mark.parametrize("chain", CHAINS)
async def test_what_a_client_put_before_a_proxys_word_is_not_read(chain: str) -> None:
    """The last address that is no proxy of ours was written by one of ours; all before it may be made up."""
    async with counting(*TRUSTED) as (_, relay):
        forged = ["198.51.100.1", "198.51.100.2", "unknown", '"', "2001:db8::1"]
        assert await served(relay, "192.0.2.9", *(chain.format(forged=each) for each in forged)) == [200, *[429] * 5]


async def test_several_headers_are_one_chain() -> None:
    async with counting(*TRUSTED) as (_, relay):
        statuses = []
        for forged in ("198.51.100.1", "198.51.100.2"):
            lines = f"x-forwarded-for: {forged}\r\nx-forwarded-for: 192.0.2.9\r\nconnection: close\r\n".encode()
            body = b"content-length: %d\r\n\r\n" % len(CHAT) + CHAT
            said = await exchanged(relay.port, b"POST /chat/stream HTTP/1.1\r\n" + HOST + JSON + lines + body)
            statuses.append(int(said.split(b" ")[1]))
        assert statuses == [200, 429]


async def test_a_trailer_names_no_address() -> None:
    async with counting(*TRUSTED) as (_, relay):
        assert await served(relay, "192.0.2.9") == [200]
        first = b"POST /chat/stream HTTP/1.1\r\n" + HOST + JSON + b"connection: close\r\nx-forwarded-for: 192.0.2.9\r\n"
        trailer = b"0\r\nx-forwarded-for: 192.0.2.10\r\n\r\n"
        said = await exchanged(relay.port, first + b"transfer-encoding: chunked\r\n\r\n" + chunked(CHAT) + trailer)
        assert said.startswith(b"HTTP/1.1 429 ")


async def test_an_ipv6_client_has_all_the_addresses_of_its_network_and_one_limit() -> None:
    async with counting(*TRUSTED) as (_, relay):
        addresses = [
            "2001:db8::1",
            "2001:db8::2",
            "[2001:db8::ffff]:443",
            "2001:db8:0:1::1",
            "::ffff:192.0.2.1",
            "192.0.2.1",
        ]
        assert await served(relay, *addresses) == [200, 429, 429, 200, 200, 429]


NONSENSE: Final = ["unknown", "_hidden", "1.2.3", "a" * 4000, ",", "\x9b31m", "1.2.3.4, x", "::1::", "999.1.1.1"]


async def test_words_that_are_no_address_are_all_one() -> None:
    """Else each new nonsense would be a new caller with a limit of its own."""
    async with counting(*TRUSTED) as (_, relay):
        statuses = await served(relay, *NONSENSE)
    assert statuses.count(200) <= 2  # of nobody, and of the proxy itself where the header says nothing
    assert set(statuses) == {200, 429}


@pytest.mark.parametrize("proxies", [(), TRUSTED], ids=["nobody is trusted", "the proxy is trusted"])
async def test_a_cookie_is_secure_where_a_trusted_proxy_says_https(proxies: tuple[str, ...]) -> None:
    async with counting(*proxies) as (_, relay):
        for proto in ("https", "HTTPS", "javascript", "https, http", "\x9b"):
            response, _ = await ask(relay.port, chat(), headers={"x-forwarded-proto": proto})
            is_secure = response.headers["set-cookie"].endswith("; Secure")
            assert is_secure is (proto == "https" and proxies == TRUSTED), proto


async def test_no_other_header_names_an_address_or_a_host() -> None:
    async with counting(*TRUSTED) as (_, relay):
        statuses = []
        for name in (
            "forwarded",
            "x-real-ip",
            "true-client-ip",
            "cf-connecting-ip",
            "x-client-ip",
            "x-cluster-client-ip",
        ):
            value = "for=192.0.2.7;host=evil.example" if name == "forwarded" else "192.0.2.7"
            headers = {name: value, "x-forwarded-host": "evil.example", "x-forwarded-prefix": "/evil"}
            statuses.append((await ask(relay.port, chat(), headers=headers))[0].status)
    assert statuses == [200, 429, 429, 429, 429, 429]
