"""Secrets that tables name: by a variable of the environment or by a file, never by their value."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from dotenv import dotenv_values
from pydantic import SecretStr, ValidationInfo, field_validator

from app.settings.kinds import Table

SECRETS_FOLDER: Final = Path("/run/secrets")
ENV_FILE: Final = ".env"

_VARIABLE: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}", re.ASCII)
"""A key that is pasted here would be told in an error, so what may be one is refused unread."""


class SettingsError(Exception):
    """Why the relay cannot start with these settings: one line each, naming the setting, never showing a secret."""

    def __init__(self, messages: Iterable[str]) -> None:
        self.messages: Final = tuple(messages)
        super().__init__("\n".join(self.messages))


def secret(variable: str | None, file: Path | None, *, where: str) -> SecretStr | None:
    """The secret that a table names; None where it names none. Raises SettingsError where there is nothing.

    A variable is looked for in the environment, in `.env`, and as a file of its name in `/run/secrets`.
    """
    if file is not None:
        return _from_file(file, where)
    if variable is None:
        return None
    if value := os.environ.get(variable) or dotenv_values(ENV_FILE).get(variable):
        return SecretStr(value)
    if (mounted := SECRETS_FOLDER / variable.lower()).is_file():
        return _from_file(mounted, where)
    raise SettingsError([f"{where}: there is no variable {variable}"])


def _from_file(file: Path, where: str) -> SecretStr:
    try:
        value = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError([f"{where}: {file} cannot be read ({type(error).__name__})"]) from None
    if not value:
        raise SettingsError([f"{where}: {file} is empty"])
    return SecretStr(value)


class Named(Table):
    """A table whose secrets are named; one that is written out is refused, and not quoted."""

    @field_validator("*", mode="before")
    @classmethod
    def _not_a_key(cls, value: object, info: ValidationInfo) -> object:
        if str(info.field_name).endswith("_env") and isinstance(value, str) and not _VARIABLE.fullmatch(value):
            raise ValueError("name the variable that holds the secret, in capitals, not the secret")
        return value
