"""The upstreams of the settings: `[upstreams.NAME]`, or the one of OPENAI_*."""

from collections.abc import Iterator
from math import inf
from typing import Final

from app.places import Manner
from app.settings import Settings, SettingsError
from app.settings.tables import UpstreamTable
from app.upstream import egress
from app.upstream.member import Terms
from app.upstream.sdk import DEPLOYMENT, Service

DEFAULT: Final = "default"
"""What the upstream of OPENAI_* is called."""

FRAMING: Final = {
    "connection",
    "content-length",
    "expect",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}


def configured(settings: Settings, *, user_agent: str) -> list[tuple[Terms, Service]]:
    """Raises SettingsError with all that is wrong with any of them."""
    if not settings.upstreams:
        return [(_terms(DEFAULT, None, settings), _service_of_environment(settings, user_agent))]
    made: list[tuple[Terms, Service]] = []
    problems: list[str] = []
    for name, table in settings.upstreams.items():
        problems += _mistakes(name, table)
        try:
            made.append((_terms(name, table, settings), _service(name, table, settings, user_agent)))
        except SettingsError as error:
            problems += error.messages
    if problems:
        raise SettingsError(problems)
    return made


def _terms(name: str, table: UpstreamTable | None, settings: Settings) -> Terms:
    table = table or UpstreamTable(base_url=settings.openai_base_url)
    limits = table.timeouts
    return Terms(
        name=name,
        models=tuple(dict.fromkeys(table.models)),
        aliases=table.aliases,
        priority=table.priority,
        weight=table.weight,
        manner=Manner(
            connect_s=limits.connect,
            first_token_s=limits.first_token,
            idle_s=limits.idle,
            finish_optional=(table.finish_reason or settings.finish_reason) == "optional",
            max_streams=table.max_streams,
        ),
        connect_s=min(limits.connect or inf, settings.timeout_connect_seconds),
        first_token_s=min(limits.first_token or inf, settings.timeout_first_token_seconds),
    )


def _service_of_environment(settings: Settings, user_agent: str) -> Service:
    key = settings.openai_api_key
    return Service(
        base_url=settings.openai_base_url,
        api_key=key.get_secret_value() if key else None,
        user_agent=user_agent,
        egress=egress.of_environment(settings),
        environment=True,
    )


def _service(name: str, table: UpstreamTable, settings: Settings, user_agent: str) -> Service:
    key = table.api_key(name)
    return Service(
        base_url=table.base_url,
        api_key=key.get_secret_value() if key else None,
        user_agent=user_agent,
        azure_api_version=table.azure_api_version,
        headers=table.headers,
        body=table.body,
        asks_usage=table.stream_options,
        egress=egress.of_table(name, table, settings),
    )


def _mistakes(name: str, table: UpstreamTable) -> Iterator[str]:
    for header in table.headers:
        if header.lower() in FRAMING:
            yield f"upstreams.{name}.headers: `{header}` says how a request is sent, and belongs to HTTP"
    if table.azure_api_version is not None:
        for model in (*table.models, *table.aliases.values()):
            if model not in table.aliases and not DEPLOYMENT.fullmatch(model):
                yield f"upstreams.{name}: {model[:64]!r} is no name of a deployment of Azure"
