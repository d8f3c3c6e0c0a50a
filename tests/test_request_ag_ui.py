"""AG-UI's RunAgentInput as a chat completion: what of it reaches the model, and which field is named as wrong."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.admission.callers import EVERYTHING
from app.api.intake import TIMEOUT_HEADERS
from app.errors import Problem, RelayError
from app.request.ag_ui import MAX_SKIPPED_TOLD, draft, parse
from app.request.chat import Chat
from app.request.draft import admit
from tests.relay import settings_for

SETTINGS = settings_for("http://127.0.0.1:1/v1", default_model="demo")
PICTURE = {"type": "data", "value": "aGk=", "mimeType": "image/png"}
HI = {"id": "1", "role": "user", "content": "hi"}


class Admitted(msgspec.Struct):
    """A chat, and what was noticed on the way to it."""

    chat: Chat
    call_ids: frozenset[str]
    skipped: tuple[str, ...]


def asked(*messages: object, **fields: object) -> dict[str, object]:
    return {"threadId": "t", "runId": "r", "messages": messages or (HI,), **fields}


def admitted(*messages: object, **fields: object) -> Admitted:
    found = outcome(asked(*messages, **fields))
    assert isinstance(found, Admitted), found
    return found


def sent(*messages: object, **fields: object) -> Any:
    """OpenAI's message list."""
    return admitted(*messages, **fields).chat.payload["messages"]


def user(*parts: object) -> dict[str, object]:
    return {"id": "1", "role": "user", "content": parts}


def outcome(body: object) -> Admitted | Problem:
    try:
        drafted = draft(parse(json.dumps(body).encode()), {}, TIMEOUT_HEADERS, body_bytes=0)
        return Admitted(admit(drafted.draft, SETTINGS, EVERYTHING), drafted.call_ids, drafted.skipped)
    except RelayError as error:
        return error.problem


def refused(body: object) -> Problem:
    found = outcome(body)
    assert isinstance(found, Problem)
    return found


