"""The body of `POST /api/chat`: what the AI SDK's transport sends, and the parameters of chat completions beside it."""

import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, ValidationError

from app.request.draft import Draft
from app.request.faults import refusal, unknown_among
from app.request.fields import Parameters
from app.request.ui_messages import UIMessage, converted

_CHAT_ID: Final = re.compile(r"(?!\.{1,2}$)[!-.0-~]{1,128}", re.ASCII)


def _chat_id(value: str) -> str:
    """It stands in a path: `/` and the dots that mean a folder could not be asked for again."""
    if not _CHAT_ID.fullmatch(value):
        raise ValueError("a chat's id has 1 to 128 visible ASCII characters, without `/`")
    return value


class ChatBody(Parameters):
    """The body of `POST /api/chat`: what the transport sends, and beside it the parameters of `useChat`'s `body`."""

    id: Annotated[str, AfterValidator(_chat_id)]
    messages: Annotated[list[UIMessage], Field(min_length=1, fail_fast=True)]
    trigger: Literal["submit-message", "regenerate-message"] = "submit-message"
    message_id: str | None = Field(None, alias="messageId")

    @property
    def continued_id(self) -> str | None:
        """The id of the assistant's message that the answer is the next step of, as the SDK's `Chat` decides it.

        Under another id it would show the answer as a message of its own.
        """
        if self.trigger == "regenerate-message":
            return None
        named = (message for message in self.messages if self.message_id and message.id == self.message_id)
        answered = next(named, self.messages[-1])
        return (answered.id or None) if answered.role == "assistant" else None


KNOWN: Final = {field.alias or name: field for name, field in ChatBody.model_fields.items()}


def parse(body: bytes) -> ChatBody:
    """Raises `invalid_request`, 400 when it is no JSON and 422 naming the field."""
    try:
        return ChatBody.model_validate_json(body)
    except ValidationError as error:
        raise refusal(error, lambda loc: unknown_among(KNOWN, loc[-1])) from None


def draft(request: ChatBody, timeouts: Mapping[str, float], names: Mapping[str, str], *, body_bytes: int) -> Draft:
    """`timeouts` came as headers, whose `names` errors use; raises 422 for parts that cannot be sent."""
    return Draft(
        messages=converted(request.messages),
        parameters=request.payload(),
        system=request.system,
        model=request.model,
        profile=request.profile,
        limits=timeouts,
        limit_names=names,
        body_bytes=body_bytes,
    )
