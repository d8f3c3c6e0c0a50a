"""SECURITY.md names tests that are there, settings that are there, and every file of attacks."""

import re
from pathlib import Path
from typing import Final

from app.settings import Settings, variable

ROOT: Final = Path(__file__).parents[1]
DOCUMENT: Final = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
NAMED: Final = re.findall(r"`(test_\w+)`", DOCUMENT)
HOSTILE: Final = sorted(path for path in (ROOT / "tests").glob("test_hostile_*.py") if path != Path(__file__))
DEFINED: Final = re.compile(r"^(?:async )?def (test_\w+)\(", re.MULTILINE)


def defined_in(path: Path) -> set[str]:
    return set(DEFINED.findall(path.read_text(encoding="utf-8")))


def test_every_test_that_it_names_is_there() -> None:
    there = set().union(*(defined_in(path) for path in (ROOT / "tests").glob("test_*.py")))
    assert len(NAMED) > 80
    assert {name for name in NAMED if name not in there} == set()


def test_every_file_of_attacks_is_named_by_one_of_its_tests() -> None:
    assert [path.name for path in HOSTILE if not defined_in(path) & set(NAMED)] == []


def test_every_attack_names_its_test() -> None:
    rows = [line for line in DOCUMENT.splitlines() if line.startswith("| ") and line.count("|") == 4]
    attacks = [row for row in rows if not row.startswith(("| attack ", "| mistake ", "|---"))]
    worth_taking = DOCUMENT.partition("## Who attacks")[0].splitlines()
    assert [row for row in attacks if "`test_" not in row and row not in worth_taking] == []


def test_every_setting_that_it_names_is_there() -> None:
    known = {variable(field) for field in Settings.model_fields}
    assert set(re.findall(r"`(RELAY_[A-Z_]+)", DOCUMENT)) <= known