def test_a_conversation_goes_to_the_model_in_openai_s_words() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a":1}'}}
    conversation = sent(
        {"id": "1", "role": "developer", "content": "be brief"},
        {"id": "2", "role": "system", "content": "be kind", "name": "x"},
        {"id": "3", "role": "user", "content": "hi", "name": "ann"},
        {"id": "4", "role": "activity", "activityType": "plan", "content": {"step": 1}},
        {"id": "5", "role": "reasoning", "content": "hm", "encryptedValue": "…"},
        {"id": "6", "role": "assistant", "content": "I look.", "toolCalls": [call | {"metadata": {}}]},
        {"id": "7", "role": "tool", "toolCallId": "c1", "content": "sunny"},
        {"id": "8", "role": "assistant", "content": ""},
    )
    assert conversation == [
        {"role": "developer", "content": "be brief"},
        {"role": "system", "content": "be kind", "name": "x"},
        {"role": "user", "content": "hi", "name": "ann"},
        {"role": "assistant", "content": "I look.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {"role": "assistant", "content": ""},
    ]


def test_an_assistant_s_calls_need_no_text_and_nothing_said_is_not_sent() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": ""}}
    silent = {"id": "2", "role": "assistant", "toolCalls": [call], "content": None}
    nothing = {"id": "3", "role": "assistant", "toolCalls": None}
    assert sent(HI, silent, nothing)[1:] == [{"role": "assistant", "content": None, "tool_calls": [call]}]


PARTS = [
    ({"type": "text", "text": "hi", "id": "p1"}, {"type": "text", "text": "hi"}),
    ({"type": "image", "source": PICTURE}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}),
    (
        {"type": "image", "source": {"type": "url", "value": "https://a/b.png"}, "metadata": {"alt": None}},
        {"type": "image_url", "image_url": {"url": "https://a/b.png"}},
    ),
    (
        {"type": "audio", "source": {"type": "data", "value": "aGk=", "mimeType": "audio/mpeg"}},
        {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "mp3"}},
    ),
    (
        {"type": "audio", "source": {"type": "data", "value": "aGk=", "mimeType": "audio/x-wav;rate=1"}},
        {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}},
    ),
    (
        {"type": "document", "source": PICTURE | {"mimeType": "application/pdf"}, "metadata": {"filename": "a.pdf"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,aGk="}},
    ),
    (
        {"type": "document", "source": {"type": "file", "value": "file-1", "provider": "openai"}},
        {"type": "file", "file": {"file_id": "file-1"}},
    ),
    (
        {"type": "binary", "mimeType": "image/png", "data": "aGk="},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
    ),
    (
        {"type": "binary", "mimeType": "application/pdf", "data": "aGk=", "filename": "a.pdf"},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,aGk="}},
    ),
]


@pytest.mark.parametrize(("part", "expected"), PARTS, ids=lambda part: part["type"])
def test_parts_of_a_message_go_as_openai_s(part: object, expected: object) -> None:
    for role in ("user", "tool"):
        message = {"id": "1", "role": role, "content": [part], "toolCallId": "c1"}
        assert sent(message)[0]["content"] == [expected]


STRANGE = [
    {"type": "video", "source": {"type": "url", "value": "https://a/b.mp4"}},
    {"type": "image", "source": {"type": "file", "value": "file-1"}},
    {"type": "image", "source": {"type": "hologram", "value": 5}},
    {"type": "audio", "source": {"type": "url", "value": "https://a/b.mp3"}},
    {"type": "document", "source": {"type": "url", "value": "https://a/b.pdf"}},
    {"type": "document", "source": {"type": "file", "value": "f", "provider": "anthropic"}},
    {"type": "binary", "mimeType": "image/png"},
    {"type": "smell", "text": 5},
]


@pytest.mark.parametrize("part", STRANGE, ids=lambda part: str(part["type"]))
def test_a_part_that_a_chat_completion_has_no_form_for_is_skipped_and_told(part: object) -> None:
    made = admitted(HI, user({"type": "text", "text": "a"}, part, {"type": "text", "text": "b"}))
    assert made.chat.payload["messages"][1]["content"] == [{"type": "text", "text": text} for text in "ab"]  # type: ignore[index]
    assert made.skipped == ("messages.1.content.1",)


def test_a_message_whose_every_part_was_skipped_still_stands() -> None:
    """A tool call without an answer is refused by most models."""
    answer = {"id": "2", "role": "tool", "toolCallId": "c1", "content": [STRANGE[0]]}
    assert sent(answer)[0] == {"role": "tool", "tool_call_id": "c1", "content": ""}
    assert sent(answer | {"error": "it broke"})[0]["content"] == "it broke"
    assert sent(user(STRANGE[0]))[0]["content"] == ""


def test_what_a_newer_protocol_adds_is_passed_over() -> None:
    made = admitted(HI | {"mood": 1}, {"id": "2", "role": "oracle", "content": 5}, novel={}, protocolVersion="1.7")
    assert made.chat.payload["messages"] == [{"role": "user", "content": "hi"}]
    assert made.skipped == ("messages.1",)


def test_a_client_is_told_of_some_skipped_parts_not_of_a_million() -> None:
    assert len(admitted(HI, user(*[STRANGE[0]] * 100)).skipped) == MAX_SKIPPED_TOLD


def test_tools_are_offered_as_functions_beside_those_of_the_application_s_properties() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    tools = [{"name": "look", "description": "looks", "parameters": schema, "metadata": {}}, {"name": "bare"}]
    made = admitted(tools=tools, forwardedProps={"tools": [{"type": "web_search"}]})
    assert made.chat.payload["tools"] == [
        {"type": "function", "function": {"name": "look", "description": "looks", "parameters": schema}},
        {"type": "function", "function": {"name": "bare"}},
        {"type": "web_search"},
    ]
    assert "tools" not in admitted(tools=[]).chat.payload


def test_context_is_one_system_message_behind_the_instructions() -> None:
    context = [{"description": "The page", "value": "cart"}, {"description": "The user", "value": "Ann"}]
    instruction = {"id": "0", "role": "developer", "content": "be brief"}
    told = {"role": "system", "content": "Context from the application:\n\nThe page:\ncart\n\nThe user:\nAnn"}
    properties = {"system": "be kind"}
    assert sent(instruction, HI, context=context, forwardedProps=properties) == [
        {"role": "system", "content": "be kind"},
        {"role": "developer", "content": "be brief"},
        told,
        {"role": "user", "content": "hi"},
    ]
    assert sent(HI, context=context)[0] == told


def test_forwarded_properties_are_our_parameters_among_others() -> None:
    properties = {"model": "m", "temperature": 1, "max_tokens": 7, "theme": "dark", "config": {"temperature": "hot"}}
    made = admitted(forwardedProps=properties).chat
    assert made.model == "m"
    assert made.payload == {"model": "m", "temperature": 1, "max_tokens": 7, "messages": sent()}


@pytest.mark.parametrize("properties", [None, "dark", 5, ["a"], {}, {"theme": "dark"}])
def test_properties_of_any_shape_are_the_application_s_own(properties: object) -> None:
    assert admitted(forwardedProps=properties).chat.payload == {"model": "demo", "messages": sent()}


def test_what_only_agents_need_is_taken_and_not_used() -> None:
    resume = [{"interruptId": "i", "status": "resolved", "payload": 1}]
    fields = {"state": {"a": [1]}, "resume": resume, "parentRunId": None, "tools": None, "context": None}
    assert admitted(**fields).chat.payload == admitted().chat.payload


def test_the_ids_of_calls_in_the_conversation_are_known() -> None:
    calls = [{"id": name, "type": "function", "function": {"name": "f", "arguments": ""}} for name in ("a", "b")]
    assert admitted(HI, {"id": "2", "role": "assistant", "toolCalls": calls}).call_ids == {"a", "b"}


BAD = [
    (asked(threadId=5), "threadId"),
    (asked(runId="r" * 2000), "runId"),
    ({"threadId": "t", "runId": "r"}, "messages"),
    (asked(messages=[]), "messages"),
    (asked(messages={}), "messages"),
    (asked({"id": "1", "role": "activity", "content": {}}), "messages"),
    (asked("hi"), "messages.0"),
    (asked({"id": "1"}), "messages.0.role"),
    (asked({"id": "1", "role": 5}), "messages.0.role"),
    (asked(HI, {"id": "1", "role": "user"}), "messages.1.content"),
    (asked(HI | {"content": 5}), "messages.0.content"),
    (asked({"id": "1", "role": "system", "content": []}), "messages.0.content"),
    (asked(user("hi")), "messages.0.content.0"),
    (asked(user({"type": "text"})), "messages.0.content.0.text"),
    (asked(user({"type": "image"})), "messages.0.content.0.source"),
    (asked(user({"type": "image", "source": {"type": "data", "value": "x"}})), "messages.0.content.0.source.mimeType"),
    (asked({"id": "1", "role": "tool", "content": "x"}), "messages.0.toolCallId"),
    (asked({"id": "1", "role": "assistant", "toolCalls": [{"id": "c"}]}), "messages.0.toolCalls.0.function"),
    (asked(tools=[{"description": "x"}]), "tools.0.name"),
    (asked(tools=[{"name": "f", "parameters": "x"}]), "tools.0.parameters"),
    (asked(context=[{"value": "x"}]), "context.0.description"),
    (asked(forwardedProps={"temperature": "hot"}), "forwardedProps.temperature"),
    (asked(forwardedProps={"on_disconnect": "stay"}), "forwardedProps.on_disconnect"),
    (asked(forwardedProps={"max_tokens": 0}), "forwardedProps.max_tokens"),
    ([], "body"),
]


@pytest.mark.parametrize(("body", "param"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_a_known_field_that_is_wrong_is_named(body: object, param: str) -> None:
    problem = refused(body)
    assert (problem.code, problem.status, problem.param) == ("invalid_request", 422, param)


def test_what_is_no_json_is_a_400() -> None:
    with pytest.raises(RelayError) as raised:
        parse(b'{"threadId":')
    assert raised.value.problem.status == 400


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
PART = st.sampled_from([*STRANGE, PARTS[0][0]])
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system", "activity", "oracle"]) | JSON},
    optional={"content": JSON | st.lists(PART | JSON), "toolCalls": JSON, "toolCallId": JSON},
)
REST = st.dictionaries(st.sampled_from(["tools", "context", "forwardedProps", "state", "resume"]), JSON)


@given(messages=st.lists(MESSAGE | JSON, max_size=3) | JSON, rest=REST)
@settings(deadline=None)
def test_any_body_is_admitted_or_refused_by_name(messages: object, rest: dict[str, object]) -> None:
    match outcome(asked(**rest) | {"messages": messages}):
        case Admitted(chat=chat):
            assert json.dumps(chat.payload, allow_nan=False)
        case Problem(code=code, param=param):
            assert code == "invalid_request"
            assert param
