"""The AI SDK's UI messages, and what they are in OpenAI's message list.

They become what the SDK's own `convertToModelMessages` and its OpenAI provider make of them: an assistant's message is
split at its steps, and a tool's part is the call and, once there is one, its result.
"""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from app.errors import RelayError, invalid_request
from app.request.fields import Object, Value

MAX_ID_CHARACTERS: Final = 256
_URL: Final = re.compile(r"(?:data:|https?://)", re.ASCII | re.IGNORECASE)
_BASE64: Final = re.compile(r"data:[^,]*;base64,", re.ASCII | re.IGNORECASE)
_FORMATS: Final = {"mpeg": "mp3", "x-mpeg": "mp3", "x-wav": "wav", "wave": "wav", "vnd.wave": "wav"}
"""OpenAI's names of audio formats, where a media type has another."""


class Approval(BaseModel):
    """What the user said to a tool call."""

    model_config = ConfigDict(extra="ignore", strict=True)

    approved: bool | None = None
    reason: str | None = None


class Part(BaseModel):
    """Any part of a message. Which fields it must have depends on its type; what nobody reads is passed over."""

    model_config = ConfigDict(extra="ignore", strict=True, alias_generator=to_camel)

    type: str
    text: str | None = None
    media_type: str | None = None
    filename: str | None = None
    url: str | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None
    state: str | None = None
    input: Value = None
    output: Value = None
    error_text: str | None = None
    approval: Approval | None = None
    parts: Annotated[list["Part"], Field(fail_fast=True)] | None = None


class UIMessage(BaseModel):
    """A message as `useChat` keeps it; metadata and all that an application adds are its own business."""

    model_config = ConfigDict(extra="ignore", strict=True)

    id: str = Field("", max_length=MAX_ID_CHARACTERS)
    role: Literal["system", "user", "assistant"]
    parts: Annotated[list[Part], Field(fail_fast=True)]


Placed = tuple[str, Part]
"""A part, and where in the body it stands."""


def converted(messages: Sequence[UIMessage]) -> list[Object]:
    """OpenAI's message list; raises 422 naming the field that is missing or cannot be sent."""
    last_user = max((at for at, message in enumerate(messages) if message.role == "user"), default=0)
    made: list[Object] = []
    for at, message in enumerate(messages):
        parts = [(f"messages.{at}.parts.{n}", part) for n, part in enumerate(message.parts)]
        if at < last_user:  # asked whether a tool may run, the user wrote something else
            parts = [(where, part) for where, part in parts if part.state != "approval-requested"]
        match message.role:
            case "system":
                made += _system(parts)
            case "user":
                made += _user(parts)
            case "assistant":
                made += _assistant(parts)
    if not made:
        raise invalid_request("messages: there is nothing in them to answer", param="messages")
    return made


def _system(parts: Iterable[Placed]) -> list[Object]:
    text = _text(parts)
    return [{"role": "system", "content": text}] if text else []


def _user(parts: Iterable[Placed]) -> list[Object]:
    match [content for where, part in parts if (content := _content(where, part))]:
        case []:
            return []
        case [{"type": "text", "text": text}]:
            return [{"role": "user", "content": text}]
        case contents:
            return [{"role": "user", "content": contents}]


def _assistant(parts: Iterable[Placed]) -> list[Object]:
    made: list[Object] = []
    step: list[Placed] = []
    for where, part in parts:
        match part.type:
            case "step-start":
                made += _step(step)
                step = []
            case "steering-message":
                inner = [(f"{where}.parts.{n}", said) for n, said in enumerate(part.parts or [])]
                made += _step(step) + _user(inner)
                step = []
            case _:
                step.append((where, part))
    return made + _step(step)


def _step(parts: Sequence[Placed]) -> list[Object]:
    """One answer of the model: text, calls, and behind it the results of these. Thoughts are not said again."""
    text = _text(parts)
    tools = [(where, part) for where, part in parts if _is_tool(part) and part.state != "input-streaming"]
    if not tools:
        return [{"role": "assistant", "content": text}] if text else []
    calls = [_call(where, part) for where, part in tools]
    results = [
        {"role": "tool", "tool_call_id": part.tool_call_id, "content": result}
        for _, part in tools
        if (result := _result(part)) is not None
    ]
    return [{"role": "assistant", "content": text or None, "tool_calls": calls}, *results]


def _text(parts: Iterable[Placed]) -> str:
    return "".join(_needed(part.text, f"{where}.text") for where, part in parts if part.type == "text")


def _content(where: str, part: Part) -> Object | None:
    match part.type:
        case "text":
            return {"type": "text", "text": _needed(part.text, f"{where}.text")}
        case "file":
            return _file(where, part)
        case kind if kind.startswith(("data-", "source-")):
            return None
        case _:
            words = "a user's message is made of `text` and `file` (`data-…` and `source-…` are not sent on)"
            raise _fault(f"{where}.type", words)


def _file(where: str, part: Part) -> Object:
    kind, _, subtype = _needed(part.media_type, f"{where}.mediaType").lower().partition("/")
    url = _needed(part.url, f"{where}.url")
    if not _URL.match(url):
        raise _fault(f"{where}.url", "a file is a data: URL or an http(s) one")
    match kind:
        case "image":
            return {"type": "image_url", "image_url": {"url": url}}
        case "audio":
            # At the beginning alone: tried at every `data:` of a URL without a comma it would hold the loop for hours.
            head = _BASE64.match(url)
            if head is None:
                raise _fault(f"{where}.url", "audio is a data: URL in base64")
            audio = {"data": url[head.end() :], "format": _FORMATS.get(subtype, subtype)}
            return {"type": "input_audio", "input_audio": audio}
        case _:
            name = part.filename or f"part-{where.rpartition('.')[2]}.{subtype}"
            return {"type": "file", "file": {"filename": name, "file_data": url}}


def _is_tool(part: Part) -> bool:
    return part.type == "dynamic-tool" or part.type.startswith("tool-")


def _call(where: str, part: Part) -> Object:
    call_id = _needed(part.tool_call_id, f"{where}.toolCallId")
    _needed(part.state, f"{where}.state")
    named = part.tool_name if part.type == "dynamic-tool" else part.type.removeprefix("tool-")
    name = _needed(named, f"{where}.toolName")
    # Templates of many models fail at arguments that are no object; the tool's result says what was wrong with them.
    arguments = _json(part.input if isinstance(part.input, dict) else {})
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _result(part: Part) -> str | None:
    reason = part.approval.reason if part.approval else None
    match part.state:
        case "output-available":
            return part.output if isinstance(part.output, str) else _json(part.output)
        case "output-error":
            return part.error_text or ""
        case "output-denied":
            return reason or "Tool call execution denied."
        case "approval-responded" if part.approval is not None and part.approval.approved is False:
            return reason or "Tool execution denied."
        case _:
            return None


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _needed(value: str | None, where: str) -> str:
    if value is None:
        raise _fault(where, "field required")
    return value


def _fault(where: str, words: str) -> RelayError:
    return invalid_request(f"{where}: {words}", param=where)
