"""The settings for human eyes: what is in force and where it came from, and the table of the README."""

from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

import msgspec
from pydantic import BaseModel, SecretStr
from pydantic_settings import (
    DotEnvSettingsSource,
    EnvSettingsSource,
    SecretsSettingsSource,
    TomlConfigSettingsSource,
)

from app.settings import secrets
from app.settings.kinds import KiB, MiB
from app.settings.loading import variable
from app.settings.model import TABLES, Settings
from app.settings.tables import TABLE_KINDS

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
    """Every setting as it holds, secrets masked; of the tables what is set in them."""
    found = list(_found())
    rows: list[Row] = []
    for name, field in Settings.model_fields.items():
        source = next((place for place, names in found if name in names), "default")
        single = {variable(name): _masked(name, getattr(settings, name))} if name not in TABLES else {}
        values = single or dict(_flat(name, getattr(settings, name)))
        rows += [
            Row(variable=shown, value=value, source=source, meaning=field.description or "")
            for shown, value in values.items()
        ]
    return rows


def _flat(place: str, value: object) -> Iterator[tuple[str, Value]]:
    """What was set in a table, by its place in `relay.toml`. Headers are shown by name: some are keys."""
    match value:
        case BaseModel():
            for name in value.model_fields_set:
                yield from _flat(f"{place}.{name}", getattr(value, name))
        case dict() if place.endswith(".headers"):
            yield place, tuple(value)
        case dict():
            for name, inner in value.items():
                yield from _flat(f"{place}.{name}", inner)
        case str() if place.endswith(("url", "proxy")):
            yield place, _without_credentials(value)
        case None | str() | int() | float() | bool():
            yield place, value
        case _:
            yield place, str(value)


def mask(secret: str) -> str:
    """At most the last four characters, enough to tell two keys apart; nothing of a short one."""
    if len(secret) < SHORTEST_SHOWN_SECRET:
        return "…"
    return ("sk-…" if secret.startswith("sk-") else "…") + secret[-4:]


def table() -> str:
    """The settings as a Markdown table, for the README between `<!-- settings -->` and `<!-- /settings -->`."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        if name in TABLES:
            continue
        meaning = (field.description or "").replace("|", "\\|")
        lines.append(f"| `{variable(name)}` | {_readable(name, field.default)} | {meaning} |")
    return "\n".join(lines)


def tables() -> str:
    """What the tables of `relay.toml` may hold, for docs/configuration.md."""
    parts: list[str] = []
    for heading, model in TABLE_KINDS.items():
        parts += [f"### `{heading}`", "", "| name | default | meaning |", "|---|---|---|"]
        for name, field in model.model_fields.items():
            default = "required" if field.is_required() else _readable(name, field.default)
            parts.append(f"| `{name}` | {default} | {field.description} |")
        parts.append("")
    return "\n".join(parts).strip()


def _found() -> Iterator[tuple[str, set[str]]]:
    """Which fields each source gives, the strongest source first."""
    sources = [
        ("environment", EnvSettingsSource(Settings)),
        (".env", DotEnvSettingsSource(Settings)),
        ("relay.toml", TomlConfigSettingsSource(Settings)),
    ]
    if secrets.SECRETS_FOLDER.is_dir():
        sources.append((str(secrets.SECRETS_FOLDER), SecretsSettingsSource(Settings, secrets.SECRETS_FOLDER)))
    for place, source in sources:
        yield place, {name.lower() for name in source()}


def _masked(name: str, value: object) -> Value:
    match value:
        case SecretStr():
            return mask(value.get_secret_value())
        case str() if name.endswith(("_url", "_proxy", "_endpoint")):
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
        case None | () | "" | BaseModel():
            return "none"
        case dict():
            return "none"
        case tuple():
            return f"`{','.join(default)}`"
        case bool():
            return f"`{str(default).lower()}`"
        case int() | float() if name.endswith("_seconds"):
            return f"{default:g} s"
        case int() if name.endswith("_bytes") and default:
            return f"{default // MiB} MiB" if default % MiB == 0 else f"{default // KiB} KiB"
        case _:
            return f"`{default}`"
