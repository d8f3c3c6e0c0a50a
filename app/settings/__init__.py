"""Every setting, its default and its limits. Nothing else in the project reads the environment."""

from app.settings.kinds import KiB, MiB
from app.settings.loading import load, variable
from app.settings.model import Settings
from app.settings.secrets import SettingsError

__all__ = ["KiB", "MiB", "Settings", "SettingsError", "load", "variable"]
