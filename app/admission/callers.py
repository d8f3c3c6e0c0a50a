"""Who asks, and what they may ask for."""

import msgspec


class Caller(msgspec.Struct, frozen=True):
    """Whom a stream belongs to: a credential's name ("" without one) and a subject, None where the client proved none.

    Names are `key:NAME` and `jwt:NAME`, after the tables of `relay.toml`; a key by itself has the subject "", that of
    the application. Two requests without a subject are the same caller: what keeps them apart is that neither can guess
    an id.
    """

    key: str
    subject: str | None

    def may_see(self, owner: "Caller") -> bool:
        return self.key == owner.key and (owner.subject is None or owner.subject == self.subject)


class Quota(msgspec.Struct, frozen=True):
    """How much may be used under one name; None is no limit. A request counts under all of its caller's quotas."""

    scope: str
    max_streams: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None


class Grant(msgspec.Struct, frozen=True):
    """What a caller may ask for, whatever it is that it asks. Empty `models` and `profiles` allow all.

    `caps` are the most of each parameter, by its name; a list for each that has a say. `name` stands in logs and
    metrics.
    """

    name: str = "anonymous"
    models: frozenset[str] = frozenset()
    profiles: frozenset[str] = frozenset()
    caps: tuple["Caps", ...] = ()
    max_answer_bytes: int | None = None
    quotas: tuple[Quota, ...] = ()


class Caps(msgspec.Struct, frozen=True):
    """The most that may be asked for; None is no limit."""

    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    temperature: float | None = None
    messages: int | None = None
    prompt_bytes: int | None = None


EVERYTHING = Grant()
"""The grant of callers that nothing is known of, where nothing is limited."""
