"""The operator's door: reads the settings from every source and says all that is wrong with them at once.

Sources, the first wins: environment, `.env`, `relay.toml`, files named after the setting in `/run/secrets`.
"""

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from typing import Final

from pydantic import AliasChoices, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import DotEnvSettingsSource, TomlConfigSettingsSource

from app.settings.model import PREFIX, TABLES, Settings
from app.settings.secrets import SettingsError
from app.settings.tables import TABLE_KINDS, Allowance

SECRETS: Final = {"RELAY_REDIS_URL", "RELAY_TOKEN_SECRET", "HTTP_PROXY", "HTTPS_PROXY", "OTEL_EXPORTER_OTLP_ENDPOINT"}


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
        raise SettingsError([*unknown, *map(_sentence, _told(error))]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError([f"relay.toml or .env cannot be read: {error}"]) from None
    except OSError as error:
        raise SettingsError([f"{error.filename or 'relay.toml or .env'} cannot be read: {error.strerror}"]) from None
    if problems := [*unknown, *_contradictions(settings), *_missing_secrets(settings)]:
        raise SettingsError(problems)
    return settings


def _told(error: ValidationError) -> Iterator[ErrorDetails]:
    """Without what only follows: a list of which an item is wrong is too short as well."""
    faults = error.errors()
    for fault in faults:
        place = fault["loc"]
        inside = any(other["loc"][: len(place)] == place for other in faults if other is not fault)
        if fault["type"] != "too_short" or not inside:
            yield fault


def variable(field: str) -> str:
    """The environment variable of a field."""
    alias = Settings.model_fields[field].validation_alias
    return str(alias.choices[0]) if isinstance(alias, AliasChoices) else PREFIX + field.upper()


def _unknown_names() -> Iterator[str]:
    """A misspelt setting would be passed over in silence, and its default be found out in production."""
    variables = [variable(field) for field in Settings.model_fields]
    known = {*variables, *_named_by_tables(TomlConfigSettingsSource(Settings).toml_data)}
    for place, names in (("", os.environ), (" in .env", DotEnvSettingsSource(Settings).env_vars)):
        for name in sorted(name.upper() for name in names):
            if name.startswith(PREFIX) and name not in known:
                yield _no_setting(name, place, variables)
    fields = [*Settings.model_fields]
    for name in TomlConfigSettingsSource(Settings).toml_data:
        if name not in fields:
            yield _no_setting(name, " in relay.toml", fields)


def _named_by_tables(table: object) -> Iterator[str]:
    """Variables that hold a table's secret may be called as they like."""
    for name, value in table.items() if isinstance(table, dict) else ():
        if str(name).endswith("_env") and isinstance(value, str):
            yield value.upper()
        yield from _named_by_tables(value)


def _no_setting(name: str, place: str, known: list[str]) -> str:
    bare = {other.removeprefix(PREFIX): other for other in known}  # the prefix alone would make strangers look alike
    near = difflib.get_close_matches(name.removeprefix(PREFIX), bare, n=1)
    return f"{name}{place} is no setting; " + (f"did you mean {bare[near[0]]}?" if near else "README.md lists them all")


def _sentence(error: ErrorDetails) -> str:
    if error["loc"][0] in TABLES:
        return _table_sentence(error)
    name = variable(str(error["loc"][0]).lower())
    rule = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    # A key pasted into the wrong variable of the two is still a key.
    shown = "" if name.startswith("OPENAI_") or name in SECRETS else f"={str(error['input'])[:60]!r}"
    return f"{name}{shown}: {rule.split(', unable to')[0]}"


_FIELDS: Final = {field for table in TABLE_KINDS.values() for field in table.model_fields}


def _table_sentence(error: ErrorDetails) -> str:
    """Without the value: a key may have been written where its variable's name belongs."""
    place = ".".join(str(part) for part in error["loc"] if part != "[key]")
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(error["loc"][-1]), _FIELDS, n=1)
        hint = f"did you mean `{near[0]}`?" if near else "docs/configuration.md lists them all"
        return f"{place} is no setting of its table; {hint}"
    if error["type"] == "string_pattern_mismatch":
        return f"{place}: must have the form {error['ctx']['pattern']}"
    rule = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{place}: {rule.split(', unable to')[0]}"


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
    for place, allowance in _allowances(settings):
        for profile in sorted({*allowance.profiles} - {*settings.profiles}):
            yield f"{place}.profiles: there is no profile `{profile}`"
    yield from _unserved(settings)
    if settings.redis_url and settings.token_secret is None and any(key.mint for key in settings.keys.values()):
        yield "RELAY_TOKEN_SECRET is needed: with RELAY_REDIS_URL a token of one process is shown to another"


def _unserved(settings: Settings) -> Iterator[str]:
    """Models that somebody is to be given and that no upstream has; where one has no list, it may have any."""
    tables = settings.upstreams.values()
    if not tables or not all(table.models for table in tables):
        return
    served = {name for table in tables for name in (*table.models, *table.aliases)}
    named = [("RELAY_DEFAULT_MODEL", settings.default_model)]
    named += [(f"profiles.{name}.model", profile.model) for name, profile in settings.profiles.items()]
    named += [(f"{place}.models", model) for place, allowance in _allowances(settings) for model in allowance.models]
    for place, model in named:
        if model is not None and model not in served:
            yield f"{place}: no upstream serves `{model}`"


def _allowances(settings: Settings) -> Iterator[tuple[str, Allowance]]:
    yield "anonymous", settings.anonymous
    tables: Mapping[str, Allowance]
    for kind, tables in (("keys", settings.keys), ("issuers", settings.issuers)):
        for name, allowance in tables.items():
            yield f"{kind}.{name}", allowance


def _missing_secrets(settings: Settings) -> Iterator[str]:
    """What would be missed by the first request is missed by the operator."""
    for name, upstream in settings.upstreams.items():
        try:
            upstream.api_key(name)
        except SettingsError as error:
            yield from error.messages
    if settings.webhook is not None:
        try:
            settings.webhook.secret()
        except SettingsError as error:
            yield from error.messages
