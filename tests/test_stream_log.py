"""The line that is logged for each stream: all that an operator asks, and nothing that was said."""

from collections.abc import Mapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from app.summary import Summary
from app.telemetry import stream_log
from tests.summaries import cancelled, ended, failed


def line(summary: Summary) -> Mapping[str, Any]:
    with capture_logs() as logs:
        stream_log.tell(summary)
    [told] = logs
    return told


def test_a_stream_is_one_line_with_every_figure() -> None:
    assert line(ended(first_token_s=0.41234, total_s=2.00049)) == {
        "event": "stream",
        "log_level": "info",
        "stream": "s_1",
        "request_id": "r_1",
        "caller": "key:app",
        "profile": "support",
        "model": "small",
        "upstream": "first",
        "cause": "finished",
        "finish_reason": "stop",
        "code": None,
        "phase": None,
        "upstream_status": None,
        "attempts": 2,
        "pieces": 9,
        "text_bytes": 40,
        "prompt_tokens": 3,
        "completion_tokens": 9,
        "total_tokens": 12,
        "usage_source": "reported",
        "queued_s": 0.1,
        "first_token_s": 0.412,
        "total_s": 2.0,
    }


@pytest.mark.parametrize("summary", [ended(), failed(), cancelled()], ids=["finished", "failed", "cancelled"])
def test_no_subject_and_nothing_that_was_said_is_logged(summary: Summary) -> None:
    told = line(ended(text="an answer", text_cut=True) if summary.cause == "finished" else summary)
    assert not [value for value in told.values() if value in ("an answer", "user-7")]
    assert not {"text", "subject", "owner"} & told.keys()


@pytest.mark.parametrize(
    ("code", "status", "level"),
    [
        ("upstream_error", 401, "error"),
        ("upstream_error", 402, "error"),
        ("upstream_error", 403, "error"),
        ("upstream_error", 409, "error"),
        ("upstream_error", 429, "error"),
        ("upstream_error", 500, "info"),
        ("upstream_error", None, "info"),
        ("rate_limited", 429, "info"),
        ("upstream_unavailable", 503, "info"),
    ],
)
def test_what_only_the_operator_can_mend_is_loud(code: str, status: int | None, level: str) -> None:
    told = line(failed(code=code, upstream_status=status))
    assert (told["log_level"], told["code"], told["upstream_status"]) == (level, code, status)


@pytest.mark.parametrize(
    ("reason", "told"),
    [("end_turn", "end_turn"), (None, None), ("the whole answer", "other"), ("a\nb", "other"), ("x" * 33, "other")],
)
def test_a_finish_reason_is_a_word(reason: str | None, told: str | None) -> None:
    assert line(ended(finish_reason=reason))["finish_reason"] == told
