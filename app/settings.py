"""Every setting, its default and its limits: the only reader of the environment.

Sources, the first wins: environment, `.env`, `relay.toml`, files named after the setting in `/run/secrets`.
`load` is the operator's door: it also refuses misspelt names and settings that contradict each other.
"""

import difflib
import os
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

KiB = 1024
MiB = 1024 * KiB

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
SecondsOrOff = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
Names = Annotated[tuple[str, ...], NoDecode]

PREFIX = "RELAY_"
SECRETS: Final = {"RELAY_REDIS_URL"}
SECRETS_FOLDER = Path("/run/secrets")


class Settings(BaseSettings):
    """What an operator can choose. A field `x` is the variable `RELAY_X`; the two of the SDK keep their own names."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=".env", toml_file="relay.toml", frozen=True, extra="ignore", env_ignore_empty=True
    )

    openai_api_key: SecretStr | None = Field(
        None, validation_alias=AliasChoices("OPENAI_API_KEY", "openai_api_key"), description="upstream's key"
    )
    openai_base_url: str = Field(
        "https://api.openai.com/v1",
        validation_alias=AliasChoices("OPENAI_BASE_URL", "openai_base_url"),
        description="where upstream's OpenAI-compatible API lives",
    )
    default_model: str | None = Field(None, description="the model of requests that name none")
    finish_reason: Literal["required", "optional"] = Field(
        "required", description="`optional`: an answer that ends without a finish_reason counts as whole"
    )

    host: str = Field("127.0.0.1", description="the address to listen on")
    port: int = Field(8000, ge=0, le=65_535, description="the port to listen on; 0 takes a free one")
    allow_anonymous: bool = Field(False, description="listen beyond loopback although callers need no key")
    allowed_hosts: Names = Field((), description="Host names served beside loopback, comma-separated; `*.name`, `*`")
    cors_origins: Names = Field((), description="exact origins of pages that may call from elsewhere, comma-separated")

    timeout_connect_seconds: Seconds = Field(10, description="to reach upstream, each attempt")
    timeout_first_token_seconds: Seconds = Field(60, description="to the first content, retries included")
    timeout_idle_seconds: Seconds = Field(60, description="between two pieces of content")
    timeout_total_seconds: Seconds = Field(600, description="for the whole answer")
    max_timeout_connect_seconds: Seconds = Field(30, description="the most a request may ask for")
    max_timeout_first_token_seconds: Seconds = Field(300, description="the most a request may ask for")
    max_timeout_idle_seconds: Seconds = Field(300, description="the most a request may ask for")
    max_timeout_total_seconds: Seconds = Field(3600, description="the most a request may ask for")
    attempts: int = Field(3, ge=1, le=10, description="tries at upstream before the first content; never after it")
    max_retry_wait_seconds: SecondsOrOff = Field(5, description="the longest wait between two tries")
    usage_wait_seconds: Seconds = Field(2, description="wait for usage after upstream's finish_reason")

    hold_status_seconds: SecondsOrOff = Field(3, description="hold the status line for upstream's first content")
    heartbeat_seconds: Seconds = Field(15, description="a `ping` after so long without bytes")
    send_timeout_seconds: Seconds = Field(15, description="a client that takes nothing for so long is cut off")
    max_connection_seconds: SecondsOrOff = Field(0, description="longest age of a response, ±10 %; 0 is none")
    first_frame_padding_bytes: int = Field(
        0, ge=0, le=32 * KiB, description="padding for proxies that hold back small frames"
    )
    sse_ids: Literal["auto", "always", "never"] = Field(
        "auto", description="`id:` lines; `auto`: as the client accepts"
    )
    wait_seconds: Seconds = Field(15, description="on_disconnect `wait`: how long a reader may be away")
    allow_continue: bool = Field(False, description="permit on_disconnect `continue`")
    max_detached_streams: int = Field(2, ge=0, description="generations a caller may leave running unread")

    max_body_bytes: int = Field(10 * MiB, ge=KiB, description="a request's body")
    body_timeout_seconds: Seconds = Field(30, description="for a request's body to arrive")
    head_timeout_seconds: Seconds = Field(30, description="for a request's line and headers to arrive")
    max_connections: int = Field(20_000, ge=1, description="open connections; one more is closed at once")
    max_header_bytes: int = Field(64 * KiB, ge=KiB, description="a request's line and headers")
    max_streams: int = Field(5000, ge=1, description="generations at once")
    max_readers_per_stream: int = Field(8, ge=1, description="readers of one stream at once")
    max_event_bytes: int = Field(4 * MiB, ge=KiB, description="one event from upstream")
    max_answer_bytes: int = Field(
        64 * MiB, ge=KiB, description="one whole answer; where chunks are passed on, with their JSON"
    )
    log_stream_bytes: int = Field(8 * MiB, ge=KiB, description="one stream's log; beyond it the stream is live only")
    log_caller_bytes: int = Field(64 * MiB, ge=KiB, description="all logs of one caller")
    log_total_bytes: int = Field(256 * MiB, ge=MiB, description="all logs of the process")
    log_lag_bytes: int = Field(256 * KiB, ge=KiB, description="how far the slowest reader of a full log may be behind")
    log_ttl_seconds: Seconds = Field(120, description="how long a finished stream can be read again")
    redis_url: SecretStr | None = Field(
        None, description="where several processes share their logs: `redis://`, `rediss://` or `unix://`"
    )
    redis_prefix: str = Field("relay", pattern=r"^[\w.:-]{1,64}$", description="the beginning of every key in Redis")
    redis_ttl_seconds: Seconds = Field(300, description="how long a finished stream can be read again from Redis")
    redis_lease_seconds: float = Field(
        5, ge=0.2, le=300, description="readers learn of a process's death after one to two of these"
    )
    redis_away: Literal["live_only", "refuse"] = Field(
        "live_only", description="streams that would be resumable, while Redis is away"
    )
    drain_grace_seconds: SecondsOrOff = Field(30, description="after SIGTERM: time for open streams to finish")

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="what is logged")
    log_format: Literal["auto", "json", "console"] = Field("auto", description="`auto`: console on a terminal")

    @field_validator("allowed_hosts", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("openai_base_url")
    @classmethod
    def _http(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")) or any(map(str.isspace, url)) or not urlsplit(url).hostname:
            raise ValueError("must be an http:// or https:// URL")
        return url

    @field_validator("redis_url")
    @classmethod
    def _one_server(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not url.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must be a redis://, rediss:// or unix:// URL of one server; cluster and sentinel are not")
        return url

    @field_validator("cors_origins")
    @classmethod
    def _exact(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin == "*" or not origin.startswith(("http://", "https://")) or origin.endswith("/"):
                raise ValueError(f"{origin!r} is not an exact origin such as https://app.example.com")
        return origins

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        toml = TomlConfigSettingsSource(settings_cls)
        if SECRETS_FOLDER.is_dir():  # asked for in vain, pydantic-settings warns at every start outside a container
            file_secret_settings = SecretsSettingsSource(settings_cls, SECRETS_FOLDER)
        return init_settings, env_settings, dotenv_settings, toml, file_secret_settings


class SettingsError(Exception):
    """Why the relay cannot start with these settings: one line each, naming the variable, never showing a secret."""

    def __init__(self, messages: Iterable[str]) -> None:
        self.messages: Final = tuple(messages)
        super().__init__("\n".join(self.messages))


def load(**overrides: object) -> Settings:
    """The settings of every source; `overrides`, fields by name, win over all of them unless they are None.

    Raises SettingsError with everything that is wrong at once.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        unknown = list(_unknown_names())
        settings = Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        # `from None`: pydantic's own text quotes the values, keys among them.
        raise SettingsError([*unknown, *map(_sentence, error.errors())]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError([f"relay.toml or .env cannot be read: {error}"]) from None
    if problems := [*unknown, *_contradictions(settings)]:
        raise SettingsError(problems)
    return settings


def variable(field: str) -> str:
    """The environment variable of a field."""
    alias = Settings.model_fields[field].validation_alias
    return str(alias.choices[0]) if isinstance(alias, AliasChoices) else PREFIX + field.upper()


def _unknown_names() -> Iterator[str]:
    """A misspelt setting would be passed over in silence, and its default be found out in production."""
    variables = [variable(field) for field in Settings.model_fields]
    for place, names in (("", os.environ), (" in .env", DotEnvSettingsSource(Settings).env_vars)):
        for name in sorted(name.upper() for name in names):
            if name.startswith(PREFIX) and name not in variables:
                yield _no_setting(name, place, variables)
    fields = [*Settings.model_fields]
    for name in TomlConfigSettingsSource(Settings).toml_data:
        if name not in fields:
            yield _no_setting(name, " in relay.toml", fields)


def _no_setting(name: str, place: str, known: list[str]) -> str:
    bare = {other.removeprefix(PREFIX): other for other in known}  # the prefix alone would make strangers look alike
    near = difflib.get_close_matches(name.removeprefix(PREFIX), bare, n=1)
    return f"{name}{place} is no setting; " + (f"did you mean {bare[near[0]]}?" if near else "README.md lists them all")


def _sentence(error: ErrorDetails) -> str:
    name = variable(str(error["loc"][0]).lower())
    rule = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    # A key pasted into the wrong variable of the two is still a key.
    shown = "" if name.startswith("OPENAI_") or name in SECRETS else f"={str(error['input'])[:60]!r}"
    return f"{name}{shown}: {rule.split(', unable to')[0]}"


_AT_MOST: Final = (
    ("timeout_connect_seconds", "max_timeout_connect_seconds"),
    ("timeout_first_token_seconds", "max_timeout_first_token_seconds"),
    ("timeout_idle_seconds", "max_timeout_idle_seconds"),
    ("timeout_total_seconds", "max_timeout_total_seconds"),
    ("max_event_bytes", "max_answer_bytes"),
    ("log_lag_bytes", "log_stream_bytes"),
    ("log_stream_bytes", "log_caller_bytes"),
    ("log_caller_bytes", "log_total_bytes"),
)


def _contradictions(settings: Settings) -> Iterator[str]:
    def given(field: str) -> str:
        return f"{variable(field)}={getattr(settings, field)}"

    for low, high in _AT_MOST:
        if getattr(settings, low) > getattr(settings, high):
            yield f"{given(low)} is more than {given(high)}; change one of them"
    if 0 < settings.max_connection_seconds <= settings.hold_status_seconds:
        yield f"{given('max_connection_seconds')} must be more than {given('hold_status_seconds')}: no byte would leave"
