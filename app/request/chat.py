"""What every dialect's request becomes: a frozen value that the relay works with."""

import math
from collections.abc import Mapping
from typing import Final

import msgspec

from app.admission.callers import EVERYTHING, Grant
from app.errors import RelayError, invalid_request
from app.events import Passing
from app.settings import Settings
from app.settings.tables import OnDisconnect

INSTRUCTING: Final = ("system", "developer")
"""Roles whose messages tell the model what it is to be."""

LIMITS: Final = ("connect", "first_token", "idle", "total")


class Limits(msgspec.Struct, frozen=True, gc=False):
    """Seconds. `connect` is for each attempt and is kept by whoever connects; the others by the relay's clocks."""

    connect: float
    first_token: float
    idle: float
    total: float


class Chat(msgspec.Struct, frozen=True):
    """A request that was found good. `payload` is what upstream gets, without the fields that are the relay's.

    `on_disconnect` is the profile's word, `webhook_text` whether the webhook is told the answer as well.
    """

    model: str
    payload: dict[str, object]
    limits: Limits
    prompt_bytes: int
    body_bytes: int
    passing: Passing | None = None
    profile: str | None = None
    grant: Grant = EVERYTHING
    on_disconnect: OnDisconnect | None = None
    webhook_text: bool = False


def limits(asked: Mapping[str, float], settings: Settings, names: Mapping[str, str]) -> Limits:
    """The limits asked for, else the operator's; `names` are those that the client knows them by.

    Raises 422 above the operator's cap.
    """
    return Limits(**{limit: _limit(limit, asked.get(limit), settings, names[limit]) for limit in LIMITS})


def linger_s(
    chosen: OnDisconnect | None, settings: Settings, *, default: OnDisconnect, pinned: OnDisconnect | None = None
) -> float:
    """The policy as the number it is: how long a generation runs on unread. `pinned` is the profile's word.

    Raises `forbidden` for `continue` without the operator's permission, and 422 against the profile.
    """
    if pinned is not None and chosen not in (None, pinned):
        raise invalid_request("`on_disconnect` is set by the profile: leave it out", param="on_disconnect")
    match pinned or chosen or default:
        case "cancel":
            return 0.0
        case "wait":
            return settings.wait_seconds
        case "continue" if settings.allow_continue or pinned:
            return math.inf
        case _:
            message = "on_disconnect `continue` is not permitted here; `wait` and `cancel` are"
            raise RelayError("forbidden", message, param="on_disconnect", phase="admission")


def text_bytes(messages: list[dict[str, object]]) -> int:
    """UTF-8 bytes of all text in OpenAI's message list: what a prompt is estimated from."""
    return sum(_text_bytes(message.get("content")) for message in messages)


def _text_bytes(content: object) -> int:
    if isinstance(content, str):
        return len(content.encode())
    parts = content if isinstance(content, list) else []
    texts = (part.get("text") for part in parts if isinstance(part, dict))
    return sum(len(text.encode()) for text in texts if isinstance(text, str))


def _limit(limit: str, asked: float | None, settings: Settings, name: str) -> float:
    if asked is None:
        return float(getattr(settings, f"timeout_{limit}_seconds"))
    cap = float(getattr(settings, f"max_timeout_{limit}_seconds"))
    if asked > cap:
        raise invalid_request(f"{name} may be at most {cap:g} s here", param=name)
    return asked
