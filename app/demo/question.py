"""What is asked of the demo: the fields of a chat completion that shape its answer. Others are ignored."""

import re
from typing import Annotated, Any

import msgspec

from app.demo.refusals import malformed

Positive = Annotated[int, msgspec.Meta(ge=1)]
UpToFour = Annotated[int, msgspec.Meta(ge=1, le=4)]

TOKEN = re.compile(r"\s*[a-zA-Z0-9']{1,8}|\s*\S|\s+")


def tokens(text: str) -> list[str]:
    """Pieces about as long as a tokeniser's; joined, they are the text."""
    return TOKEN.findall(text)


class Part(msgspec.Struct, frozen=True):
    type: str
    text: str | None = None


class Message(msgspec.Struct, frozen=True):
    role: str
    content: str | list[Part] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return " ".join(part.text for part in self.content if part.text)
        return self.content or ""


class Function(msgspec.Struct, frozen=True):
    name: str
    parameters: dict[str, Any] | None = None


class Tool(msgspec.Struct, frozen=True):
    function: Function | None = None


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class Question(msgspec.Struct, frozen=True):
    model: str
    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: UpToFour | None = None
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    stop: str | list[str] | None = None
    tools: list[Tool] | None = None

    @property
    def last_user_text(self) -> str:
        return next((message.text for message in reversed(self.messages) if message.role == "user"), "")

    @property
    def prompt_tokens(self) -> int:
        """A quarter of the characters: to cut megabytes into tokens would hold up the loop of our host."""
        return max(1, sum(len(message.text) for message in self.messages) // 4)

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> list[str]:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in stops if stop]

    @property
    def function(self) -> Function | None:
        return next((tool.function for tool in self.tools or [] if tool.function), None)


def asked(body: bytes) -> Question:
    """Raises Refused (400) with the field at fault."""
    try:
        return msgspec.json.decode(body, type=Question)
    except msgspec.ValidationError as invalid:
        at_fault = re.search(r"at `\$\.([^`]+)`|required field `([^`]+)`", str(invalid))
        param = at_fault and (at_fault[1] or at_fault[2])
        raise malformed(f"Invalid request: {invalid}", param=param or None) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise malformed("We could not parse the JSON body of your request.") from None
