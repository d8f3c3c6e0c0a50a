"""The tables of `relay.toml`: upstreams, profiles, and who may ask for how much.

[upstreams.NAME]  where answers come from; without one there is a single upstream, that of OPENAI_*
[profiles.NAME]   what the server decides about a chat, so that its client cannot
[keys.NAME]       callers with an API key of ours
[issuers.NAME]    callers with a JSON Web Token of somebody whom we trust
[anonymous]       callers without either
[webhook]         whom to tell of each stream that has ended
"""

import re
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from app.settings.kinds import Count, HttpUrl, Seconds, Table
from app.settings.parameters import ChatParameters, Object
from app.settings.secrets import Named, secret

MAX_TOKEN_SECONDS: Final = 600
"""A browser token lives this long at most (contract §1)."""

SECRET_ALGORITHMS: Final = {"HS256", "HS384", "HS512"}

RESERVED: Final = {"model", "messages", "stream", "stream_options", "n"}
"""Fields of an upstream request that belong to the relay or to the client."""

_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", re.ASCII)
_HEADER_VALUE: Final = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?", re.ASCII)
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
OnDisconnect = Literal["cancel", "wait", "continue"]
Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "HS256", "HS384", "HS512"
]


class AttemptTimeouts(Table):
    """Limits of one attempt at an upstream, within those of the request. What is absent is the request's."""

    connect: Seconds | None = Field(None, description="to connect")
    first_token: Seconds | None = Field(None, description="to the first content; then another upstream is tried")
    idle: Seconds | None = Field(None, description="between two pieces of content")


