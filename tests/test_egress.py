"""How upstreams are reached: proxies, authorities and certificates, with real TLS on real ports and on both loops."""

import asyncio
import base64
import contextlib
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest

from app.errors import Problem
from app.settings import SettingsError
from app.upstream import egress
from tests.certificates import Authority, encrypted
from tests.pools import attempt, body_of, claimed, pool_of, table
from tests.proxy import Proxy
from tests.relay import settings_for
from tests.upstream import Upstream, answer, chunk, head
from tests.upstream_server import Connection


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


async def test_the_loop_is_the_one_that_is_named(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    assert (type(asyncio.get_running_loop()).__module__ == "uvloop") is anyio_backend[1]["use_uvloop"]


class Authorities(NamedTuple):
    folder: Path
    ours: Authority
    clients: Authority
    proxies: Authority
    certificate: Path
    key: Path


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Authorities:
    folder = tmp_path_factory.mktemp("certificates")
    ours, clients, proxies = (Authority(folder, name) for name in ("ours", "clients", "proxies"))
    return Authorities(folder, ours, clients, proxies, *clients.issue("client"))


class TlsUpstream(Upstream):
    """A scripted upstream behind TLS."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        super().__init__()
        self._tls = tls

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self, next(self._numbers)), "127.0.0.1", 0, ssl=self._tls
        )
        self.base_url = f"https://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    @property
    def address(self) -> str:
        return self.base_url.removeprefix("https://").removesuffix("/v1")


@pytest.fixture
async def upstream(trust: Authorities) -> AsyncIterator[TlsUpstream]:
    async with TlsUpstream(trust.ours.server()) as upstream:
        upstream.script(answer("Hi"))
        yield upstream


def assert_unreachable(problem: Problem | None, words: str) -> None:
    assert problem is not None
    assert (problem.code, problem.phase, problem.message) == ("upstream_unavailable", "connect", words)


CERTIFICATE = "upstream cannot be reached: its certificate is not trusted"
PROXY = "upstream cannot be reached through the proxy"


# Certificates.


async def test_an_authority_of_ones_own_is_trusted(trust: Authorities, upstream: TlsUpstream) -> None:
    async with pool_of({"x": table(upstream.base_url, ca_file=trust.ours.file)}) as pool:
        assert b"Hi" in await body_of(claimed(pool))


@pytest.mark.parametrize("authority", ["proxies", None], ids=["another", "the system's"])
async def test_an_upstream_of_another_authority_is_not(
    trust: Authorities, upstream: TlsUpstream, authority: str | None
) -> None:
    files = {} if authority is None else {"ca_file": getattr(trust, authority).file}
    before = len(upstream.requests)
    async with pool_of({"x": table(upstream.base_url, **files)}) as pool:
        assert_unreachable(await attempt(claimed(pool)), CERTIFICATE)
    assert len(upstream.requests) == before


async def test_a_certificate_for_another_host_is_not_trusted(trust: Authorities) -> None:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(*trust.ours.issue("elsewhere", names="DNS:elsewhere.example"))
    async with (
        TlsUpstream(server) as upstream,
        pool_of({"x": table(upstream.base_url, ca_file=trust.ours.file)}) as pool,
    ):
        assert_unreachable(await attempt(claimed(pool)), CERTIFICATE)


async def test_what_speaks_no_tls_cannot_be_reached(trust: Authorities) -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as mail:
        url = f"https://127.0.0.1:{mail.sockets[0].getsockname()[1]}/v1"
        async with pool_of({"x": table(url, ca_file=trust.ours.file)}) as pool:
            assert_unreachable(await attempt(claimed(pool)), "upstream cannot be reached: TLS failed")


async def test_a_client_shows_its_certificate(trust: Authorities) -> None:
    server = trust.ours.server(clients_of=trust.clients)
    shown = {"client_certificate_file": trust.certificate, "client_key_file": trust.key}
    both = trust.folder / "both.pem"
    both.write_bytes(trust.certificate.read_bytes() + trust.key.read_bytes())
    async with TlsUpstream(server) as upstream:
        upstream.script(answer("Hi"))
        for files in (shown, {"client_certificate_file": both}):
            async with pool_of({"x": table(upstream.base_url, ca_file=trust.ours.file, **files)}) as pool:
                assert b"Hi" in await body_of(claimed(pool))
        async with pool_of({"x": table(upstream.base_url, ca_file=trust.ours.file)}) as pool:
            refused = await attempt(claimed(pool))
            assert refused is not None
            assert refused.code == "upstream_unavailable"
        assert len(upstream.requests) == 2


class Deaf(threading.Thread):
    """A server with TLS that writes and never reads on: it does not hear a good-bye, and finds out by writing."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        super().__init__(daemon=True)
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"https://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self.start()

    def run(self) -> None:
        with self._listener, self._listener.accept()[0] as accepted:
            accepted.settimeout(10)
            with self._tls.wrap_socket(accepted, server_side=True) as connection, contextlib.suppress(OSError):
                connection.recv(65_536)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
                while True:
                    connection.sendall(b"data: {}\n\n" * 1000)


async def test_leaving_a_stream_in_tls_ends_it_at_once(trust: Authorities) -> None:
    deaf = Deaf(trust.ours.server())
    async with pool_of({"x": table(deaf.base_url, ca_file=trust.ours.file)}) as pool:
        answering = await claimed(pool).open({"model": "m"}, connect_s=5, sent=lambda: None)
        await answering.read()
        answering.close()
        await asyncio.to_thread(deaf.join, 5)
        assert not deaf.is_alive()


async def test_a_stream_in_tls_that_is_cut_ends(trust: Authorities) -> None:
    async with (
        TlsUpstream(trust.ours.server()) as upstream,
        pool_of({"x": table(upstream.base_url, ca_file=trust.ours.file)}) as pool,
    ):
        released = asyncio.Event()

        async def cut(exchange: Any) -> None:
            await released.wait()
            exchange.ending = "close"

        upstream.script((head(), chunk("Hi"), cut))
        answering = await claimed(pool).open({"model": "m"}, connect_s=5, sent=lambda: None)
        assert b"Hi" in await answering.read()
        released.set()
        assert await answering.read() == b""
        answering.close()


# Proxies.


async def test_https_goes_through_a_tunnel_once_for_a_connection(trust: Authorities, upstream: TlsUpstream) -> None:
    async with Proxy() as proxy:
        tables = {"x": table(upstream.base_url, ca_file=trust.ours.file, proxy=proxy.url)}
        async with pool_of(tables) as pool:
            for _ in range(3):
                assert await attempt(claimed(pool)) is None
    [asked] = proxy.asked
    assert (asked.method, asked.target) == ("CONNECT", upstream.address)
    assert "authorization" not in asked.headers


async def test_http_is_forwarded(trust: Authorities) -> None:
    async with Upstream() as plain, Proxy() as proxy:
        plain.script(answer("Hi"))
        url = proxy.url.replace("://", "://user:p%40ss@")
        async with pool_of({"x": table(plain.base_url, proxy=url)}) as pool:
            assert b"Hi" in await body_of(claimed(pool))
    [asked] = proxy.asked
    assert (asked.method, asked.target) == ("POST", f"{plain.base_url}/chat/completions")
    assert asked.headers["proxy-authorization"] == "Basic " + base64.b64encode(b"user:p@ss").decode()
    assert "proxy-authorization" not in plain.requests[0].headers


async def test_a_proxys_password_goes_to_the_proxy_alone(trust: Authorities, upstream: TlsUpstream) -> None:
    async with Proxy() as proxy:
        url = proxy.url.replace("://", "://user:p%40ss@")
        async with pool_of({"x": table(upstream.base_url, ca_file=trust.ours.file, proxy=url)}) as pool:
            assert b"Hi" in await body_of(claimed(pool))
    assert proxy.asked[0].headers["proxy-authorization"] == "Basic " + base64.b64encode(b"user:p@ss").decode()
    assert "proxy-authorization" not in upstream.requests[-1].headers


REFUSALS = {
    "407": b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n",
    "403": b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno",
    "502": b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    "garbage": b"SSH-2.0-OpenSSH_9\r\n\r\n",
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_proxy_that_refuses_makes_upstream_unavailable(
    trust: Authorities, upstream: TlsUpstream, refusal: str
) -> None:
    before = len(upstream.requests)
    async with Proxy(refusal=REFUSALS[refusal]) as proxy:
        tables = {"x": table(upstream.base_url, ca_file=trust.ours.file, proxy=proxy.url)}
        async with pool_of(tables, breaker_failures=1) as pool:
            assert_unreachable(await attempt(claimed(pool)), PROXY)
            assert pool.states()[0].state == "open"
    assert (len(proxy.asked), len(upstream.requests)) == (1, before)


async def test_a_proxy_that_wants_a_password_is_not_taken_for_upstream() -> None:
    async with Proxy(refusal=REFUSALS["407"]) as proxy, pool_of({"x": table(proxy=proxy.url)}) as pool:
        assert_unreachable(await attempt(claimed(pool)), PROXY)


async def test_a_proxy_that_is_not_there_and_one_that_cannot_reach_upstream(trust: Authorities) -> None:
    async with Proxy() as proxy:
        pass
    nowhere = {"x": table("https://127.0.0.1:9/v1", ca_file=trust.ours.file, proxy=proxy.url)}
    async with pool_of(nowhere) as pool:
        assert_unreachable(await attempt(claimed(pool)), PROXY)
    async with Proxy() as proxy:
        tables = {"x": table("https://127.0.0.1:9/v1", ca_file=trust.ours.file, proxy=proxy.url)}
        async with pool_of(tables) as pool:
            assert_unreachable(await attempt(claimed(pool)), PROXY)
    assert len(proxy.asked) == 1


async def test_a_proxy_that_is_silent_ends_by_the_limit_to_connect(trust: Authorities, upstream: TlsUpstream) -> None:
    async with Proxy(refusal=None) as proxy:
        tables = {"x": table(upstream.base_url, ca_file=trust.ours.file, proxy=proxy.url)}
        async with pool_of(tables) as pool:
            failure = await attempt(claimed(pool), connect_s=0.1)
    assert failure is not None
    assert (failure.code, failure.phase) == ("upstream_timeout", "connect")


async def test_an_upstream_that_is_not_trusted_is_not_trusted_through_a_proxy(
    trust: Authorities, upstream: TlsUpstream
) -> None:
    async with Proxy() as proxy:
        tables = {"x": table(upstream.base_url, ca_file=trust.clients.file, proxy=proxy.url)}
        async with pool_of(tables) as pool:
            assert_unreachable(await attempt(claimed(pool)), CERTIFICATE)


async def test_a_proxy_with_tls_is_trusted_by_the_system_and_shown_no_certificate(
    trust: Authorities, monkeypatch: pytest.MonkeyPatch
) -> None:
    optional = trust.proxies.server(clients_of=trust.clients)
    optional.verify_mode = ssl.CERT_OPTIONAL
    files = {"ca_file": trust.ours.file, "client_certificate_file": trust.certificate, "client_key_file": trust.key}
    async with (
        TlsUpstream(trust.ours.server(clients_of=trust.clients)) as upstream,
        WatchingProxy(tls=optional) as proxy,
    ):
        upstream.script(answer("Hi"))
        tables = {"x": table(upstream.base_url, proxy=proxy.url, **files)}
        async with pool_of(tables) as pool:
            assert_unreachable(await attempt(claimed(pool)), PROXY)  # of an authority that the system does not know
        monkeypatch.setenv("SSL_CERT_FILE", str(trust.proxies.file))
        async with pool_of(tables) as pool:
            assert b"Hi" in await body_of(claimed(pool))
        assert proxy.shown == [None]


class WatchingProxy(Proxy):
    """Remembers the certificates of its clients."""

    shown: list[Any]

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.shown = [*getattr(self, "shown", []), writer.get_extra_info("peercert") or None]
        await super()._answer(reader, writer)


# Which way is chosen.

FAR, PLAIN = "https://api.far.example:8443/v1", "http://api.far.example/v1"
BY = {"https_proxy": "http://secure:1", "http_proxy": "http://plain:1"}


def proxy_for(base_url: str, own: str | None = None, **settings: Any) -> str | None:
    chosen = settings_for("http://127.0.0.1:9/v1", upstreams={"x": table(base_url, proxy=own)}, **(BY | settings))
    return egress.of_table("x", chosen.upstreams["x"], chosen).proxy


@pytest.mark.parametrize(
    ("base_url", "no_proxy", "proxy"),
    [
        (FAR, "", "http://secure:1"),
        (PLAIN, "", "http://plain:1"),
        (FAR, "far.example", None),
        (FAR, ".far.example", None),
        (FAR, "other.example, api.FAR.example", None),
        (FAR, "api.far.example:8443", None),
        (FAR, "api.far.example:443", "http://secure:1"),
        (PLAIN, "api.far.example:80", None),
        (FAR, "ar.example", "http://secure:1"),
        (FAR, "*", None),
        (FAR, " * ", None),
        ("https://[2001:db8::7]/v1", "2001:db8::7", None),
        ("https://[2001:db8::7]/v1", "[2001:db8::7]", None),
        ("https://[2001:db8::7]/v1", "[2001:db8::7]:443", None),
        ("https://[2001:db8::7]/v1", "2001:db8::8", "http://secure:1"),
        *(
            (f"http://{host}/v1", "", None)
            for host in ("localhost:1", "127.0.0.1", "127.8.8.8:1", "[::1]:1", "a.localhost")
        ),
    ],
)
def test_the_environments_proxy_holds_by_scheme_but_for_exceptions(
    base_url: str, no_proxy: str, proxy: str | None
) -> None:
    assert proxy_for(base_url, no_proxy=no_proxy) == proxy


@pytest.mark.parametrize("base_url", [FAR, PLAIN, "http://localhost:1/v1"])
def test_an_upstreams_own_proxy_always_holds(base_url: str) -> None:
    assert proxy_for(base_url, "http://own:1", no_proxy="*") == "http://own:1"


def test_the_upstream_of_the_environment_has_the_environments_proxy() -> None:
    assert egress.of_environment(settings_for(FAR, **BY)).proxy == "http://secure:1"
    assert egress.of_environment(settings_for(FAR)).proxy is None


# Settings that are no good.


def wrong(**fields: Any) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        proxy_for(fields.pop("base_url", FAR), fields.pop("own", None), **fields)
    return list(caught.value.messages)


def failing(trust: Authorities, **fields: Any) -> str:
    chosen = settings_for("http://127.0.0.1:9/v1", upstreams={"x": table(fields.pop("base_url", FAR), **fields)})
    with pytest.raises(SettingsError) as caught:
        egress.of_table("x", chosen.upstreams["x"], chosen)
    return str(caught.value)


def test_files_that_are_no_good_are_named_at_the_start(trust: Authorities) -> None:
    junk = trust.folder / "junk.pem"
    junk.write_text("no certificate")
    missing, certificate, key = trust.folder / "missing.pem", trust.certificate, trust.key
    pair = {"client_certificate_file": certificate, "client_key_file": key}
    words = {
        "upstreams.x.ca_file: ": [{"ca_file": missing}, {"ca_file": trust.folder}, {"ca_file": junk}],
        "upstreams.x.client_key_file: ": [pair | {"client_key_file": missing}],
        "upstreams.x.client_certificate_file: ": [
            {"client_certificate_file": missing},
            {"client_certificate_file": certificate},
            pair | {"client_certificate_file": junk},
            pair | {"client_certificate_file": trust.ours.file},
            pair | {"client_key_file": encrypted(key)},
        ],
    }
    for place, cases in words.items():
        for files in cases:
            assert failing(trust, **files).startswith(place), files


def test_certificates_for_an_upstream_without_tls_are_a_mistake(trust: Authorities) -> None:
    assert failing(trust, base_url=PLAIN, ca_file=trust.ours.file).startswith("upstreams.x.ca_file: ")


@pytest.mark.parametrize("url", ["http://user:secret@:1", "http://user:secret@h:99999", "http://user:secret@h:x"])
def test_urls_that_are_none_are_named_and_not_quoted(url: str) -> None:
    for messages in (wrong(https_proxy=url), wrong(http_proxy=url, base_url=PLAIN)):
        assert messages[0].startswith(("HTTPS_PROXY: ", "HTTP_PROXY: "))
        assert "secret" not in messages[0]


async def test_all_that_is_wrong_with_all_upstreams_is_said_at_once(trust: Authorities) -> None:
    tables = {
        "a": table(FAR, ca_file=trust.folder / "a.pem"),
        "b": table("http://h:99999/v1"),
        "c": table(FAR, azure_api_version="1", models=["../x"]),
        "d": table(FAR, headers={"Content-Length": "1"}),
    }
    with pytest.raises(SettingsError) as caught:
        async with pool_of(tables):
            pass
    assert [message.split(":")[0] for message in caught.value.messages] == [
        "upstreams.a.ca_file",
        "upstreams.b.base_url",
        "upstreams.c",
        "upstreams.d.headers",
    ]
