"""The bodies of `POST /tokens` and `POST /session`."""

from typing import Annotated, Final, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from app.admission.tokens import MAX_SUBJECT_CHARACTERS, is_subject
from app.request.faults import refusal, unknown_among
from app.settings.tables import MAX_TOKEN_SECONDS

MOST: Final = 10**12
"""What fits into a number of any reader of JSON, and is as good as no limit."""

Body = TypeVar("Body", bound=BaseModel)
Limit = Annotated[int | None, Field(ge=1, le=MOST)]


def _printable(subject: str) -> str:
    if not is_subject(subject):
        raise ValueError("must be printable: no line breaks and no control characters")
    return subject


class Limits(BaseModel):
    """How much the token's subject may use, within what its key may."""

    model_config = ConfigDict(extra="forbid", strict=True)

    max_streams: Limit = Field(None, description="streams at once")
    requests_per_minute: Limit = None
    tokens_per_minute: Limit = None
    tokens_per_day: Limit = None


class TokenRequest(BaseModel):
    """What a browser token is to say."""

    model_config = ConfigDict(extra="forbid", strict=True)

    subject: Annotated[str, Field(min_length=1, max_length=MAX_SUBJECT_CHARACTERS), AfterValidator(_printable)] = Field(
        description="whom it is for: what it begins belongs to this subject of the key"
    )
    profile: str | None = Field(None, min_length=1, description="the only profile that it can use")
    seconds: int = Field(MAX_TOKEN_SECONDS, ge=1, le=MAX_TOKEN_SECONDS, description="how long it is good")
    limits: Limits | None = None


class SessionRequest(BaseModel):
    """The token, unless it is in the `Authorization` header."""

    model_config = ConfigDict(extra="forbid", strict=True)

    token: str | None = None


def parse_token(body: bytes) -> TokenRequest:
    """Raises `invalid_request`, 400 when it is no JSON and 422 naming the field."""
    return _parsed(TokenRequest, body)


def parse_session(body: bytes) -> SessionRequest:
    """Raises as `parse_token` does."""
    return _parsed(SessionRequest, body)


def _parsed(kind: type[Body], body: bytes) -> Body:
    def unknown(loc: list[str]) -> str:
        *outer, name = loc
        return unknown_among(Limits.model_fields if outer == ["limits"] else kind.model_fields, name)

    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise refusal(error, unknown) from None
