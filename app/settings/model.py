"""The settings themselves: what an operator can choose, and what it is unless he does."""

import re
from ipaddress import ip_network
from typing import Final, Literal

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from app.settings import secrets
from app.settings.kinds import HttpUrl, KiB, MiB, Names, Seconds, SecondsOrOff, TableName, check_redis_url
from app.settings.tables import Allowance, IssuerTable, KeyTable, ProfileTable, UpstreamTable, WebhookTable

PREFIX: Final = "RELAY_"
TABLES: Final = ("upstreams", "profiles", "keys", "issuers", "anonymous", "webhook")
"""Settings that are tables of `relay.toml` (docs/configuration.md), not single values."""

_ORIGIN: Final = re.compile(r"https?://[^/\s?#@]+")


class Settings(BaseSettings):
    """What an operator can choose. A field `x` is the variable `RELAY_X`; the two of the SDK keep their own names."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=secrets.ENV_FILE,
        toml_file="relay.toml",
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
    )

    openai_api_key: SecretStr | None = Field(
        None, validation_alias=AliasChoices("OPENAI_API_KEY", "openai_api_key"), description="upstream's key"
    )
    openai_base_url: HttpUrl = Field(
        "https://api.openai.com/v1",
        validation_alias=AliasChoices("OPENAI_BASE_URL", "openai_base_url"),
        description="where upstream's OpenAI-compatible API lives",
    )
    default_model: str | None = Field(None, description="the model of requests that name none")
    upstreams: dict[TableName, UpstreamTable] = Field({}, description="several upstreams, instead of that of OPENAI_*")
    profiles: dict[TableName, ProfileTable] = Field({}, description="what the server decides about a chat")
    keys: dict[TableName, KeyTable] = Field({}, description="callers with an API key")
    issuers: dict[TableName, IssuerTable] = Field({}, description="callers with a JSON Web Token")
    anonymous: Allowance = Field(Allowance(), description="callers with neither, by their address")
    webhook: WebhookTable | None = Field(None, description="whom to tell of each stream that has ended")
    token_secret: SecretStr | None = Field(
        None, min_length=32, description="signs browser tokens; without one each process has its own"
    )
    session_seconds: Seconds = Field(3600, description="how long the cookie for a browser token is good")
    http_proxy: str | None = Field(
        None, validation_alias=AliasChoices("HTTP_PROXY", "http_proxy"), description="the proxy to http:// upstreams"
    )
    https_proxy: str | None = Field(
        None, validation_alias=AliasChoices("HTTPS_PROXY", "https_proxy"), description="the proxy to https:// upstreams"
    )
    no_proxy: str = Field(
        "", validation_alias=AliasChoices("NO_PROXY", "no_proxy"), description="hosts that are reached without one"
    )
    finish_reason: Literal["required", "optional"] = Field(
        "required", description="`optional`: an answer that ends without a finish_reason counts as whole"
    )

    host: str = Field("127.0.0.1", description="the address to listen on")
    port: int = Field(8000, ge=0, le=65_535, description="the port to listen on; 0 takes a free one")
    admin_host: str = Field("127.0.0.1", description="the address of the admin listener: metrics, readiness in detail")
    admin_port: int = Field(8001, ge=-1, le=65_535, description="its port; 0 takes a free one, -1 is none")
    allow_anonymous: bool = Field(False, description="serve callers without a key: beyond loopback, or beside others")
    trusted_proxies: Names = Field(
        ("127.0.0.1", "::1"), description="addresses and networks whose X-Forwarded-For and -Proto are believed"
    )
    allowed_hosts: Names = Field((), description="Host names served beside loopback, comma-separated; `*.name`, `*`")
    cors_origins: Names = Field((), description="exact origins of pages that may call from elsewhere, comma-separated")
    cors_credentials: bool = Field(False, description="let those pages send the relay's cookies")

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
    breaker_failures: int = Field(5, ge=0, description="failures in a row that take an upstream out; 0 never does")
    breaker_open_seconds: Seconds = Field(10, description="until an upstream that was taken out is tried again")
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
    max_queued: int = Field(100, ge=0, description="requests that wait while all streams are taken")
    queue_timeout_seconds: Seconds = Field(10, description="how long one of them waits at most")
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

    otel_exporter_otlp_endpoint: HttpUrl | None = Field(
        None,
        validation_alias=AliasChoices("OTEL_EXPORTER_OTLP_ENDPOINT", "otel_exporter_otlp_endpoint"),
        description="where traces go, by OTLP over HTTP: `http://localhost:4318`; needs `sse-relay[otel]`",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="what is logged")
    log_format: Literal["auto", "json", "console"] = Field("auto", description="`auto`: console on a terminal")

    @field_validator("allowed_hosts", "cors_origins", "trusted_proxies", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("redis_url")
    @classmethod
    def _one_server(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            check_redis_url(url.get_secret_value())
        return url

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in proxies:
            try:
                ip_network(proxy)
            except ValueError:
                raise ValueError(f"{proxy!r} is no address and no network such as 10.0.0.0/8") from None
        return proxies

    @field_validator("http_proxy", "https_proxy")
    @classmethod
    def _http(cls, proxy: str | None) -> str | None:
        if proxy is not None and not proxy.startswith(("http://", "https://")):
            raise ValueError("must be an http:// or https:// URL")
        return proxy

    @field_validator("cors_origins")
    @classmethod
    def _exact(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
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
        if (
            secrets.SECRETS_FOLDER.is_dir()
        ):  # asked for in vain, pydantic-settings warns at every start outside a container
            file_secret_settings = SecretsSettingsSource(settings_cls, secrets.SECRETS_FOLDER)
        return init_settings, env_settings, dotenv_settings, toml, file_secret_settings
