"""What a trace says of a generation: how it went, and never what was said.

Names are those of OpenTelemetry's conventions for generative AI where they have one, else they begin with `relay.`.
docs/tracing.md says what each means, and a test holds it to what is exported.
"""

import re
from typing import Final

from app.summary import Summary, Try
from app.telemetry.conventions import OPERATION, PROVIDER

MAX_NAME_LENGTH: Final = 128
"""A model may be called as its client likes."""

WELL: Final = {"finished", "deleted", "left"}
"""Outcomes that are no errors: an answer that its client stopped was well as far as it went."""

_WORD: Final = re.compile(r"[\w.-]{1,32}", re.ASCII)

Value = str | int | float | bool | list[str]


def name_of(model: str) -> str:
    return f"{OPERATION} {model[:MAX_NAME_LENGTH]}"


def asked(model: str) -> dict[str, Value]:
    """What is known at the beginning: by this a sampler may decide."""
    return {
        "gen_ai.operation.name": OPERATION,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": model[:MAX_NAME_LENGTH],
        "gen_ai.request.stream": True,
    }


def generation(summary: Summary) -> dict[str, Value]:
    """Times in seconds. What there was none of is left out."""
    course, usage = summary.course, summary.usage
    told: dict[str, Value | None] = {
        "gen_ai.response.finish_reasons": _reasons(summary.finish_reason),
        "gen_ai.response.time_to_first_chunk": summary.first_token_s,
        "gen_ai.usage.input_tokens": usage.prompt_tokens if summary.attempts else None,
        "gen_ai.usage.output_tokens": usage.completion_tokens if summary.attempts else None,
        "error.type": summary.code,
        "relay.usage_source": usage.source if summary.attempts else None,
        "relay.stream": summary.stream,
        "relay.request_id": summary.request_id,
        "relay.caller": summary.grant.name,
        "relay.profile": summary.profile,
        "relay.upstream": summary.upstream,
        "relay.cause": summary.cause,
        "relay.phase": summary.phase,
        "relay.attempts": summary.attempts,
        "relay.pieces": summary.pieces,
        "relay.queued_s": summary.queued_s,
        "relay.longest_gap_s": course.longest_gap_s,
        "relay.resumes": course.resumes,
        "relay.live_only": course.live_only,
    }
    return asked(summary.model) | _there(told)


def attempt(tried: Try) -> dict[str, Value]:
    error = None if tried.outcome in WELL else tried.outcome
    told: dict[str, Value | None] = {
        "relay.upstream": tried.upstream,
        "relay.outcome": tried.outcome,
        "relay.connect_s": tried.connect_s,
        "error.type": error,
    }
    return _there(told)


def _there(told: dict[str, Value | None]) -> dict[str, Value]:
    return {name: value for name, value in told.items() if value is not None}


def _reasons(reason: str | None) -> list[str] | None:
    """Upstreams may say whatever they like for a finish_reason, an answer among it."""
    if reason is None:
        return None
    return [reason if _WORD.fullmatch(reason) else "other"]
