"""What the tables of `relay.toml` allow, as what admission reads."""

from typing import Final, Self

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
    grant = Terms.of(scope, table).grant_to(scope)
    return Application(name, Admitted(Caller(scope, ""), grant), table.expires_at, table.mint)


class Terms(msgspec.Struct, frozen=True):
    """What a table allows, before it is known who is counted: the quota is None where nothing is limited."""

    grant: Grant
    quota: Quota | None

    @classmethod
    def of(cls, name: str, table: Allowance) -> Self:
        """`name` is that of its callers in logs and metrics."""
        caps = Caps(**table.caps.model_dump())
        grant = Grant(
            name=name,
            models=frozenset(table.models),
            profiles=frozenset(table.profiles),
            caps=() if caps == Caps() else (caps,),
            max_answer_bytes=table.max_answer_bytes,
        )
        return cls(grant, _quota(table))

    def grant_to(self, scope: str) -> Grant:
        if self.quota is None:
            return self.grant
        return msgspec.structs.replace(self.grant, quotas=(msgspec.structs.replace(self.quota, scope=scope),))

    def to_subject(self, subject: str) -> Admitted:
        """A subject of an issuer: each has the limits for itself."""
        name = self.grant.name
        return Admitted(Caller(name, subject), self.grant_to(of_subject(name, subject) if self.quota else name))

    def to_stranger(self, host: str | None) -> Grant:
        """A stranger can throw its cookie away: its address is counted."""
        return self.grant_to(of_address(host) if self.quota else self.grant.name)


def to_bearer(application: Application, token: BrowserToken) -> Admitted:
    """A subject of a browser token: what the key may do, and of that what the token says."""
    scope, grant = application.admitted.caller.key, application.admitted.grant
    quota = None if token.limits is None else _quota(token.limits)
    own = () if quota is None else (msgspec.structs.replace(quota, scope=of_subject(scope, token.sub)),)
    profiles = grant.profiles if token.profile is None else frozenset({token.profile})
    narrowed = msgspec.structs.replace(grant, profiles=profiles, quotas=grant.quotas + own)
    return Admitted(Caller(scope, token.sub), narrowed)


def _quota(limits: Allowance | Limits) -> Quota | None:
    """None where nothing is limited: what need not be counted is not."""
    quota = Quota("", **{name: getattr(limits, name) for name in LIMITS})
    return None if quota == Quota("") else quota
