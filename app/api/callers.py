"""Who is asking, from where, and whether a page elsewhere made their browser ask."""

import re
import secrets
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

import msgspec
from starlette.requests import Request

from app.admission.permits import Caller
from app.errors import RelayError

COOKIE: Final = "relay_subject"
_SUBJECT: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)


class Visitor(msgspec.Struct, frozen=True):
    """A caller, and the cookie to give to one that came without a subject, who `to_be` another caller with it."""

    caller: Caller
    set_cookie: str | None
    to_be: Caller

    def settled(self) -> "Visitor":
        """The visitor as it comes back: what it begins belongs to the subject that it is only now given."""
        return Visitor(self.to_be, self.set_cookie, self.to_be)


def visitor(request: Request) -> Visitor:
    """An anonymous caller: its subject is a cookie of 128 random bits that no script can read."""
    subject = request.cookies.get(COOKIE, "")
    if _SUBJECT.fullmatch(subject):
        caller = Caller("", subject)
        return Visitor(caller, None, caller)
    subject = secrets.token_hex(16)
    secure = "; Secure" if request.url.scheme == "https" else ""
    cookie = f"{COOKIE}={subject}; Path=/; HttpOnly; SameSite=Strict{secure}"
    return Visitor(Caller("", None), cookie, Caller("", subject))


def is_loopback(host: str) -> bool:
    """Whether a Host header or an address to listen on means this machine alone."""
    name = _hostname(host)
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def is_served(host: str, allowed: tuple[str, ...]) -> bool:
    """DNS rebinding makes a stranger's name point here: only names we were told are ours are served."""
    name = _hostname(host)
    if not name:
        return False
    return is_loopback(host) or any(
        pattern in ("*", name) or (pattern.startswith("*.") and name.endswith(pattern[1:]))
        for pattern in map(str.lower, allowed)
    )


def guard(request: Request, cors_origins: tuple[str, ...], *, proof: bool) -> None:
    """Refuses (403) what a page elsewhere made a browser send.

    With `proof` the request must show that it is no such thing: the same origin, an origin of the CORS list, or an
    `Authorization` header, which no page can make a browser add. Without, it is enough that nothing speaks against it.
    """
    headers = request.headers
    origin = headers.get("origin")
    if origin is not None and origin in cors_origins:
        return
    site = headers.get("sec-fetch-site")
    evidence = _same_origin(request, origin or headers.get("referer")) if site is None else site == "same-origin"
    if evidence is False or (evidence is None and proof):
        if "authorization" in headers:
            return
        message = "ask from the relay's own pages, from an origin in RELAY_CORS_ORIGINS or with an Authorization header"
        raise RelayError("forbidden", message, param="Origin", phase="admission")


def _same_origin(request: Request, address: str | None) -> bool | None:
    """Whether an address is on this host; None where there is no address. Schemes may differ behind a proxy."""
    if address is None:
        return None
    try:
        return urlsplit(address).netloc == request.headers.get("host")
    except ValueError:
        return False


def _hostname(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".").lower()
    except ValueError:
        return ""
