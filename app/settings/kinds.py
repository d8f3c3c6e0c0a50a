"""Kinds of values that settings have."""

from typing import Annotated, Final
from urllib.parse import urlsplit

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
