"""AG-UI's messages as chat completions have them.

Receivers are to pass over what a newer protocol adds: unknown roles and kinds of content are no errors, and neither is
content that a chat completion has no form for. It is skipped, and the client is told where it stood.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, PlainValidator
from pydantic.alias_generators import to_camel

from app.request.chat import INSTRUCTING
from app.request.fields import Object

AUDIO_FORMATS: Final = {"mpeg": "mp3", "wave": "wav", "x-wav": "wav", "vnd.wave": "wav"}
"""Where OpenAI's name of a format is not the second half of its media type."""

Skip = Callable[[int], None]
"""Told the position of a part that is left out."""


class Known(BaseModel):
    """A part of the protocol, as far as it is known here."""

    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", strict=True)


def one_of(kinds: Mapping[str, type[Known]], key: str) -> PlainValidator:
    """The member of a union that `key` names, None for a name that is unknown; pydantic's own unions refuse that, and
    put the member's name into the path of every fault.
    """

    def validated(value: object) -> Known | None:
        name = value.get(key) if isinstance(value, dict) else None
        if isinstance(name, str) and name not in kinds:
            return None
        kind = kinds[name] if isinstance(name, str) else next(iter(kinds.values()))
        return kind.model_validate(value)

    return PlainValidator(validated)


class Source(Known):
    type: str
    value: str
    mime_type: str | None = None
    provider: str | None = None


class InlineSource(Source):
    mime_type: str


class Part(Known):
    """A part of a message's content."""

    type: str

    def sent(self) -> Object | None:
        """As chat completions have it, None where they do not."""
        raise NotImplementedError


class TextPart(Part):
    text: str

    def sent(self) -> Object | None:
        return {"type": "text", "text": self.text}


class MediaPart(Part):
    source: Annotated[Source | None, one_of({"data": InlineSource, "url": Source, "file": Source}, "type")]
    metadata: Any = None

    def sent(self) -> Object | None:
        filename = self.metadata.get("filename") if isinstance(self.metadata, dict) else None
        if self.source is None:
            return None
        return _media(self.type, self.source, filename if isinstance(filename, str) else None)


class BinaryPart(Part):
    """What clients before 1.0 send in place of media parts."""

    mime_type: str
    data: str | None = None
    url: str | None = None
    id: str | None = None
    filename: str | None = None

    def sent(self) -> Object | None:
        family = self.mime_type.partition("/")[0]
        kind = family if family in ("image", "audio", "video") else "document"
        for source_type, value in (("data", self.data), ("url", self.url), ("file", self.id)):
            if value:
                source = Source(type=source_type, value=value, mimeType=self.mime_type)
                return _media(kind, source, self.filename)
        return None


MEDIA: Final = dict.fromkeys(("image", "audio", "document", "video"), MediaPart)
AnyPart = Annotated[Part | None, one_of({"text": TextPart, "binary": BinaryPart, **MEDIA}, "type")]
Content = str | Annotated[list[AnyPart], Field(fail_fast=True)]


class Function(Known):
    name: str
    arguments: str


class ToolCall(Known):
    id: str
    function: Function

    def sent(self) -> Object:
        return {"id": self.id, "type": "function", "function": self.function.model_dump()}


class Message(Known):
    """A message that stays with the client: what an agent was doing, what a model thought."""

    role: str

    def sent(self, _skip: Skip) -> Object | None:
        """As OpenAI has it, None where it says nothing to a model."""
        return None


class Instruction(Message):
    content: str
    name: str | None = None

    def sent(self, _skip: Skip) -> Object | None:
        return {"role": self.role, "content": self.content} | _named(self.name)


class UserMessage(Message):
    content: Content
    name: str | None = None

    def sent(self, skip: Skip) -> Object | None:
        return {"role": self.role, "content": _content(self.content, skip)} | _named(self.name)


class AssistantMessage(Message):
    content: str | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None

    def sent(self, _skip: Skip) -> Object | None:
        calls: Object = {"tool_calls": [call.sent() for call in self.tool_calls]} if self.tool_calls else {}
        if self.content is None and not calls:
            return None
        return {"role": self.role, "content": self.content} | calls | _named(self.name)


class ToolMessage(Message):
    content: Content
    tool_call_id: str
    error: str | None = None

    def sent(self, skip: Skip) -> Object | None:
        """A call without an answer is refused by most models, so that one without content is answered too."""
        content = _content(self.content, skip) or self.error or ""
        return {"role": self.role, "tool_call_id": self.tool_call_id, "content": content}


ROLES: Final[Mapping[str, type[Message]]] = {
    **dict.fromkeys(("activity", "reasoning"), Message),
    **dict.fromkeys(INSTRUCTING, Instruction),
    "user": UserMessage,
    "assistant": AssistantMessage,
    "tool": ToolMessage,
}
AnyMessage = Annotated[Message | None, one_of(ROLES, "role")]


def conversation(messages: Sequence[Message | None]) -> tuple[list[Object], list[str]]:
    """OpenAI's message list, and the paths of what it has no form for."""
    sent: list[Object] = []
    skipped: list[str] = []
    for index, message in enumerate(messages):
        if message is None:
            skipped.append(f"messages.{index}")
            continue
        parts: list[int] = []
        if said := message.sent(parts.append):
            sent.append(said)
        skipped += (f"messages.{index}.content.{part}" for part in parts)
    return sent, skipped


def call_ids(messages: Sequence[Message | None]) -> frozenset[str]:
    """The ids of the tool calls that a conversation holds."""
    asked = (message.tool_calls or () for message in messages if isinstance(message, AssistantMessage))
    return frozenset(call.id for calls in asked for call in calls)


def _content(content: str | list[Part | None], skip: Skip) -> str | list[Object]:
    if isinstance(content, str):
        return content
    parts: list[Object] = []
    for position, part in enumerate(content):
        if sent := part and part.sent():
            parts.append(sent)
        else:
            skip(position)
    return parts or ""


def _media(kind: str, source: Source, filename: str | None) -> Object | None:
    media_type = source.mime_type or ""
    inline = f"data:{media_type};base64,{source.value}"
    match kind, source.type:
        case "image", "data":
            return {"type": "image_url", "image_url": {"url": inline}}
        case "image", "url":
            return {"type": "image_url", "image_url": {"url": source.value}}
        case "audio", "data":
            name = media_type.partition("/")[2].partition(";")[0]
            audio = {"data": source.value, "format": AUDIO_FORMATS.get(name, name)}
            return {"type": "input_audio", "input_audio": audio}
        case "document", "data":
            return {"type": "file", "file": {"filename": filename or "document", "file_data": inline}}
        case "document", "file" if source.provider in (None, "openai"):
            return {"type": "file", "file": {"file_id": source.value}}
        case _:
            return None


def _named(name: str | None) -> Object:
    return {} if name is None else {"name": name}
