"""Which tool call a part belongs to, for every way of numbering them (contract §4, rule 7)."""

from typing import Any

import pytest

from app.decode.text import MAX_PIECE_CHARACTERS
from app.decode.tools import MAX_TOOL_CALLS
from app.events import ToolCall
from tests.decoding import chunk, decode, stream

Part = dict[str, Any]


def part(index: object = None, call_id: str | None = None, name: str | None = None, arguments: object = None) -> Part:
    function = {"name": name, "arguments": arguments}
    return {"index": index, "id": call_id, "type": "function", "function": function}


def calls(*parts: Part) -> dict[int, tuple[str | None, str | None, str]]:
    """One chunk for each part; the same parts in one chunk must come to the same."""
    one_by_one = decode(stream(*(chunk(tool_calls=[part]) for part in parts)))
    assert decode(stream(chunk(tool_calls=list(parts)))) == one_by_one
    return one_by_one.tool_calls


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        pytest.param(
            [part(0, "a", "f", ""), part(0, None, None, "{"), part(0, None, None, "}"), part(1, "b", "g", "[]")],
            {0: ("a", "f", "{}"), 1: ("b", "g", "[]")},
            id="OpenAI",
        ),
        pytest.param(
            [part(0, "a", "f", ""), part(1, "b", "g", ""), part(0, arguments="x"), part(1, arguments="y")],
            {0: ("a", "f", "x"), 1: ("b", "g", "y")},
            id="interleaved",
        ),
        pytest.param(
            [part(None, "a", "f", "{}"), part(None, "b", "f", "{}")],
            {0: ("a", "f", "{}"), 1: ("b", "f", "{}")},
            id="Gemini: no index",
        ),
        pytest.param(
            [part(None, "a", "f", "{"), part(None, "a", None, "}"), part(None, None, None, " ")],
            {0: ("a", "f", "{} ")},
            id="no index, in parts",
        ),
        pytest.param(
            [part(0, "a", "f", "{}"), part(0, "b", "f", "{"), part(0, None, None, "}")],
            {0: ("a", "f", "{}"), 1: ("b", "f", "{}")},
            id="Ollama: all of index 0",
        ),
        pytest.param(
            [part(0, "a", "f", "{"), part(0, "a", "f", "}")],
            {0: ("a", "f", "{}")},
            id="id and name repeated",
        ),
        pytest.param(
            [part(0, "a", "f", "1"), part(0, "b", "g", "2"), part(0, "a", "f", "3")],
            {0: ("a", "f", "13"), 1: ("b", "g", "2")},
            id="repeated, and all of index 0",
        ),
        pytest.param(
            [part(0, "a", "f", "{"), part(0, "other", None, "}")],
            {0: ("a", "f", "{}")},
            id="another id without a name is the same call",
        ),
        pytest.param(
            [part(0, "a", "f", "{}"), part(0, "b", "g", "{}"), part(1, "c", "h", "x"), part(1, None, None, "y")],
            {0: ("a", "f", "{}"), 1: ("b", "g", "{}"), 2: ("c", "h", "xy")},
            id="an index that was given away",
        ),
        pytest.param(
            [part(0, "same", "f", "x"), part(1, "same", "g", "y")],
            {0: ("same", "f", "x"), 1: ("same", "g", "y")},
            id="one id for two indexes",
        ),
        pytest.param([part("1", "a", "f", "x"), part(1, None, None, "y")], {1: ("a", "f", "xy")}, id="index as text"),
        pytest.param([part(0, "", "f", "x"), part(0, "", "", "y")], {0: (None, "f", "xy")}, id="empty ids"),
        pytest.param([part(0, "a", None, "x"), part(0, None, "f", "y")], {0: ("a", "f", "xy")}, id="a late name"),
        pytest.param([part(-1, "a", "f", "x"), part(-1, None, None, "y")], {0: ("a", "f", "xy")}, id="odd index"),
        pytest.param([part(10**30, "a", "f", "x")], {0: ("a", "f", "x")}, id="index beyond all numbers"),
        pytest.param([part(None, None, None, "x"), part(None, None, None, "y")], {0: (None, None, "xy")}, id="nothing"),
        pytest.param([{"index": 0, "id": "a", "function": None}], {0: ("a", None, "")}, id="null function"),
        pytest.param([part(0, "a", "f", {"q": "é", "n": [1]})], {0: ("a", "f", '{"q":"é","n":[1]}')}, id="object"),
        pytest.param(
            [{"index": 0, "id": "a", "type": "custom", "custom": {"name": "f", "input": "x"}}],
            {0: ("a", "f", "x")},
            id="custom",
        ),
        pytest.param(
            [{"index": 0, "custom": {"name": "f", "input": {"a": 1}}}], {0: (None, "f", '{"a":1}')}, id="both"
        ),
        pytest.param([part(0), part(1, "", "", "")], {}, id="nothing at all is no call"),
    ],
)
def test_parts_find_their_call(parts: list[Part], expected: dict[int, tuple[str, str, str]]) -> None:
    assert calls(*parts) == expected


def test_a_legacy_function_call_is_a_tool_call() -> None:
    parts = [{"name": "f", "arguments": "{"}, {"name": "f", "arguments": '"a"'}, {"arguments": ":1}"}]
    assert decode(stream(*(chunk(function_call=part) for part in parts))).tool_calls == {0: (None, "f", '{"a":1}')}


def test_id_and_name_come_with_the_first_piece_alone() -> None:
    arguments = "x" * (MAX_PIECE_CHARACTERS + 1)
    answer = stream(chunk(tool_calls=[part(0, "a", "f", arguments)]), chunk(tool_calls=[part(0, "a", "f", "")]))
    assert decode(answer).pieces == [ToolCall(0, "a", "f", arguments[:-1]), ToolCall(0, None, None, "x")]


def test_half_a_character_in_arguments_waits_for_the_rest_of_its_own_call() -> None:
    parts = [part(0, "a", "f", "\ud83d"), part(1, "b", "g", "\ude00\ud83d"), part(0, arguments="\ude00")]
    assert calls(*parts) == {0: ("a", "f", "\U0001f600"), 1: ("b", "g", "\ufffd\ufffd")}


def test_half_a_character_in_a_name_is_replaced() -> None:
    assert calls(part(0, "a\ud83d", "f\ude00", "")) == {0: ("a\ufffd", "f\ufffd", "")}


@pytest.mark.parametrize("named", [part(0, "x" * 513, "f"), part(0, "a", "x" * 513)])
def test_an_endless_id_or_name_is_a_protocol_error(named: Part) -> None:
    assert decode(stream(chunk(tool_calls=[named]))).problem.code == "upstream_protocol"


def test_tool_calls_are_bounded() -> None:
    parts = [part(None, f"c{number}", "f") for number in range(MAX_TOOL_CALLS)]
    assert len(decode(stream(chunk(tool_calls=parts))).tool_calls) == MAX_TOOL_CALLS
    one_more = decode(stream(chunk(tool_calls=[*parts, part(None, "c", "f")])))
    assert (len(one_more.pieces), one_more.problem.code) == (MAX_TOOL_CALLS, "upstream_protocol")
