"""Metrics that OpenTelemetry's conventions for generative AI have, in Prometheus' spelling.

Their buckets are the conventions', and some more above, since answers may take minutes.
"""

from typing import Final

from prometheus_client import CollectorRegistry

from app.summary import Summary
from app.telemetry.series import histogram

TOKENS: Final = tuple(4**power for power in range(14))
SECONDS: Final = tuple(0.01 * 2**power for power in range(17))
FIRST_TOKEN_SECONDS: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
    *(20, 40, 80),
)
PER_TOKEN_SECONDS: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)

LABELS: Final = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "upstream")

OPERATION: Final = "chat"
PROVIDER: Final = "openai"
"""The API that is spoken, not who speaks it: that is `upstream`, which is ours."""


class Conventions:
    """Fed with what Metrics is fed with; `model` and `upstream` as labels have them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._usage = histogram(
            registry, "gen_ai_client_token_usage", "Tokens of a stream.", TOKENS, *LABELS, "gen_ai_token_type"
        )
        self._duration = histogram(
            registry,
            "gen_ai_server_request_duration_seconds",
            "Streams from their beginning to their end, the queue included.",
            SECONDS,
            *(*LABELS, "error_type"),
        )
        self._first_token = histogram(
            registry,
            "gen_ai_server_time_to_first_token_seconds",
            "Time to the first content, queue and failed attempts included, of all streams that had any.",
            FIRST_TOKEN_SECONDS,
            *LABELS,
        )
        self._per_token = histogram(
            registry,
            "gen_ai_server_time_per_output_token_seconds",
            "Time for each token after the first, of streams that finished.",
            PER_TOKEN_SECONDS,
            *LABELS,
        )

    def __call__(self, summary: Summary, model: str, upstream: str) -> None:
        asked = (OPERATION, PROVIDER, model, upstream)
        usage = summary.usage
        self._duration[(*asked, summary.code or "")].observe(summary.total_s)
        if summary.attempts:
            self._usage[(*asked, "input")].observe(usage.prompt_tokens)
            self._usage[(*asked, "output")].observe(usage.completion_tokens)
        if summary.first_token_s is not None:
            self._first_token[asked].observe(summary.first_token_s)
            if summary.cause == "finished" and usage.completion_tokens > 1:
                after_s = summary.total_s - summary.first_token_s
                self._per_token[asked].observe(after_s / (usage.completion_tokens - 1))
