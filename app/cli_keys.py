"""`sse-relay keys`: keys for callers, and the lines of `relay.toml` by which the relay knows them.

What is asked for is on stdout, remarks are on stderr.
"""

import json
import re
import secrets
import sys
from datetime import UTC, date, datetime
from typing import Annotated, Final, NoReturn

import typer

from app.admission.credentials import is_sendable
from app.admission.keys import KEY_BYTES, digest_of, key_from
from app.settings.tables import KeyTable
from app.terminal.screen import complain, note

BAD_USAGE: Final = 2
GUESSABLE_CHARACTERS: Final = 32
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
"""As the settings have it (`TableName`)."""

app = typer.Typer(help="Make API keys for callers.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Whose key it is: letters, digits, dots, dashes and underscores.")]
Expires = Annotated[str | None, typer.Option(help="The last day of the key, or the moment: 2027-06-30.")]
Mint = Annotated[bool, typer.Option("--mint", help="The key may make browser tokens at POST /tokens.")]
Json = Annotated[bool, typer.Option("--json", help="The key and its hash as JSON, for scripts.")]


@app.command()
def new(name: Name, expires: Expires = None, mint: Mint = False, as_json: Json = False) -> None:
    """Make a key, shown once, and its lines for relay.toml."""
    if not NAME.fullmatch(name):
        _refuse(
            f"{name!r} is no name for a key: letters, digits, `.`, `-` and `_`, at most 64, a letter or digit first"
        )
    ends = None if expires is None else _moment(expires)
    key = key_from(secrets.token_bytes(KEY_BYTES))
    sha256 = digest_of(key).hex()
    if as_json:
        typer.echo(json.dumps({"name": name, "key": key, "sha256": sha256}))
        return
    note(f"The key of {name}. It is shown this once; the relay keeps its hash alone.")
    typer.echo(f"{key}\n")
    note("For relay.toml. Of several hashes in the list each is good: so a key is changed without a gap.")
    typer.echo(_lines(name, sha256, ends, mint=mint))


@app.command(name="hash")
def hash_() -> None:
    """Print the hash of a key that is on stdin."""
    key = _key_on_stdin()
    if not is_sendable(key):
        _refuse("a key is of visible ASCII characters, without spaces: others cannot be sent in a header")
    if len(key) < GUESSABLE_CHARACTERS:
        note("A key so short may be guessed from its hash; `sse-relay keys new` makes one that cannot be.")
    typer.echo(digest_of(key).hex())


def _key_on_stdin() -> str:
    if sys.stdin.isatty():
        return str(typer.prompt("The key", hide_input=True, err=True))
    return sys.stdin.read().rstrip("\r\n")


def _lines(name: str, sha256: str, ends: date | None, *, mint: bool) -> str:
    table = f'"{name}"' if "." in name else name  # a bare key with dots would be a table in a table
    lines = [f"[keys.{table}]", f'sha256 = ["{sha256}"]']
    if ends is not None:
        lines.append(f"expires = {ends.isoformat()}")
    if mint:
        lines.append("mint = true")
    return "\n".join(lines)


def _moment(text: str) -> date:
    try:
        ends = date.fromisoformat(text)
    except ValueError:
        try:
            ends = datetime.fromisoformat(text)
        except ValueError:
            _refuse(f"--expires {text!r} is no date such as 2027-06-30, and no moment such as 2027-06-30T18:00:00Z")
    expires_at = KeyTable(sha256=("0" * 64,), expires=ends).expires_at
    if expires_at is not None and expires_at <= datetime.now(UTC).timestamp():
        _refuse(f"--expires {text} is over already")
    return ends


def _refuse(why: str) -> NoReturn:
    complain(why)
    raise typer.Exit(BAD_USAGE)
