"""GET /v1/models: upstream's own list, asked for once in a while."""

import asyncio
import json
from typing import Any

import pytest

from tests.relay import fetch, running
from tests.upstream import Answer, Upstream, head, send, silent, status, wait

MODELS = [
    {"id": "m", "object": "model", "created": 1, "owned_by": "x", "extra": True},
    {"id": "a/b", "object": "model"},
]


def listed(document: object = None) -> Answer:
    return status(200, json.dumps(document or {"object": "list", "data": MODELS}).encode())


async def get(port: int, path: str = "/v1/models") -> tuple[int, Any]:
    response, body = await fetch(port, "GET", path)
    return response.status, json.loads(body)


async def test_upstreams_models_are_listed_and_asked_for_once() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(listed())
        assert await get(relay.port) == (200, {"object": "list", "data": MODELS})
        assert await get(relay.port, "/v1/models/a/b") == (200, MODELS[1])
        code, body = await get(relay.port, "/v1/models/none")
    assert (code, body["error"]["code"], body["error"]["param"]) == (404, "not_found", "model")
    [request] = upstream.requests
    assert (request.method, request.path) == ("GET", "/v1/models")
    assert request.headers["authorization"] == "Bearer test-key"


async def test_a_bare_array_is_a_list_too() -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(listed(MODELS))
        assert await get(relay.port) == (200, {"object": "list", "data": MODELS})


@pytest.mark.parametrize(
    ("answered", "code", "error"),
    [
        (status(401, b"{}"), 502, "upstream_error"),
        (status(404, b"{}"), 400, "upstream_rejected"),
        (status(503, b"{}"), 502, "upstream_unavailable"),
        (status(200, b"<html>"), 502, "upstream_protocol"),
        (status(200, b'{"data": {}}'), 502, "upstream_protocol"),
        ((head(content_length=9 * 1024 * 1024), send(b" " * (9 * 1024 * 1024))), 502, "upstream_protocol"),
    ],
)
async def test_a_list_that_cannot_be_had_is_an_error_and_is_asked_for_again(
    answered: Answer, code: int, error: str
) -> None:
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(answered, listed())
        status, body = await get(relay.port)
        assert (status, body["error"]["code"]) == (code, error)
        assert (await get(relay.port))[0] == 200


async def test_what_is_no_model_is_left_out() -> None:
    odd = b'{"data": [null, "m", {"name": "no id"}, {"id": 7}, {"id": "m", "x": "\\ud800", "y": NaN}]}'
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(status(200, odd))
        code, body = await get(relay.port)
    assert (code, body["data"]) == (200, [{"id": "m", "x": "\ud800", "y": None}])


async def test_many_who_ask_at_once_are_one_question() -> None:
    released = asyncio.Event()
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script((wait(released), *listed()))
        asking = [asyncio.create_task(get(relay.port)) for _ in range(8)]
        await upstream.wait_for(lambda upstream: upstream.active == 1)
        released.set()
        assert [code for code, _ in await asyncio.gather(*asking)] == [200] * 8
    assert len(upstream.requests) == 1


async def test_an_upstream_without_a_list_serves_the_default_model() -> None:
    async with Upstream() as upstream, running(upstream.base_url, default_model="m") as relay:
        upstream.script(status(404, b"{}"))
        _, body = await get(relay.port)
    assert [model["id"] for model in body["data"]] == ["m"]


async def test_a_list_that_does_not_come_ends_by_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.upstream.client.MODELS_SECONDS", 0.05)
    async with Upstream() as upstream, running(upstream.base_url) as relay:
        upstream.script(silent())
        code, body = await get(relay.port)
    assert (code, body["error"]["code"]) == (504, "upstream_timeout")
