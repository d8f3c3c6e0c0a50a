"""Fields that several dialects share, and the parameters of chat completions."""

from typing import Annotated

from pydantic import Field

from app.settings.parameters import ChatParameters, Object, Value
from app.settings.tables import OnDisconnect

__all__ = ["Name", "Object", "Parameters", "Value"]

Name = Annotated[str, Field(min_length=1, max_length=256)]


class Parameters(ChatParameters):
    """What a client may set beside its messages; unknown fields are refused."""

    profile: Name | None = Field(None, description="what the server has decided about chats of this name")
    system: str | None = Field(None, description="a system message, put first")
    model: Name | None = Field(None, description="else the relay's default model")
    on_disconnect: OnDisconnect | None = Field(None, description="what becomes of the generation when nobody reads it")

    def payload(self) -> Object:
        """The parameters as upstream gets them."""
        return self.model_dump(include=SENT_ON, exclude_unset=True, exclude_none=True)


SENT_ON = set(ChatParameters.model_fields)
