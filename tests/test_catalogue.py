"""GET /v1/models: what all upstreams list, asked for once in a while."""

import asyncio
import json
from typing import Any

import pytest

from app.catalogue import Catalogue
from app.errors import RelayError
from tests.pools import pool_of, table
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


# Several upstreams.


def named(*ids: str) -> Answer:
    return listed([{"id": id, "object": "model", "owned_by": "them"} for id in ids])


async def test_all_upstreams_models_are_one_list() -> None:
    async with Upstream() as asked, Upstream() as told:
        asked.script(named("shared", "own"))
        tables = {
            "told": table(told.base_url, models=["shared", "m"], aliases={"fast": "m"}, priority=1),
            "asked": table(asked.base_url, aliases={"slow": "own"}),
        }
        async with pool_of(tables) as pool:
            models = {model["id"]: model for model in await pool.models()}
        assert [*models] == ["slow", "shared", "own", "m", "fast"]
        assert models["shared"]["owned_by"] == "them", "described by the upstream that would be asked first"
        assert models["m"] == {"id": "m", "object": "model", "created": 0, "owned_by": "upstream"}
        assert told.requests == []


async def test_an_upstream_that_cannot_be_asked_hides_no_others_models() -> None:
    async with Upstream() as good, Upstream() as bad, Upstream() as bare:
        good.script(named("m"))
        bad.script(status(503))
        bare.script(status(404))
        tables = {
            "bad": table(bad.base_url),
            "gone": table("http://127.0.0.1:9/v1"),
            "bare": table(bare.base_url, aliases={"fast": "x"}),
            "good": table(good.base_url),
        }
        async with pool_of(tables) as pool:
            assert [model["id"] for model in await pool.models()] == ["fast", "m"]


async def test_where_none_can_be_asked_the_failure_is_told_before_the_want_of_a_list() -> None:
    async with Upstream() as bad, Upstream() as bare:
        bad.script(status(503))
        bare.script(status(404))
        async with pool_of({"bare": table(bare.base_url), "bad": table(bad.base_url)}) as pool:
            with pytest.raises(RelayError) as caught:
                await Catalogue(pool, "m").models()
        assert caught.value.problem.upstream_status == 503


@pytest.mark.parametrize(("default", "ids"), [("m", ["m"]), ("other", ["m", "other"]), (None, ["m"])])
async def test_the_default_model_is_listed_once(default: str | None, ids: list[str]) -> None:
    async with pool_of({"x": table(models=["m"]), "y": table(azure_api_version="1")}) as pool:
        assert [model["id"] for model in await Catalogue(pool, default).models()] == ids
