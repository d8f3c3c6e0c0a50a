"""What the AI SDK's transport sends becomes OpenAI's list, as the SDK's own conversion has it, or an error by name."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from app.admission.callers import EVERYTHING
from app.errors import Problem, RelayError
from app.request import ai_sdk
from app.request.chat import LIMITS, Chat
from app.request.draft import admit
from tests.ai_sdk import page
from tests.relay import settings_for

NAMES = {limit: f"X-{limit}" for limit in LIMITS}
PIXEL = "data:image/png;base64,iVBORw0KGgo="
Object = dict[str, Any]


def text(words: str) -> Object:
    return {"type": "text", "text": words, "state": "done"}


def file(media_type: str, url: str, **more: object) -> Object:
    return {"type": "file", "mediaType": media_type, "url": url, **more}


def tool(state: str, **fields: object) -> Object:
    return {"type": "tool-look", "toolCallId": "c1", "state": state, "input": {"at": "Zürich", "n": 1}, **fields}


def message(role: str, *parts: Object, **more: object) -> Object:
    return {"id": f"m-{role}", "role": role, "parts": [*parts], **more}


def body(*messages: Object, **fields: object) -> Object:
    return {"id": "chat-1", "messages": messages, "trigger": "submit-message", **fields}


def admitted(*messages: Object, **fields: object) -> Chat:
    encoded = json.dumps(body(*messages, **fields)).encode()
    settings = settings_for("http://localhost/v1", default_model="m")
    draft = ai_sdk.draft(ai_sdk.parse(encoded), {"idle": 7.0}, NAMES, body_bytes=len(encoded))
    return admit(draft, settings, EVERYTHING)


def sent(*messages: Object, **fields: object) -> Any:
    return admitted(*messages, **fields).payload["messages"]


def refused(*messages: Object, **fields: object) -> Problem:
    with pytest.raises(RelayError) as caught:
        admitted(*messages, **fields)
    assert caught.value.problem.status == 422
    return caught.value.problem


HI = message("user", text("hi"))


def as_openai(messages: list[Object]) -> list[Object]:
    """The SDK's model messages as its OpenAI provider sends them: thoughts and approvals are not."""
    return [made for message in messages for made in MAKERS[message["role"]](message["content"])]


def from_system(content: str) -> list[Object]:
    return [{"role": "system", "content": content}]


def from_user(content: list[Object]) -> list[Object]:
    if [part["type"] for part in content] == ["text"]:
        return [{"role": "user", "content": content[0]["text"]}]
    urls = [
        {"type": "image_url", "image_url": {"url": p["data"]["url"]}} if p["type"] == "file" else p for p in content
    ]
    return [{"role": "user", "content": urls}] if urls else []


def from_assistant(content: list[Object]) -> list[Object]:
    said = "".join(part["text"] for part in content if part["type"] == "text")
    calls = [
        {
            "id": part["toolCallId"],
            "type": "function",
            "function": {"name": part["toolName"], "arguments": compact(part["input"])},
        }
        for part in content
        if part["type"] == "tool-call"
    ]
    if calls:
        return [{"role": "assistant", "content": said or None, "tool_calls": calls}]
    return [{"role": "assistant", "content": said}] if said else []


def from_tool(content: list[Object]) -> list[Object]:
    results = [part for part in content if part["type"] == "tool-result"]
    return [{"role": "tool", "tool_call_id": p["toolCallId"], "content": output(p["output"])} for p in results]


def output(value: Object) -> str:
    match value["type"]:
        case "text" | "error-text":
            return str(value["value"])
        case "execution-denied":
            return str(value.get("reason") or "Tool execution denied.")
        case _:
            return compact(value["value"])


def compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


MAKERS: dict[str, Callable[[Any], list[Object]]] = {
    "system": from_system,
    "user": from_user,
    "assistant": from_assistant,
    "tool": from_tool,
}

