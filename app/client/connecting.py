"""How both clients use HTTP."""

from collections.abc import Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ipaddress import ip_address
from typing import Any, Final, TypedDict

import httpx2

from app.client import wire

CONNECT_SECONDS: Final = 5.0
SILENCE_SECONDS: Final = 60.0
"""Four heartbeats of the relay's default; after so long without a byte the connection is taken for lost."""
STOP_SECONDS: Final = 5.0
"""For the relay to say that it stops. Who stops does not wait for long, and nothing is lost if it does not come."""


class Options(TypedDict):
    """The keyword arguments of httpx2's clients."""

    base_url: str
    headers: Mapping[str, str] | None
    timeout: httpx2.Timeout
    limits: httpx2.Limits
    cookies: CookieJar
    trust_env: bool


def options(url: str, headers: Mapping[str, str] | None, silence_seconds: float) -> Options:
    host = _host(url)
    _refuse_unsendable(headers or {})
    return Options(
        base_url=url,
        headers=headers,
        timeout=httpx2.Timeout(CONNECT_SECONDS, read=silence_seconds),
        # A stream may not wait for others to end. And each has a connection of its own: a kept one may be closed by the
        # relay in the moment in which it is used again, and a question is not asked twice.
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
        # With the relay's cookie a stream would belong to this client: no other process could come back to it.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        trust_env=not _is_loopback(host),  # a proxy cannot reach this machine's loopback
    )


def stop_extensions() -> dict[str, Any]:
    return {"timeout": httpx2.Timeout(STOP_SECONDS).as_dict()}


def head(response: httpx2.Response) -> wire.Head:
    return wire.head(response.status_code, response.headers)


def _host(url: str) -> str:
    """Told at once: taken for an address where nothing listens it would seem worth another try."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ValueError(f"{url} is no URL: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{url} is no URL; it begins with http:// or https://")
    return parsed.host


def _refuse_unsendable(headers: Mapping[str, str]) -> None:
    """A key read from a file brings its line feed along; h11 would refuse it later, with the key in its message."""
    for name, value in headers.items():
        if not value.isprintable() or value != value.strip():
            raise ValueError(f"the header {name} has white space round it or a control character in it")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