class UpstreamTable(Named):
    """`[upstreams.NAME]`: an OpenAI-compatible service."""

    base_url: HttpUrl = Field(
        description="up to and without `/chat/completions`; with `azure_api_version` the endpoint"
    )
    api_key_env: str | None = Field(None, description="the variable that holds its key")
    api_key_file: Path | None = Field(None, description="the file that holds its key")
    models: tuple[str, ...] = Field((), description="the models it serves; without a list, whatever is asked for")
    aliases: dict[str, str] = Field({}, description="names for clients, and the model that is meant")
    priority: int = Field(0, description="the lowest that can be asked is asked")
    weight: float = Field(1, gt=0, le=1_000_000, description="its part among upstreams of the same priority")
    max_streams: Count | None = Field(None, description="streams at once that it is asked for")
    timeouts: AttemptTimeouts = Field(
        AttemptTimeouts(), description="limits of one attempt: connect, first_token, idle"
    )
    headers: dict[str, str] = Field({}, description="put into each request to it")
    body: Object = Field({}, description="put into the body of each request to it")
    finish_reason: Literal["required", "optional"] | None = Field(None, description="else RELAY_FINISH_REASON")
    stream_options: bool = Field(True, description="false: it is never asked for usage")
    azure_api_version: str | None = Field(None, description="Azure's URLs, with this `api-version`")
    proxy: HttpUrl | None = Field(None, description="else HTTPS_PROXY, HTTP_PROXY and NO_PROXY")
    ca_file: Path | None = Field(None, description="the certificates that it is trusted by, instead of the system's")
    client_certificate_file: Path | None = Field(None, description="our certificate, in PEM")
    client_key_file: Path | None = Field(None, description="its key, where it is in a file of its own")

    @field_validator("headers")
    @classmethod
    def _sendable_headers(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
                raise ValueError(f"{name!r} is no header that can be sent")
        return headers

    @field_validator("body")
    @classmethod
    def _not_ours(cls, body: dict[str, Any]) -> dict[str, Any]:
        if taken := RESERVED & body.keys():
            raise ValueError(f"`{min(taken)}` cannot be set here")
        return body

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.api_key_env and self.api_key_file:
            raise ValueError("name either `api_key_env` or `api_key_file`")
        if self.client_key_file and not self.client_certificate_file:
            raise ValueError("`client_key_file` needs `client_certificate_file`")
        return self

    def api_key(self, name: str) -> SecretStr | None:
        return secret(self.api_key_env, self.api_key_file, where=f"upstreams.{name}.api_key_env")


class CapsTable(Table):
    """The most that may be asked for. `max_tokens` is set where a client sets none; it bounds both of its names."""

    max_tokens: Count | None = Field(None, description="tokens of an answer, as `max_tokens`")
    max_completion_tokens: Count | None = Field(None, description="the same, for models that know it by this name")
    n: Count | None = Field(None, description="answers to one request")
    temperature: float | None = Field(None, ge=0, description="the temperature")
    messages: Count | None = Field(None, description="messages in a request")
    prompt_bytes: Count | None = Field(None, description="UTF-8 bytes of all that a request has a model read")


class ProfileTable(Table):
    """`[profiles.NAME]`: what is set here cannot be sent by a client."""

    model: str | None = Field(None, min_length=1, description="the model")
    system: str | None = Field(None, description="the system message; clients cannot send one")
    parameters: ChatParameters = Field(ChatParameters(), description="parameters of chat completions, tools included")
    caps: CapsTable = Field(CapsTable(), description="the most that clients may ask for")
    on_disconnect: OnDisconnect | None = Field(None, description="`cancel`, `wait` or `continue`, permitted here")
    webhook_text: bool = Field(False, description="the webhook is told the answer as well")


class Allowance(Table):
    """What a caller may ask for. Empty `models` and `profiles` allow all; where profiles are named, one is used."""

    models: tuple[str, ...] = Field((), description="the models it may name")
    profiles: tuple[str, ...] = Field((), description="the profiles it may use, of which it has to use one")
    caps: CapsTable = Field(CapsTable(), description="the most that it may ask for")
    max_answer_bytes: Annotated[int, Field(ge=1024)] | None = Field(None, description="one whole answer")
    max_streams: Count | None = Field(None, description="streams at once, those in the queue included")
    requests_per_minute: Count | None = Field(None, description="streams begun in a minute")
    tokens_per_minute: Count | None = Field(None, description="tokens of prompts and answers in a minute")
    tokens_per_day: Count | None = Field(None, description="the same in a day")


class KeyTable(Allowance):
    """`[keys.NAME]`: callers that send one of these API keys. Two at a time let a key be changed without a gap."""

    sha256: tuple[Hash, ...] = Field(min_length=1, description="as `sse-relay keys new` prints them")
    expires: datetime | date | None = Field(None, description="a date ends with its day, UTC")
    mint: bool = Field(False, description="may make browser tokens at POST /tokens")

    @field_validator("sha256", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @property
    def expires_at(self) -> float | None:
        """Seconds since the epoch."""
        match self.expires:
            case None:
                return None
            case datetime() as moment:
                return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
            case day:
                return datetime.combine(day, time.max, UTC).timestamp()


class IssuerTable(Allowance):
    """`[issuers.NAME]`: callers that send a JWT of this issuer. The limits are those of each subject."""

    issuer: str = Field(min_length=1, description="the `iss` of its tokens")
    audience: str = Field(min_length=1, description="the `aud` that its tokens must have")
    jwks_url: HttpUrl | None = Field(None, description="where its keys are published")
    jwks_file: Path | None = Field(None, description="its keys, as a JSON Web Key Set or in PEM")
    algorithms: tuple[Algorithm, ...] = Field(
        ("RS256", "ES256", "EdDSA"), min_length=1, description="how it signs; no other way is accepted"
    )
    leeway_seconds: Annotated[float, Field(ge=0, le=300)] = Field(30, description="how far its clock may be off")

    @model_validator(mode="after")
    def _keys(self) -> Self:
        if (self.jwks_url is None) == (self.jwks_file is None):
            raise ValueError("name either `jwks_url` or `jwks_file`")
        kinds = {algorithm in SECRET_ALGORITHMS for algorithm in self.algorithms}
        if len(kinds) > 1:
            raise ValueError("`algorithms` are of shared secrets or of key pairs, not of both")
        if kinds == {True} and self.jwks_url is not None:
            raise ValueError("a shared secret is not published: HS… needs `jwks_file`")
        return self


class WebhookTable(Named):
    """`[webhook]`: is posted a signed JSON object for each stream that has ended (Standard Webhooks)."""

    url: HttpUrl = Field(description="where calls go")
    secret_env: str | None = Field(None, description="the variable that holds what calls are signed with")
    secret_file: Path | None = Field(None, description="the file that holds it")
    timeout_seconds: Seconds = Field(10, description="for the receiver to answer")
    attempts: Annotated[int, Field(ge=1, le=20)] = Field(6, description="tries of one call")
    max_queued: Count = Field(1000, description="calls that wait; one more is dropped, counted and logged")

    @model_validator(mode="after")
    def _signed(self) -> Self:
        if (self.secret_env is None) == (self.secret_file is None):
            raise ValueError("name either `secret_env` or `secret_file`: a call is always signed")
        return self

    def secret(self) -> SecretStr:
        found = secret(self.secret_env, self.secret_file, where="webhook.secret_env")
        assert found is not None  # `_signed`
        return found


TABLE_KINDS: Final[dict[str, type[Table]]] = {
    "[upstreams.NAME]": UpstreamTable,
    "timeouts of an upstream": AttemptTimeouts,
    "[profiles.NAME]": ProfileTable,
    "caps": CapsTable,
    "[keys.NAME]": KeyTable,
    "[issuers.NAME]": IssuerTable,
    "[anonymous]": Allowance,
    "[webhook]": WebhookTable,
}
"""All kinds of tables, as they are called in docs/configuration.md."""
