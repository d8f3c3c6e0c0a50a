"""Kinds of values that settings have."""

from typing import Annotated, Final
from urllib.parse import parse_qs, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_settings import NoDecode

KiB: Final = 1024
MiB: Final = 1024 * KiB

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
SecondsOrOff = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
Names = Annotated[tuple[str, ...], NoDecode]
Count = Annotated[int, Field(ge=1)]
TableName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""What a table of `relay.toml` is called: it stands in logs and metrics."""


def _http(url: str) -> str:
    if not url.startswith(("http://", "https://")) or any(map(str.isspace, url)) or not urlsplit(url).hostname:
        raise ValueError("must be an http:// or https:// URL")
    return url


HttpUrl = Annotated[str, AfterValidator(_http)]


class Table(BaseModel):
    """A table of `relay.toml`; a name that it does not know is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


REDIS_OPTIONS: Final = {
    *("db", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"),
}


def check_redis_url(url: str) -> None:
    """Raises ValueError, without the URL in its words: there may be a password in it."""
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("must be a redis://, rediss:// or unix:// URL of one server; cluster and sentinel are not")
    try:
        parts = urlsplit(url)
        reachable = parts.path if parts.scheme == "unix" else parts.hostname and parts.port != 0
    except ValueError:
        reachable = None
    if not reachable:
        raise ValueError("names no server; in a password `/`, `@`, `:` and `#` are written %2F, %40, %3A and %23")
    if parse_qs(parts.query, keep_blank_values=True).keys() - REDIS_OPTIONS:
        raise ValueError(f"has an option that is not known here; there are {', '.join(sorted(REDIS_OPTIONS))}")
