"""docs/behaviour.md: its settings exist and have the defaults it says, and no limit is missing."""

import re
from pathlib import Path
from typing import Final

from app import gone, server
from app.log import sharing
from app.settings import listing
from app.webhook import calls

PAGE: Final = (Path(__file__).parents[1] / "docs/behaviour.md").read_text(encoding="utf-8")
ROW: Final = re.compile(r"^\| `(RELAY_\w+)` \| ([^|]+) \|", re.MULTILINE)
DEFAULTS: Final = dict(ROW.findall(listing.table()))
LIMIT: Final = re.compile(r"RELAY_(?:MAX_\w+|\w+_SECONDS|\w+_BYTES|ATTEMPTS|BREAKER_\w+)")
NO_LIMITS: Final = {"RELAY_SESSION_SECONDS", "RELAY_FIRST_FRAME_PADDING_BYTES"}


def test_every_default_on_the_page_is_the_settings_own() -> None:
    told = dict(ROW.findall(PAGE))
    assert told == {name: DEFAULTS[name] for name in told}


def test_every_setting_that_is_named_exists() -> None:
    assert set(re.findall(r"RELAY_[A-Z_]+[A-Z]", PAGE)) <= set(DEFAULTS)


def test_every_limit_has_its_row() -> None:
    limits = {name for name in DEFAULTS if LIMIT.fullmatch(name)} - NO_LIMITS
    assert limits - set(dict(ROW.findall(PAGE))) == set()


def test_what_is_fixed_is_what_the_page_says() -> None:
    for words in (
        f"kept for {server.KEEP_ALIVE_SECONDS} s",
        f"without a request for {server.IDLE_SECONDS} s",
        f"given {server.LAST_WORDS_SECONDS} s to be taken",
        f"webhook calls get {calls.FLUSH_SECONDS:g} s, Redis {sharing.FLUSH_SECONDS:g} s",
        f"for {gone.GONE_SECONDS // 3600} h, {gone.GONE_MAX:,} of them",
    ):
        assert words in PAGE
