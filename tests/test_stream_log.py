"""The line that is logged for each stream: all that an operator asks, and nothing that was said."""

from collections.abc import Mapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from app.summary import Course, Summary, Try
from app.telemetry import stream_log
from tests.summaries import cancelled, ended, failed


def line(summary: Summary) -> Mapping[str, Any]:
    with capture_logs() as logs:
        stream_log.tell(summary, 0.00123)
    [told] = logs
    return told


def test_a_stream_is_one_line_with_every_figure() -> None:
    tries = (Try("second", "upstream_unavailable", None), Try("first", "finished", 0.01234))
    course = Course(tries, longest_gap_s=0.51234, most_readers=2, resumes=1, log_bytes=900, live_only=True)
    assert line(ended(first_token_s=0.41234, total_s=2.00049, course=course)) == {
        "event": "stream",
        "log_level": "info",
        "stream": "s_1",
        "request_id": "r_1",
        "trace_id": None,
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
        "cancel_lag_s": None,
        "tries": [
            {"upstream": "second", "outcome": "upstream_unavailable", "connect_s": None},
            {"upstream": "first", "outcome": "finished", "connect_s": 0.012},
        ],
        "connect_s": 0.012,
        "longest_gap_s": 0.512,
        "most_readers": 2,
        "resumes": 1,
        "log_bytes": 900,
        "live_only": True,
    }


def test_a_stream_that_nobody_was_asked_for_has_no_times_of_one() -> None:
    told = line(failed(code="overloaded", attempts=0, upstream=None, first_token_s=None))
    assert (told["tries"], told["connect_s"], told["longest_gap_s"], told["first_token_s"]) == ([], None, None, None)


@pytest.mark.parametrize(("cause", "lag_s"), [("deleted", 0.0012), ("left", 0.0012), ("drained", None), ("lost", None)])
def test_how_long_it_took_to_let_go_is_told_of_what_was_stopped(cause: str, lag_s: float | None) -> None:
    assert line(cancelled(cause=cause))["cancel_lag_s"] == lag_s


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
