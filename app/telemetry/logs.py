"""Logs: JSON lines for machines, colours for a terminal; never a prompt, an answer or a key."""

import logging
import sys
import traceback

import structlog

from app.settings import Settings


def frames(error: BaseException) -> str:
    """Where an exception and those before it were raised, and their types; not their words, nor what variables held:
    both quote what was being worked on.
    """
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    told = "".join(traceback.format_tb(error.__traceback__)) + type(error).__qualname__
    return told if before is None else f"{frames(before)}\n\nand then\n\n{told}"


class Formatter(logging.Formatter):
    """For what libraries log: faults of ours as well, when they come through uvicorn or asyncio."""

    def formatException(self, ei: tuple[object, object, object]) -> str:
        return frames(ei[1]) if isinstance(ei[1], BaseException) else ""


def configure(settings: Settings) -> None:
    """Sets the process's logging up; the standard library's part only once."""
    level = getattr(logging, settings.log_level.upper())
    human = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    renderer: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if human
        else [structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.ExceptionRenderer(lambda exc_info: frames(exc_info[1])),
            *renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter("%(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    # These log what passes through them at DEBUG, prompts and answers, and a line for each request at INFO.
    for name in ("sse_starlette", "openai", "httpx2", "httpcore2", "aiohttp"):
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
