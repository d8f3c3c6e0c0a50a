"""Azure's shape of the same API: the deployment in the URL, the version in the query, the key in its own header."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.errors import RelayError
from tests.pools import attempt, body_of, claimed, pool_of, table
from tests.upstream import Upstream, answer, status

VERSION = "2024-10-21"
CHAT = f"/openai/deployments/gpt-4o/chat/completions?api-version={VERSION}"


@pytest.fixture
async def upstream(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Upstream]:
    """In an environment full of what the SDK would read by itself."""
    for name in ("API_KEY", "AD_TOKEN", "ENDPOINT"):
        monkeypatch.setenv(f"AZURE_OPENAI_{name}", "leak")
    for name in ("API_KEY", "API_VERSION", "ORG_ID", "PROJECT_ID"):
        monkeypatch.setenv(f"OPENAI_{name}", "leak")
    monkeypatch.setenv("KEY_OF_AZURE", "key-of-azure")
    async with Upstream() as upstream:
        upstream.script(answer("Hi"))
        yield upstream
    assert "leak" not in repr(upstream.requests)
    assert not [name for request in upstream.requests for name in request.headers if name.startswith("x-stainless")]


def azure(upstream: Upstream, **fields: Any) -> dict[str, dict[str, Any]]:
    endpoint = upstream.base_url.removesuffix("/v1")
    return {"azure": table(endpoint, **({"azure_api_version": VERSION, "api_key_env": "KEY_OF_AZURE"} | fields))}


@pytest.mark.parametrize("slash", ["", "/"])
async def test_a_chat_is_asked_of_its_deployment(upstream: Upstream, slash: str) -> None:
    tables = azure(upstream, models=["gpt-4o"])
    tables["azure"]["base_url"] += slash
    async with pool_of(tables) as pool:
        assert b"Hi" in await body_of(claimed(pool, "gpt-4o"))
    [request] = upstream.requests
    assert (request.method, request.path) == ("POST", CHAT)
    assert request.headers["api-key"] == "key-of-azure"
    assert "authorization" not in request.headers
    assert request.headers["user-agent"] == "sse-relay/test"
    assert request.headers["accept"] == "text/event-stream"
    assert request.body["stream"] is True


async def test_an_alias_is_a_deployment_too(upstream: Upstream) -> None:
    async with pool_of(azure(upstream, models=[], aliases={"fast": "gpt-4o"})) as pool:
        await body_of(claimed(pool, "fast"))
    assert (upstream.requests[0].path, upstream.requests[0].body["model"]) == (CHAT, "gpt-4o")


async def test_without_a_key_none_is_sent_and_a_token_may_be_a_header(upstream: Upstream) -> None:
    for headers in ({}, {"authorization": "Bearer entra"}):
        async with pool_of(azure(upstream, api_key_env=None, headers=headers)) as pool:
            await body_of(claimed(pool))
    bare, token = upstream.requests
    assert not {"authorization", "api-key"} & bare.headers.keys()
    assert token.headers["authorization"] == "Bearer entra"
    assert "api-key" not in token.headers


async def test_the_environments_token_does_not_take_the_place_of_a_key(upstream: Upstream) -> None:
    async with pool_of(azure(upstream)) as pool:
        await body_of(claimed(pool))
    assert upstream.requests[0].headers["api-key"] == "key-of-azure"


@pytest.mark.parametrize("model", ["..", ".", "../../x", "a/b", "a?b", "a#b", "a%2e", "a b", "\ud800", "\x00", "", "é"])
async def test_a_name_that_would_change_the_url_is_of_no_deployment(upstream: Upstream, model: str) -> None:
    async with pool_of(azure(upstream)) as pool:
        with pytest.raises(RelayError) as caught:
            pool.claim(model)
        assert caught.value.problem.code == "not_found"
    assert upstream.requests == []


async def test_a_refusal_of_stream_options_is_learnt(upstream: Upstream) -> None:
    words = b'{"error": {"code": null, "message": "Unrecognized request argument supplied: stream_options"}}'
    upstream.script(status(400, words), answer("Hi"))
    async with pool_of(azure(upstream)) as pool:
        assert [await attempt(claimed(pool)) for _ in range(2)] == [None, None]
    assert ["stream_options" in request.body for request in upstream.requests] == [True, False, False]


@pytest.mark.parametrize(
    ("said", "code"),
    [(401, "upstream_error"), (404, "upstream_rejected"), (429, "rate_limited"), (503, "upstream_unavailable")],
)
async def test_failures_are_named_as_everywhere(upstream: Upstream, said: int, code: str) -> None:
    upstream.script(status(said, b'{"error": {"code": "x", "message": "no"}}'))
    async with pool_of(azure(upstream)) as pool:
        failure = await attempt(claimed(pool))
    assert failure is not None
    assert (failure.code, failure.upstream_status) == (code, said)


@pytest.mark.parametrize(
    ("fields", "listed"),
    [
        ({"models": ["gpt-4o"], "aliases": {"fast": "gpt-4o"}}, ["gpt-4o", "fast"]),
        ({"aliases": {"fast": "gpt-4o"}}, ["fast"]),
        ({}, []),
    ],
)
async def test_deployments_are_listed_as_the_operator_names_them(
    upstream: Upstream, fields: dict[str, Any], listed: list[str]
) -> None:
    async with pool_of(azure(upstream, **fields)) as pool:
        assert [model["id"] for model in await pool.models()] == listed
    assert upstream.requests == []
