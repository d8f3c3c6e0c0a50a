"""Logs: JSON lines for machines, colours for a terminal; never a prompt, an answer or a key."""

import logging
import sys

import stamina.instrumentation
import structlog

from app.settings import Settings


def configure(settings: Settings) -> None:
    """Sets the process's logging up; calling it again changes it."""
    level = getattr(logging, settings.log_level.upper())
    human = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    renderer: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if human
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=level, format="%(levelname)s %(name)s %(message)s", stream=sys.stderr)
    # These log what passes through them at DEBUG, prompts and answers, and a line for each request at INFO.
    for name in ("sse_starlette", "openai", "httpx2", "aiohttp"):
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    # stamina's own hooks log the failure's words, which may be upstream's.
    stamina.instrumentation.set_on_retry_hooks([])
