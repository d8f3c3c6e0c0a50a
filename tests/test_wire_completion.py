"""Chunks add up to the completion that a client would have got without streaming."""

import json
from typing import Any

import pytest

from app.errors import RelayError
from app.events import Delta, Passed, Usage
from app.wire.completion import Completion

ESTIMATED = Usage(1, 2, 3, "estimated")


def chunk(index: int = 0, delta: Any = None, **more: Any) -> Passed:
    choice = {"index": index, "delta": delta or {}, "finish_reason": None}
    return Passed(json.dumps({"id": "c1", "created": 1, "model": "m", "choices": [choice | more]}).encode(), None)


def whole(*chunks: Passed) -> Any:
    completion = Completion()
    for each in chunks:
        completion.receive([each])
    return json.loads(completion.document(ESTIMATED))


def test_text_of_any_name_is_joined_for_each_choice() -> None:
    document = whole(
        chunk(0, {"role": "assistant", "content": ""}),
        chunk(1, {"content": "Ho"}),
        chunk(0, {"content": "H", "reasoning_content": "a", "audio": {"id": "x", "transcript": "H"}}),
        chunk(0, {"content": "i", "reasoning_content": "b", "audio": {"id": "x", "transcript": "i"}}),
        chunk(1, finish_reason="length"),
        chunk(0, finish_reason="stop"),
    )
    first, second = document["choices"]
    audio = {"id": "x", "transcript": "Hi"}
    assert first["message"] == {"role": "assistant", "content": "Hi", "reasoning_content": "ab", "audio": audio}
    assert (first["finish_reason"], second["finish_reason"]) == ("stop", "length")
    assert second["message"] == {"role": "assistant", "content": "Ho"}
    assert (document["id"], document["object"], document["model"]) == ("c1", "chat.completion", "m")


def test_tool_calls_are_put_together_by_their_index() -> None:
    parts = [
        {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}},
        {"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": "{"}},
        {"index": 0, "function": {"arguments": '{"x":'}},
        {"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": "}"}},
        {"index": 0, "function": {"arguments": "1}"}},
    ]
    [choice] = whole(*(chunk(0, {"tool_calls": [part]}) for part in parts))["choices"]
    assert choice["message"]["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    assert choice["message"]["content"] is None


def test_lists_grow_and_other_things_are_replaced() -> None:
    document = whole(
        chunk(0, {"content": "H"}, logprobs={"content": [{"token": "H", "logprob": -1.5}]}, score=1),
        chunk(0, {"content": "i"}, logprobs={"content": [{"token": "i", "logprob": -2}]}, score=2),
        chunk(0, {}, logprobs=None, score=None),
    )
    [choice] = document["choices"]
    assert [each["token"] for each in choice["logprobs"]["content"]] == ["H", "i"]
    assert choice["score"] == 2


def test_usage_is_upstreams_own_and_else_the_relays() -> None:
    reported = {"total_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}
    counted = Passed(json.dumps({"choices": [], "usage": reported}).encode(), None)
    assert whole(chunk(0, {"content": "x"}), counted)["usage"] == reported
    assert whole(chunk(0, {"content": "x"}))["usage"] == {
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "total_tokens": 3,
        "source": "estimated",
    }


def test_what_an_earlier_entry_said_is_not_said_again() -> None:
    [choice] = whole(chunk(0, {"content": "Hi"}), Passed(b"", Delta("i")))["choices"]
    assert choice["message"]["content"] == "Hi"


def test_the_first_that_names_the_completion_names_it() -> None:
    azure = Passed(b'{"id":"","created":0,"model":"","choices":[],"prompt_filter_results":[1]}', None)
    again = Passed(b'{"id":"c2","created":2,"model":"n","citations":["late"],"x":1e999,"choices":[]}', None)
    document = whole(azure, chunk(0, {"content": "Hi"}), again)
    assert (document["id"], document["created"], document["model"]) == ("c1", 1, "m")
    assert (document["citations"], document.get("x")) == (["late"], None)


def test_only_a_delta_grows() -> None:
    safe = {"content_filter_results": {"severity": "safe"}, "message": {"content": "said so far"}}
    [choice] = whole(chunk(0, {"content": "H"}, **safe), chunk(0, {"content": "i"}, **safe))["choices"]
    assert (choice["message"]["content"], choice["content_filter_results"]) == ("Hi", {"severity": "safe"})


@pytest.mark.parametrize("calls", [[None], "abc", [{"index": [1], "id": "a"}]])
def test_odd_tool_calls_are_no_fault_of_ours(calls: Any) -> None:
    assert whole(chunk(0, {"content": "Hi", "tool_calls": calls}))["choices"][0]["message"]["content"] == "Hi"


def test_a_chunk_that_is_nested_too_deeply_is_refused() -> None:
    deep = b'{"choices":[{"index":0,"delta":{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}}]}"
    with pytest.raises(RelayError, match="nested too deeply"):
        Completion().receive([Passed(deep, None)])
