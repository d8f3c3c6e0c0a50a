"""The settings for human eyes: what is in force and where it came from, and the table of the README."""

from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

import msgspec
from pydantic import SecretStr
from pydantic_settings import (
    DotEnvSettingsSource,
    EnvSettingsSource,
    SecretsSettingsSource,
    TomlConfigSettingsSource,
)

from app.settings import SECRETS_FOLDER, KiB, MiB, Settings, variable

SHORTEST_SHOWN_SECRET: Final = 12
"""Of a shorter one, four characters would be a third and more of the secret."""


Value = str | int | float | bool | tuple[str, ...] | None


class Row(msgspec.Struct, frozen=True):
    """One setting in force. `value` is masked and of JSON's types; `source` says where it came from."""

    variable: str
    value: Value
    source: str
    meaning: str


def effective(settings: Settings) -> list[Row]:
    """Every setting as it holds, secrets masked."""
    found = list(_found())
    return [
        Row(
            variable=variable(name),
            value=_masked(name, getattr(settings, name)),
            source=next((place for place, names in found if name in names), "default"),
            meaning=field.description or "",
        )
        for name, field in Settings.model_fields.items()
    ]


def mask(secret: str) -> str:
    """At most the last four characters, enough to tell two keys apart; nothing of a short one."""
    if len(secret) < SHORTEST_SHOWN_SECRET:
        return "…"
    return ("sk-…" if secret.startswith("sk-") else "…") + secret[-4:]


def table() -> str:
    """The settings as a Markdown table, for the README between `<!-- settings -->` and `<!-- /settings -->`."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        meaning = (field.description or "").replace("|", "\\|")
        lines.append(f"| `{variable(name)}` | {_readable(name, field.default)} | {meaning} |")
    return "\n".join(lines)


def _found() -> Iterator[tuple[str, set[str]]]:
    """Which fields each source gives, the strongest source first."""
    sources = [
        ("environment", EnvSettingsSource(Settings)),
        (".env", DotEnvSettingsSource(Settings)),
        ("relay.toml", TomlConfigSettingsSource(Settings)),
    ]
    if SECRETS_FOLDER.is_dir():
        sources.append((str(SECRETS_FOLDER), SecretsSettingsSource(Settings, SECRETS_FOLDER)))
    for place, source in sources:
        yield place, {name.lower() for name in source()}


def _masked(name: str, value: object) -> Value:
    match value:
        case SecretStr():
            return mask(value.get_secret_value())
        case str() if name.endswith("_url"):
            return _without_credentials(value)
        case None | str() | int() | float() | bool() | tuple():
            return value
        case _:
            raise TypeError(f"{name} has a type that this listing does not know: {type(value).__name__}")


def _without_credentials(url: str) -> str:
    """Some gateways take their key as the URL's user or in its query."""
    parts = urlsplit(url)
    address = parts.netloc.rpartition("@")[2]
    return parts._replace(
        netloc=f"…@{address}" if "@" in parts.netloc else address, query="…" * bool(parts.query)
    ).geturl()


def _readable(name: str, default: object) -> str:
    match default:
        case None | ():
            return "none"
        case bool():
            return f"`{str(default).lower()}`"
        case int() | float() if name.endswith("_seconds"):
            return f"{default:g} s"
        case int() if name.endswith("_bytes") and default:
            return f"{default // MiB} MiB" if default % MiB == 0 else f"{default // KiB} KiB"
        case _:
            return f"`{default}`"
