"""Logs: JSON lines for machines, colours for a terminal; never a prompt, an answer or a key.

One event is one line, whatever clients and upstreams call themselves and their models: what could end a line, colour it
or turn it round is written as an escape.
"""

import contextlib
import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import msgspec
import structlog

from app.settings import Settings

BETWEEN_LINES_SECONDS: Final = 1.0
"""A library's warning is written this often: anybody can send what is no HTTP, as often as he likes."""

MAX_KINDS: Final = 100

_encoder: Final = msgspec.json.Encoder(enc_hook=repr)
_PLAIN: Final = re.compile(r"[\w .']+")


def frames(error: BaseException) -> str:
    """Where an exception and those before it were raised, and their types; not their words, nor what variables held:
    both quote what was being worked on.
    """
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    told = "".join(traceback.format_tb(error.__traceback__)) + type(error).__qualname__
    return told if before is None else f"{frames(before)}\n\nand then\n\n{told}"


class Formatter(logging.Formatter):
    """For what libraries log: faults of ours as well, when they come through uvicorn or asyncio."""

    def __init__(self, *, human: bool) -> None:
        super().__init__()
        self._human = human

    def format(self, record: logging.LogRecord) -> str:
        words = _words(record)
        where = frames(record.exc_info[1]) if record.exc_info and record.exc_info[1] else None
        if self._human:
            line = f"{record.levelname} {record.name} {printable(words)}"
            return line if where is None else f"{line}\n{where}"
        moment = datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z")
        told = {"event": words, "logger": record.name, "level": record.levelname.lower(), "timestamp": moment}
        return json.dumps(told if where is None else told | {"exception": where})


class Seldom(logging.Filter):
    """Passes a library's words once in a while, and all that it calls an error."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._told_at: dict[object, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            return True
        kind, now = (record.name, record.msg), self._clock()
        if now - self._told_at.get(kind, float("-inf")) < BETWEEN_LINES_SECONDS:
            return False
        if len(self._told_at) >= MAX_KINDS:
            self._told_at.clear()
        self._told_at[kind] = now
        return True


def printable(text: str) -> str:
    """Without control characters, line ends, half surrogate pairs and what turns a line round, but for their names."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def configure(settings: Settings) -> None:
    """Sets the process's logging up; the standard library's part only once."""
    level = getattr(logging, settings.log_level.upper())
    human = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    renderer: list[structlog.typing.Processor] = (
        [_all_printable, structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if human
        else [structlog.processors.JSONRenderer(serializer=_json)]
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.ExceptionRenderer(lambda exc_info: frames(exc_info[1])),
            *renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(human=human))
    handler.addFilter(Seldom())
    logging.basicConfig(level=level, handlers=[handler])
    # These log what passes through them at DEBUG, prompts and answers, and a line for each request at INFO.
    for name in ("sse_starlette", "openai", "httpx2", "httpcore2", "aiohttp"):
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def _json(event: object, **_: object) -> str:
    """In ASCII: what is none of it could turn a line round, or end it for whoever reads it."""
    with contextlib.suppress(UnicodeError):
        return _encoder.encode(event).decode("ascii")
    return json.dumps(event, default=repr)  # it writes what is not ASCII, and half a surrogate pair, as escapes


def _all_printable(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """`exception` has several lines, and nobody's words in them (`frames`)."""
    return {
        name: printable(value) if isinstance(value, str) and name != "exception" else value
        for name, value in event.items()
    }


def _words(record: logging.LogRecord) -> str:
    """asyncio quotes callbacks with their arguments, and exceptions with their words: what was being worked on."""
    words = record.getMessage()
    if record.name != "asyncio":
        return words
    plain = _PLAIN.match(words)
    return plain[0].strip() if plain else "a fault in a callback"
