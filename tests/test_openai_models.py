"""What `models.list()` and `models.retrieve()` of OpenAI's clients are told."""

import json
from typing import Final

import openai
import pytest

from tests.recipes import relay_of_answers
from tests.test_openai_node import asked
from tests.test_openai_python import sdk
from tests.upstream import Answer, status

JSON: Final = {"content-type": "application/json"}
MODELS: Final = [
    {"id": "demo", "object": "model", "created": 1, "owned_by": "us", "context_window": 8192},
    {"id": "org/large", "object": "model", "created": 2, "owned_by": "them"},
]
LISTED: Final = status(200, json.dumps({"object": "list", "data": MODELS}).encode(), JSON)


async def test_the_models_are_upstreams_own() -> None:
    async with relay_of_answers() as (relay, upstream), sdk(relay) as client:
        upstream.script(LISTED)
        assert [model.to_dict() async for model in client.models.list()] == MODELS
        for model in MODELS:  # a slash comes as %2F
            assert (await client.models.retrieve(str(model["id"]))).to_dict() == model
        listed, one, none = await asked(
            relay, ("models", {}), ("model", {"model": "org/large"}), ("model", {"model": "x"})
        )
        assert (listed["answer"], one["answer"]) == (MODELS, MODELS[1])
        assert (none["error"]["class"], none["error"]["status"]) == ("NotFoundError", 404)
        assert [request.path for request in upstream.requests] == ["/v1/models"]


async def test_a_model_that_is_not_listed_is_not_found() -> None:
    async with relay_of_answers() as (relay, upstream), sdk(relay, max_retries=2) as client:
        upstream.script(LISTED)
        with pytest.raises(openai.NotFoundError, match="there is no model `x`") as caught:
            await client.models.retrieve("x")
        assert (caught.value.code, caught.value.param) == ("not_found", "model")


async def test_an_upstream_without_a_list_has_the_default_model() -> None:
    async with relay_of_answers() as (relay, upstream), sdk(relay) as client:
        upstream.script(status(404, b"", {}))
        assert [model.id async for model in client.models.list()] == ["demo"]
        assert (await client.models.retrieve("demo")).object == "model"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (status(401, b"{}", JSON), "upstream_error"),
        (status(503, b""), "upstream_unavailable"),
        (status(200, b"<html>", {"content-type": "text/html"}), "upstream_protocol"),
    ],
)
async def test_a_list_that_cannot_be_had_is_a_server_error(answer: Answer, code: str) -> None:
    async with relay_of_answers() as (relay, upstream), sdk(relay) as client:
        upstream.script(answer)
        with pytest.raises(openai.InternalServerError) as caught:
            [model async for model in client.models.list()]
        assert (caught.value.status_code, caught.value.code) == (502, code)