ASKED = {"id": "a1"}
CONVERSATIONS = {
    "text": [message("system", text("Be "), text("brief.")), message("user", text("one"), text("two"))],
    "image": [message("user", text("what is this?"), file("image/png", PIXEL), file("image", "https://e.org/a"))],
    "passed over": [message("user", {"type": "data-place", "id": "d", "data": {}}, text("hi"))],
    "an answer": [HI, message("assistant", {"type": "reasoning", "text": "Hm"}, text("Hel"), text("lo")), HI],
    "empty answers": [HI, message("assistant"), message("assistant", {"type": "reasoning", "text": "Hm"}), HI],
    "steps": [
        HI,
        message(
            "assistant",
            {"type": "step-start"},
            text("I will look."),
            tool("output-available", output={"is": "sunny", "t": [1.5, None]}),
            {"type": "dynamic-tool", "toolName": "f", "toolCallId": "c2", "state": "output-available"}
            | {"input": {}, "output": "plain"},
            {"type": "step-start"},
            {"type": "source-url", "sourceId": "s", "url": "https://e.org"},
            text("Sunny."),
        ),
        HI,
    ],
    "a steered answer": [
        HI,
        message("assistant", text("Hel"), {"type": "steering-message", "id": "s", "parts": [text("no")]}, text("lo")),
    ],
    "input-streaming": [HI, message("assistant", text("a"), tool("input-streaming", rawInput='{"at'))],
    "input-available": [HI, message("assistant", text("a"), tool("input-available"))],
    "output-available": [HI, message("assistant", tool("output-available", output=None))],
    "output-error": [HI, message("assistant", tool("output-error", errorText="no such place"))],
    "output-denied": [
        HI,
        message("assistant", tool("output-denied", approval=ASKED | {"approved": False})),
        message("assistant", tool("output-denied", approval=ASKED | {"approved": False, "reason": "never"})),
    ],
    "approval-requested": [HI, message("assistant", text("a"), tool("approval-requested", approval=ASKED))],
    "an approval that was passed over": [
        HI,
        message("assistant", text("a"), tool("approval-requested", approval=ASKED)),
        HI,
    ],
    "approved": [HI, message("assistant", tool("approval-responded", approval=ASKED | {"approved": True}))],
    "denied": [
        HI,
        message("assistant", tool("approval-responded", approval=ASKED | {"approved": False})),
        message("assistant", tool("approval-responded", approval=ASKED | {"approved": False, "reason": "no"})),
    ],
}


async def test_conversations_are_what_the_sdk_makes_of_them() -> None:
    async with page() as client:
        for name, messages in CONVERSATIONS.items():
            wanted = as_openai(await client.do("convert", messages=messages))
            assert sent(*messages) == wanted, name


