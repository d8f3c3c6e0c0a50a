"""Requests that nobody thought of: none of them may be answered with a fault of ours."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import APIOperation, GenerationMode
from schemathesis.core.result import Ok

from app.request.native import ChatRequest
from tests.relay import ask, chat, fetch, running
from tests.upstream import Exchange, Upstream, answer, status

FIELDS: Final = {"code", "message", "type", "param", "phase", "retryable", "partial", "upstream_status", "request_id"}
OWN_PAGE: Final = {"sec-fetch-site": "same-origin"}
BOUNDED: Final = settings(
    max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
async def port() -> AsyncIterator[int]:
    """A relay whose upstream always answers, so that a 5xx can only be the relay's own."""
    async with Upstream() as upstream, running(upstream.base_url, log_level="error", default_model="m") as relay:
        upstream.script((by_path,))
        yield relay.port


POSTED: Final = [
    *("GET /chat/stream", "POST /ag-ui", "POST /api/chat", "POST /chat/stream", "POST /session", "POST /tokens"),
    "POST /v1/chat/completions",
]


async def by_path(exchange: Exchange) -> None:
    steps = status(200, b'{"data": []}') if exchange.request.path.endswith("/models") else answer("Hel", "lo")
    for step in steps:
        await step(exchange)


def check(status: int, content_type: str, body: bytes) -> None:
    """An answer of the contract: a stream that ends, a small document, or an error object. The one 5xx that a request
    can bring about itself is a limit of its own, of a nanosecond."""
    assert status < 500 or b'"code":"upstream_timeout"' in body, body
    if content_type.startswith("text/event-stream"):
        assert body.endswith(b"data: [DONE]\n\n") or b'"type":"RUN_' in body.split(b"\n\n")[-2]
    elif status >= 400:
        assert json.loads(body)["error"].keys() == FIELDS


def operations(port: int) -> list[APIOperation[Any, Any, Any, Any]]:
    document = schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")
    found = document.get_all_operations()
    return [operation.ok() for operation in found if isinstance(operation, Ok)]


def attempt(operation: APIOperation[Any, Any, Any, Any], mode: GenerationMode, **fixed: Any) -> None:
    """What the document makes of one operation: as it says, or anything but."""

    @BOUNDED
    @given(case=operation.as_strategy(generation_mode=mode, **fixed))
    def once(case: schemathesis.Case[Any]) -> None:
        response = case.call(headers=OWN_PAGE)
        check(response.status_code, response.headers.get("content-type", [""])[0], response.content)

    once()


async def test_what_the_document_allows_is_never_our_fault(port: int) -> None:
    response, _ = await ask(port, chat(on_disconnect="wait"))
    known = {"stream_id": response.headers["x-stream-id"]}

    def attempt_all() -> None:
        for operation in operations(port):
            attempt(operation, GenerationMode.POSITIVE)
            if "{stream_id}" in operation.path:
                attempt(operation, GenerationMode.POSITIVE, path_parameters=known)

    await asyncio.to_thread(attempt_all)


async def test_what_the_document_forbids_is_never_our_fault(port: int) -> None:
    def attempt_all() -> list[str]:
        asked = [operation for operation in operations(port) if operation.body or operation.query]
        for operation in asked:
            attempt(operation, GenerationMode.NEGATIVE)
        return sorted(operation.label for operation in asked)

    assert await asyncio.to_thread(attempt_all) == POSTED


VALUES: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELD_NAMES: Final = st.sampled_from([*ChatRequest.model_fields, "stream", "modle"])
PARTS: Final = st.lists(st.dictionaries(st.sampled_from(["type", "text", "image_url"]), VALUES), min_size=1, max_size=2)
MESSAGE: Final = st.fixed_dictionaries({"role": st.just("user"), "content": PARTS | VALUES}, optional={"name": VALUES})
BODIES: Final = (
    VALUES
    | st.dictionaries(FIELD_NAMES, VALUES, max_size=6)
    | st.dictionaries(FIELD_NAMES, VALUES | PARTS, max_size=1).map(lambda odd: chat() | odd)
    | st.fixed_dictionaries({"messages": st.lists(MESSAGE, max_size=2)})
)
PATHS: Final = st.sampled_from(["/chat/stream", "/v1/chat/completions", "/api/chat", "/ag-ui"])
HEADERS: Final = st.dictionaries(
    st.sampled_from(
        ["last-event-id", "idempotency-key", "x-on-disconnect", "x-request-id", "cookie", "accept", "origin"]
    ),
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=40),
    max_size=3,
)


@settings(BOUNDED, max_examples=500)
@given(path=PATHS, body=st.binary(max_size=200) | BODIES.map(lambda body: json.dumps(body).encode()), headers=HEADERS)
async def test_no_body_and_no_header_is_our_fault(port: int, path: str, body: bytes, headers: dict[str, str]) -> None:
    response, answered = await fetch(port, "POST", path, body, headers)
    check(response.status, response.headers["content-type"], answered)
