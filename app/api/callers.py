"""Who is asking, from where, and whether a page elsewhere made their browser ask."""

import re
import secrets
from ipaddress import ip_address
from typing import Final, cast
from urllib.parse import urlsplit

import msgspec
from starlette.requests import Request

from app.admission.callers import EVERYTHING, Caller, Grant
from app.door.doorkeeper import Doorkeeper
from app.errors import RelayError
from app.settings import Settings

COOKIE: Final = "relay_subject"
SESSION_COOKIE: Final = "relay_session"
_SUBJECT: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)


class Visitor(msgspec.Struct, frozen=True):
    """A caller, and the cookie to give to one that came without a subject, who `to_be` another caller with it."""

    caller: Caller
    set_cookie: str | None
    to_be: Caller
    grant: Grant = EVERYTHING

    def settled(self) -> "Visitor":
        """The visitor as it comes back: what it begins belongs to the subject that it is only now given."""
        return Visitor(self.to_be, self.set_cookie, self.to_be, self.grant)


async def visitor(request: Request) -> Visitor:
    """Who asks: by a credential, a session, or as a stranger. Raises `unauthorized`, `overloaded`."""
    session = request.cookies.get(SESSION_COOKIE)
    where = address(request)
    admitted = await doorkeeper(request).admit(authorization(request), session, where)
    if admitted is None:
        return _stranger(request, where)
    return Visitor(admitted.caller, None, admitted.caller, admitted.grant)


async def caller(request: Request) -> Caller:
    return (await visitor(request)).caller


def cookie_of_stranger(request: Request) -> str | None:
    """The cookie to give to one who came without a credential and without a subject, where such are admitted."""
    door = doorkeeper(request)
    identified = door.knows_callers and (authorization(request) or SESSION_COOKIE in request.cookies)
    return None if identified or not door.admits_strangers else _stranger(request, address(request)).set_cookie


def doorkeeper(request: Request) -> Doorkeeper:
    return cast(Doorkeeper, request.app.state.parts.doorkeeper)


def authorization(request: Request) -> list[str]:
    return request.headers.getlist("authorization")


def address(request: Request) -> str | None:
    """Of the client, or of the proxy that is not trusted to name it; None where there is no network between us."""
    return None if request.client is None else request.client.host


def session_cookie(request: Request, value: str, seconds: int, same_site: str) -> str:
    secure = "; Secure" if request.scope["scheme"] == "https" else ""
    return f"{SESSION_COOKIE}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite={same_site}{secure}"


def same_site(request: Request, settings: Settings) -> str:
    """Which requests a session's cookie comes with: those of our own site alone, where that is enough.

    A page of another site gets its cookie only with `SameSite=None; Secure`; `Partitioned`, the cookie is that page's
    and no third party's (browsers that block those keep it). Raises `forbidden` where no cookie would come back.
    """
    if request.headers.get("origin") not in settings.cors_origins or _evidence(request):
        return "Strict"
    if not settings.cors_credentials:
        message = "a page elsewhere gets no cookie here: RELAY_CORS_CREDENTIALS is off; send the token itself"
        raise RelayError("forbidden", message, param="Origin", phase="admission")
    if request.headers.get("sec-fetch-site") != "cross-site":
        return "Strict"
    if request.scope["scheme"] != "https":
        message = "a page of another site gets its cookie over https alone; send the token itself"
        raise RelayError("forbidden", message, param="Origin", phase="admission")
    return "None; Partitioned"


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

    With `proof` the request must show that it is no such thing: the same origin, an origin of the CORS list, or a
    bearer's `Authorization`, which no page can make a browser add: other schemes a browser adds by itself, for a proxy
    before us. Without, it is enough that nothing speaks against it.
    """
    headers = request.headers
    origin = headers.get("origin")
    if origin is not None and origin in cors_origins:
        return
    evidence = _evidence(request)
    if evidence is False or (evidence is None and proof):
        if any(value.lower().startswith("bearer ") for value in authorization(request)):
            return
        message = "ask from the relay's own pages, from an origin in RELAY_CORS_ORIGINS or with an Authorization header"
        raise RelayError("forbidden", message, param="Origin", phase="admission")


def _stranger(request: Request, where: str | None) -> Visitor:
    """Its subject is a cookie of 128 random bits that no script can read."""
    grant = doorkeeper(request).stranger(where)
    subject = request.cookies.get(COOKIE, "")
    if _SUBJECT.fullmatch(subject):
        caller = Caller("", subject)
        return Visitor(caller, None, caller, grant)
    subject = secrets.token_hex(16)
    secure = "; Secure" if request.scope["scheme"] == "https" else ""
    cookie = f"{COOKIE}={subject}; Path=/; HttpOnly; SameSite=Strict{secure}"
    return Visitor(Caller("", None), cookie, Caller("", subject), grant)


def _evidence(request: Request) -> bool | None:
    """Whether a page of ours asks; None where nothing tells."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    return _same_origin(request, request.headers.get("origin") or request.headers.get("referer"))


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
