"""`sse-relay`: serve, demo, chat, top, config, keys.

Exit codes: 0 done; 1 the answer failed; 2 bad usage, settings that do not hold, or no relay there; 130 after Ctrl-C.
What a command needs is imported inside it: `chat` must not wait for the server's half second of imports.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Annotated, Final, NoReturn, cast

import typer
from rich.console import Console

from app import __version__, cli_keys
from app.settings import Settings, SettingsError, load
from app.settings.listing import effective
from app.settings.secrets import secret
from app.terminal.chat import FAILED, Chat
from app.terminal.screen import JsonLines, Screen, Typewriter, complain

BAD_USAGE: Final = 2
OPENAI_URL: Final = str(Settings.model_fields["openai_base_url"].default)

app = typer.Typer(
    help="Relays OpenAI-compatible chat streams as server-sent events, and always tells how they ended.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if sys.stdout.isatty() else None,
)

app.add_typer(cli_keys.app, name="keys")

Host = Annotated[str | None, typer.Option(help="Address to listen on instead of RELAY_HOST.")]
Port = Annotated[int | None, typer.Option(min=0, max=65_535, help="Port to listen on instead of RELAY_PORT; 0: any.")]
Url = Annotated[str, typer.Option(help="Where the relay listens.")]
Model = Annotated[str | None, typer.Option(help="Model to ask for instead of the relay's default.")]
System = Annotated[str | None, typer.Option(help="System prompt.")]
Prompt = Annotated[str | None, typer.Argument(help="The question; without it, a chat of several turns (or stdin).")]
Message = Annotated[str | None, typer.Argument(help="The sample question.")]
KeyEnv = Annotated[str | None, typer.Option(help="The variable that holds the key or token to ask with.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object per line, for scripts.")]


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        typer.echo(f"sse-relay {__version__}")
        raise typer.Exit


@app.command()
def serve(host: Host = None, port: Port = None) -> None:
    """Run the relay until it is told to stop."""
    settings = _settings(host=host, port=port)
    if not settings.upstreams and settings.openai_api_key is None and settings.openai_base_url == OPENAI_URL:
        _refuse("no key for the upstream: `export OPENAI_API_KEY=…`, or try it without one: `sse-relay demo`")
    from app.server import may_listen, run
    from app.server import serve as serve_relay

    if not may_listen(settings):
        _refuse(
            f"anyone who reaches {settings.host} could spend your upstream's money, since callers need no key: "
            "give them keys (`sse-relay keys new NAME`), listen on 127.0.0.1 behind a proxy that knows its callers, "
            "or set RELAY_ALLOW_ANONYMOUS=true"
        )
    with _ports_explained(settings), _settings_explained():
        run(serve_relay(settings, on_ready=_say_where))


@app.command()
def demo(
    message: Message = None,
    once: Annotated[bool, typer.Option("--once", help="Show one answer on a free port and leave.")] = False,
    port: Port = None,
    model: Annotated[
        str, typer.Option(help="How the built-in upstream behaves: demo, demo-reasoning, demo-cut …")
    ] = "demo",
) -> None:
    """See it work: a relay with a built-in upstream, without a key and without a network."""
    fixed = {"openai_base_url": "http://127.0.0.1", "openai_api_key": "demo", "default_model": model}
    # No grace: Ctrl-C is to end a demonstration, not to wait for its answer.
    own = {"host": "127.0.0.1", "admin_port": -1, "log_level": "error", "drain_grace_seconds": 0}
    settings = _settings(port=0 if once else port, **own, **fixed)
    from app.server import run
    from app.terminal.demonstration import MESSAGE, Demonstration

    demonstration = Demonstration(settings, message or MESSAGE, once=once)
    with _ports_explained(settings):
        run(demonstration.run(any_port=port is None))
    raise typer.Exit(demonstration.code if once else 0)


@app.command()
def chat(
    prompt: Prompt = None,
    url: Url = "http://127.0.0.1:8000",
    model: Model = None,
    system: System = None,
    key_env: KeyEnv = None,
    as_json: Json = False,
) -> None:
    """Talk to a relay: the answer is typed as it arrives. Ctrl-C stops it."""
    with _settings_explained():
        named = secret(key_env, None, where="--key-env")
    try:
        talk = Chat(url, model=model, system=system, key=None if named is None else named.get_secret_value())
    except ValueError as error:
        _refuse(str(error))
    if prompt is None and sys.stdin.isatty():
        if as_json:
            _refuse('--json needs a question: `sse-relay chat --json "…"`, or one on stdin')
        raise typer.Exit(talk.converse())
    question = sys.stdin.read().strip() if prompt is None else prompt
    if not question:
        _refuse("the question is empty")
    screen: Screen = JsonLines() if as_json else Typewriter()
    raise typer.Exit(asyncio.run(talk.ask(question, screen)))


@app.command()
def top(
    url: Annotated[str, typer.Option(help="Where the relay's admin listener is.")] = "http://127.0.0.1:8001",
    once: Annotated[bool, typer.Option("--once", help="One table, for scripts.")] = False,
    as_json: Json = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1,
) -> None:
    """Watch what a relay streams now: a list in the terminal until q."""
    from app.terminal.top import Top

    try:
        watching = Top(url, interval)
    except ValueError as error:
        _refuse(str(error))
    raise typer.Exit(watching.run(as_json=as_json, once=once))


@app.command()
def config(as_json: Json = False) -> None:
    """Show the settings in force and where each came from; secrets are masked."""
    rows = effective(_settings())
    if as_json:
        listing = {row.variable: {"value": row.value, "source": row.source} for row in rows}
        typer.echo(json.dumps(listing, indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False, soft_wrap=True)
    for row in rows:
        value = "-" if row.value in (None, ()) else json.dumps(row.value, ensure_ascii=False).removesuffix(".0")
        console.out(f"{row.variable:<38} {value:<32} {row.source}", style="dim" if row.source == "default" else None)


async def _say_where(url: str, admin_url: str | None) -> None:
    typer.echo(f"sse-relay {__version__} listens on {url}", err=True)
    if admin_url is not None:
        typer.echo(f"metrics and what runs, for its operator: {admin_url}", err=True)


def _settings(**overrides: object) -> Settings:
    with _settings_explained():
        return load(**overrides)


@contextmanager
def _settings_explained() -> Iterator[None]:
    """Some of what is wrong is found when it is used: a file of keys, a certificate."""
    try:
        yield
    except SettingsError as error:
        for message in error.messages:
            complain(message)
        raise typer.Exit(BAD_USAGE) from None


def _refuse(why: str) -> NoReturn:
    complain(why)
    raise typer.Exit(BAD_USAGE)


@contextmanager
def _ports_explained(settings: Settings) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        complain(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; try --port with another")
        raise typer.Exit(FAILED) from None


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):  # an answer must not end at a character that the terminal lacks
        cast(TextIOWrapper, stream).reconfigure(errors="replace")
    app()