def test_files_become_what_openai_calls_them() -> None:
    parts = [
        file("image/*", PIXEL),
        file("audio/mpeg", "data:audio/mpeg;base64,SUQz"),
        file("audio/x-wav", "DATA:audio/x-wav;BASE64,UklG"),
        file("audio/ogg", "data:;base64,T2dn"),
        file("application/pdf", "data:application/pdf;base64,JVBE", filename="a.pdf"),
        file("application/pdf", "https://e.org/a.pdf"),
    ]
    [user] = sent(message("user", *parts))
    assert user["content"] == [
        {"type": "image_url", "image_url": {"url": PIXEL}},
        {"type": "input_audio", "input_audio": {"data": "SUQz", "format": "mp3"}},
        {"type": "input_audio", "input_audio": {"data": "UklG", "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": "T2dn", "format": "ogg"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBE"}},
        {"type": "file", "file": {"filename": "part-5.pdf", "file_data": "https://e.org/a.pdf"}},
    ]


@pytest.mark.parametrize("given", ['{"broken', [1], None])
def test_arguments_that_are_no_object_go_back_as_an_empty_one(given: object) -> None:
    part = tool("output-error", errorText="no object") | {"input": given}
    _, answer, result = sent(HI, message("assistant", part))
    assert answer["tool_calls"][0]["function"]["arguments"] == "{}"
    assert result["content"] == "no object"


def test_parameters_stand_beside_the_messages() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    chat = admitted(HI, system="Be brief.", temperature=0.5, model="big", tools=tools, on_disconnect="cancel")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert chat.payload == {"model": "big", "messages": messages, "temperature": 0.5, "tools": tools}
    assert (chat.limits.idle, chat.prompt_bytes) == (7.0, len("Be brief.hi"))


def test_all_that_the_sdk_and_applications_keep_in_messages_is_accepted() -> None:
    parts = text("hi") | {"providerMetadata": {"x": {}}, "citations": []}, {"type": "data-x", "data": {"deep": [1]}}
    answer = message("assistant", text("ho"), metadata={"usage": {"total_tokens": 1}}, annotations=[1])
    chat = admitted(message("user", *parts, createdAt=1), answer, HI, messageId=None)
    assert [each["content"] for each in chat.payload["messages"]] == ["hi", "ho", "hi"]  # type: ignore[attr-defined]


AGAIN = {"trigger": "regenerate-message"}
ANSWER = message("assistant", text("ho"))


@pytest.mark.parametrize(
    ("messages", "fields", "continued"),
    [
        ([HI], {}, None),
        ([HI, ANSWER], {}, "m-assistant"),
        ([HI, ANSWER], {"messageId": "elsewhere"}, "m-assistant"),
        ([HI, ANSWER, HI], {"messageId": "m-assistant"}, "m-assistant"),
        ([HI, ANSWER, HI], {}, None),
        ([HI, ANSWER], {"messageId": "m-user"}, None),
        ([HI, ANSWER], AGAIN, None),
        ([HI, ANSWER], AGAIN | {"messageId": "m-assistant"}, None),
        ([HI, ANSWER | {"id": ""}], {}, None),
    ],
)
def test_an_answer_continues_the_message_that_the_sdk_adds_it_to(
    messages: list[Object], fields: Object, continued: str | None
) -> None:
    assert ai_sdk.parse(json.dumps(body(*messages, **fields)).encode()).continued_id == continued


USER = "messages.0.parts.0"
FAULTS = [
    ([message("user", file("image/png", "blob:http://e.org/1"))], f"{USER}.url"),
    ([message("user", {"type": "file", "mediaType": "image/png"})], f"{USER}.url"),
    ([message("user", {"type": "file", "url": PIXEL})], f"{USER}.mediaType"),
    ([message("user", file("audio/wav", "https://e.org/a.wav"))], f"{USER}.url"),
    ([message("user", {"type": "text"})], f"{USER}.text"),
    ([message("user", {"type": "image", "image": PIXEL})], f"{USER}.type"),
    ([message("user", {"text": "hi"})], f"{USER}.type"),
    ([HI, message("user", text("a"), file("image/png", "file:///etc/passwd"))], "messages.1.parts.1.url"),
    ([HI, message("assistant", {"type": "tool-f", "state": "input-available"})], "messages.1.parts.0.toolCallId"),
    ([HI, message("assistant", {"type": "tool-f", "toolCallId": "c"})], "messages.1.parts.0.state"),
    ([HI, message("assistant", tool("x") | {"type": "dynamic-tool"})], "messages.1.parts.0.toolName"),
    ([message("assistant", {"type": "steering-message", "parts": [{"type": "text"}]})], f"{USER}.parts.0.text"),
    ([{"role": "user", "content": "hi"}], "messages.0.parts"),
    ([message("developer", text("hi"))], "messages.0.role"),
    ([message("user", text("hi"), id="x" * 257)], "messages.0.id"),
    ([message("user", {"type": "data-x", "data": 1}), message("assistant")], "messages"),
    ([], "messages"),
]


@pytest.mark.parametrize(("messages", "param"), FAULTS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_fault_of_a_message_is_named(messages: list[Object], param: str) -> None:
    problem = refused(*messages)
    assert problem.param == param
    assert problem.message.startswith(param)


def test_what_audio_is_is_seen_at_the_beginning_of_its_url() -> None:
    began = time.perf_counter()
    assert refused(message("user", file("audio/wav", "data:" * 50_000))).param == f"{USER}.url"
    assert time.perf_counter() - began < 1  # a millisecond; searched for at every `data:` it is many seconds


@pytest.mark.parametrize("chat_id", ["", ".", "..", "a/b", "a b", "é", "x" * 129, "a\n", 7, None])
def test_a_chat_id_can_stand_in_a_path(chat_id: object) -> None:
    assert refused(HI, id=chat_id).param == "id"


@pytest.mark.parametrize("chat_id", ["a", "...", "0b2f:r1:_~@x", "%2e", "x" * 128])
def test_a_chat_id_of_visible_characters_is_good(chat_id: str) -> None:
    assert admitted(HI, id=chat_id)


def test_unknown_fields_are_refused_with_the_nearest_known_one() -> None:
    problem = refused(HI, messageID="m")
    assert (problem.param, problem.message) == ("messageID", "unknown field `messageID`; did you mean `messageId`?")
    assert refused(HI, data={}).message.startswith("unknown field `data`")
    assert refused(HI, trigger="resume-stream").param == "trigger"
