"""What the tables of `relay.toml` allow, as what admission reads."""

from typing import Final

import msgspec

from app.admission.callers import Caller, Caps, Grant, Quota
from app.admission.scopes import of_address, of_subject
from app.admission.tokens import BrowserToken, Limits
from app.settings.tables import Allowance, KeyTable

LIMITS: Final = ("max_streams", "requests_per_minute", "tokens_per_minute", "tokens_per_day")


class Admitted(msgspec.Struct, frozen=True):
    """Somebody who proved who it is."""

    caller: Caller
    grant: Grant


class Application(msgspec.Struct, frozen=True):
    """A table of keys: who its keys are, until when, and whether they make browser tokens."""

    name: str
    admitted: Admitted
    expires_at: float | None
    mints: bool

    def is_over(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now


def application(name: str, table: KeyTable) -> Application:
    """A key by itself has the subject of the application that it was given to: none of its users, and not nobody."""
    scope = f"key:{name}"
    admitted = Admitted(Caller(scope, ""), allowed(scope, table, counted_as=scope))
    return Application(name, admitted, table.expires_at, table.mint)


def allowed(name: str, table: Allowance, *, counted_as: str | None = None) -> Grant:
    """A table's grant, under the name of its callers; without `counted_as` it has no quota yet."""
    caps = Caps(**table.caps.model_dump())
    return Grant(
        name=name,
        models=frozenset(table.models),
        profiles=frozenset(table.profiles),
        caps=() if caps == Caps() else (caps,),
        max_answer_bytes=table.max_answer_bytes,
        quotas=() if counted_as is None else quotas(counted_as, table),
    )


def quotas(scope: str, limits: Allowance | Limits) -> tuple[Quota, ...]:
    """None where nothing is limited: what need not be counted is not."""
    quota = Quota(scope, **{name: getattr(limits, name) for name in LIMITS})
    return () if quota == Quota(scope) else (quota,)


def to_subject(table: Allowance, base: Grant, subject: str) -> Admitted:
    """A subject of an issuer: each has the limits of the table for itself."""
    grant = msgspec.structs.replace(base, quotas=quotas(of_subject(base.name, subject), table))
    return Admitted(Caller(base.name, subject), grant)


def to_bearer(application: Application, token: BrowserToken) -> Admitted:
    """A subject of a browser token: what the key may do, and of that what the token says."""
    scope, grant = application.admitted.caller.key, application.admitted.grant
    own = () if token.limits is None else quotas(of_subject(scope, token.sub), token.limits)
    profiles = grant.profiles if token.profile is None else frozenset({token.profile})
    narrowed = msgspec.structs.replace(grant, profiles=profiles, quotas=grant.quotas + own)
    return Admitted(Caller(scope, token.sub), narrowed)


def to_stranger(table: Allowance, base: Grant, host: str | None) -> Grant:
    """An anonymous caller's. Its address is counted, since it can throw its cookie away."""
    return msgspec.structs.replace(base, quotas=quotas(of_address(host), table))
