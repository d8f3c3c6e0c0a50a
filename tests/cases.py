"""The recorded answers of upstreams, and what the contract makes of each: `tests/data/upstream-cases.jsonl`."""

import base64
import json
from pathlib import Path
from typing import Any, NamedTuple

CASES_FILE = Path(__file__).parent / "data" / "upstream-cases.jsonl"


class Expected(NamedTuple):
    """What a client sees. None: the case does not say. `http_status`: when nothing was sent before the end."""

    end: str
    text: str
    code: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: int | None = None
    http_status: int | None = None
    usage: dict[str, int] | None = None
    finish_reason: str | None = None


class Case(NamedTuple):
    name: str
    status: int
    headers: dict[str, str]
    body: bytes
    expect: Expected

    @property
    def is_plain_stream(self) -> bool:
        """An event stream as it is written, without an encoding: its bytes can be put together with others."""
        media_type = self.headers.get("content-type")
        return self.status == 200 and media_type == "text/event-stream" and "content-encoding" not in self.headers


def _case(line: str) -> Case:
    row: dict[str, Any] = json.loads(line)
    body = base64.b64decode(row["body_b64"])
    return Case(row["name"], row["status"], row["headers"], body, Expected(**row["expect"]))


CASES = [_case(line) for line in CASES_FILE.read_text(encoding="utf-8").splitlines()]
