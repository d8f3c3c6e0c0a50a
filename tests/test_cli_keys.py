"""`sse-relay keys`: keys, and the lines by which the relay knows them."""

import json
import re
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

from app import cli, cli_keys
from app.admission.keys import digest_of
from app.settings import load
from app.settings.kinds import TableName
from tests.terminal import Finished, run, terminal

KEY = r"rk_[A-Za-z0-9_-]{43}"


def keys(*arguments: str, stdin: str = "") -> Finished:
    """Without a process of its own."""
    result = CliRunner().invoke(cli.app, ["keys", *arguments], input=stdin)
    return Finished(result.exit_code, result.stdout, result.stderr)


def parted(finished: Finished) -> tuple[str, str]:
    """The key, and the lines for relay.toml."""
    assert finished.code == 0, finished.err
    key, _, lines = finished.out.partition("\n\n")
    assert re.fullmatch(KEY, key)
    return key, lines


@pytest.mark.parametrize("name", ["web", "a", "x" * 64, "a.b.c", "1", "2027-01-01", "A_b-c.d", "true"])
def test_the_relay_knows_a_new_key_by_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    key, lines = parted(keys("new", name))
    (tmp_path / "relay.toml").write_text(lines)
    monkeypatch.chdir(tmp_path)
    table = load().keys[name]
    assert (table.sha256, table.expires, table.mint) == ((digest_of(key).hex(),), None, False)
    assert key not in lines


@pytest.mark.parametrize(
    ("given", "expires_at"),
    [
        ("2099-06-30", datetime(2099, 6, 30, 23, 59, 59, 999999, UTC)),
        ("2099-06-30T18:00:00Z", datetime(2099, 6, 30, 18, tzinfo=UTC)),
        ("2099-06-30 18:00+02:00", datetime(2099, 6, 30, 16, tzinfo=UTC)),
        ("2099-06-30T18:00", datetime(2099, 6, 30, 18, tzinfo=UTC)),
    ],
)
def test_a_key_has_the_end_and_the_right_that_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, expires_at: datetime
) -> None:
    _, lines = parted(keys("new", "web", "--expires", given, "--mint"))
    (tmp_path / "relay.toml").write_text(lines)
    monkeypatch.chdir(tmp_path)
    table = load().keys["web"]
    assert (table.expires_at, table.mint) == (expires_at.timestamp(), True)


async def test_what_is_said_about_a_key_is_not_in_the_way_of_a_script(tmp_path: Path) -> None:
    finished = await run(tmp_path, "keys", "new", "web")
    key, lines = parted(finished)
    assert key not in finished.err
    assert "shown this once" in finished.err
    assert list(tomllib.loads(lines)) == ["keys"]
    said = json.loads((await run(tmp_path, "keys", "new", "web", "--json")).out)
    assert (said["name"], said["sha256"]) == ("web", digest_of(said["key"]).hex())
    assert said["key"] != key


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "-a", ".a", "ü", "x" * 65, 'a"b', "a]"])
def test_a_name_that_the_settings_do_not_know_is_refused(name: str) -> None:
    finished = keys("new", "--", name)
    assert (finished.code, finished.out) == (2, "")
    assert "is no name for a key" in finished.err


def test_a_name_here_is_a_name_in_the_settings() -> None:
    [_, field] = get_args(TableName)
    [pattern] = [each.pattern for each in field.metadata if hasattr(each, "pattern")]
    assert pattern == f"^{cli_keys.NAME.pattern}$"


@pytest.mark.parametrize("given", ["tomorrow", "2099-13-01", "2099-02-30", "", "30.06.2099"])
def test_what_is_no_date_is_told_with_one(given: str) -> None:
    finished = keys("new", "web", "--expires", given)
    assert (finished.code, finished.out) == (2, "")
    assert "such as 2027-06-30" in finished.err


def test_a_key_that_is_over_is_not_made() -> None:
    finished = keys("new", "web", "--expires", "2020-01-01")
    assert (finished.code, finished.out) == (2, "")
    assert "over already" in finished.err


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_the_hash_of_a_key_that_exists_is_told(end: str) -> None:
    key = "rk_" + "k" * 43
    finished = keys("hash", stdin=key + end)
    assert (finished.code, finished.out, finished.err) == (0, f"{digest_of(key).hex()}\n", "")


def test_a_key_that_can_be_guessed_is_hashed_with_a_warning() -> None:
    finished = keys("hash", stdin="secret")
    assert (finished.code, finished.out) == (0, f"{digest_of('secret').hex()}\n")
    assert "may be guessed" in finished.err


@pytest.mark.parametrize("key", ["", "\n", "a b", "a\nb", "ü", "x" * 9000])
def test_a_key_that_cannot_be_sent_has_no_hash(key: str) -> None:
    finished = keys("hash", stdin=key)
    assert (finished.code, finished.out) == (2, "")
    assert "visible ASCII" in finished.err


async def test_at_a_terminal_a_key_is_asked_for_and_not_shown(tmp_path: Path) -> None:
    key = "rk_" + "k" * 43
    async with terminal(tmp_path, "keys", "hash") as screen:
        await screen.expect("The key: ")
        screen.press(f"{key}\r")
        await screen.expect(digest_of(key).hex())
        assert await screen.end() == 0
        assert "kkk" not in screen.text


async def test_a_file_of_keys_that_is_no_good_stops_the_relay_before_it_listens(tmp_path: Path) -> None:
    lines = ["[issuers.idp]", 'issuer = "https://idp.example"', 'audience = "relay"', 'jwks_file = "nowhere.json"']
    (tmp_path / "relay.toml").write_text("\n".join(lines))
    finished = await run(tmp_path, "serve", "--port", "0", OPENAI_API_KEY="sk-test")
    assert finished.code == 2
    assert finished.err == "sse-relay: issuers.idp.jwks_file: nowhere.json cannot be read (FileNotFoundError)\n"
