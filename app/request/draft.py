"""What a client asks for, in any dialect, and what its operator makes of it: the profile, the caller's grant, the caps.

What a profile sets cannot be sent: it is refused, not passed over, so that nobody believes in what has no effect. A
caller that is bound to anything may send the parameters that are known here and no others: upstreams have more ways to
name a model or a length than can be listed.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

from app.admission.callers import Caps, Grant
from app.errors import RelayError, invalid_request
from app.events import Passing
from app.request import chat
from app.request.chat import INSTRUCTING, Chat
from app.settings import Settings
from app.settings.parameters import ChatParameters, Object
from app.settings.tables import CapsTable, ProfileTable

LENGTHS: Final = ("max_tokens", "max_completion_tokens")
"""Two names of one thing: the older one, and that of OpenAI's reasoning models."""

WITH_PROFILE: Final = {*ChatParameters.model_fields, "n", "logprobs", "top_logprobs", "stream_options"}
"""What may be sent beside a profile, unless it is set there."""

WITH_BOUNDS: Final = WITH_PROFILE | {
    *("audio", "function_call", "functions", "modalities", "prediction", "prompt_cache_key", "prompt_cache_retention"),
    *("safety_identifier", "service_tier", "store", "verbosity", "web_search_options"),
}
"""What a caller may send whose models or parameters are bounded: OpenAI's parameters, and none of another service."""

_NO_PROFILE: Final = ProfileTable()


class Draft(msgspec.Struct, frozen=True):
    """A request as its client made it. `system` is a message of its own, put first.

    `limits` are seconds, whose `limit_names` errors use; `prefix` is where parameters stand in the body.
    """

    messages: list[Object]
    parameters: Object
    system: str | None
    model: str | None
    profile: str | None
    limits: Mapping[str, float]
    limit_names: Mapping[str, str]
    body_bytes: int
    prefix: str = ""
    passing: Passing | None = None


def admit(draft: Draft, settings: Settings, grant: Grant) -> Chat:
    """What upstream is asked for.

    Raises `forbidden` for a model or a profile that is not the caller's, `not_found` for a profile that is not there,
    and 422 for what a profile has set, above a cap, and without a model.
    """
    name = _profile_name(draft, settings, grant)
    profile = _NO_PROFILE if name is None else settings.profiles[name]
    _refuse_what_is_set(draft, name, profile)
    _refuse_unknown(draft, name, grant)
    caps: Sequence[Caps | CapsTable] = (profile.caps, *grant.caps)
    model = _model(draft, settings, grant, name, profile)
    set_there = profile.parameters.model_dump(exclude_unset=True, exclude_none=True)
    messages = _messages(draft, profile)
    return Chat(
        model=model,
        payload=_capped(draft, caps, set_there) | set_there | {"model": model, "messages": messages},
        limits=chat.limits(draft.limits, settings, draft.limit_names),
        prompt_bytes=_prompt_bytes(draft, messages, caps),
        body_bytes=draft.body_bytes,
        passing=draft.passing,
        profile=name,
        grant=grant,
        on_disconnect=profile.on_disconnect,
        webhook_text=profile.webhook_text,
    )


def _profile_name(draft: Draft, settings: Settings, grant: Grant) -> str | None:
    asked, where = draft.profile, f"{draft.prefix}profile"
    if asked is None and grant.profiles:
        if len(grant.profiles) == 1:
            return next(iter(grant.profiles))
        known = ", ".join(f"`{name}`" for name in sorted(grant.profiles))
        raise invalid_request(f"name a `profile`: there are {known}", param=where)
    if asked is not None and grant.profiles and asked not in grant.profiles:
        raise RelayError("forbidden", "this profile is not yours to use", param=where, phase="admission")
    if asked is not None and asked not in settings.profiles:
        raise RelayError("not_found", f"there is no profile `{asked[:64]}`", param=where, phase="admission")
    return asked


def _refuse_what_is_set(draft: Draft, name: str | None, profile: ProfileTable) -> None:
    for field in profile.parameters.model_fields_set & draft.parameters.keys():
        raise invalid_request(f"`{field}` is set by the profile: leave it out", param=f"{draft.prefix}{field}")
    if profile.model is not None and draft.model not in (None, name, profile.model):
        raise invalid_request("`model` is set by the profile: leave it out", param=f"{draft.prefix}model")
    if profile.system is not None:
        if draft.system is not None:
            raise invalid_request("`system` is set by the profile: leave it out", param=f"{draft.prefix}system")
        for index, message in enumerate(draft.messages):
            if message.get("role") in INSTRUCTING:
                words = "the system message is set by the profile: send none"
                raise invalid_request(words, param=f"messages.{index}.role")


def _refuse_unknown(draft: Draft, name: str | None, grant: Grant) -> None:
    if name is not None:
        known = WITH_PROFILE
    elif grant.models or grant.caps:
        known = WITH_BOUNDS
    else:
        return
    for field in sorted(draft.parameters.keys() - known):
        raise invalid_request(f"`{field[:64]}` may not be sent here", param=f"{draft.prefix}{field[:64]}")


def _model(draft: Draft, settings: Settings, grant: Grant, name: str | None, profile: ProfileTable) -> str:
    if profile.model is not None:
        return profile.model
    where = f"{draft.prefix}model"
    model = draft.model if draft.model != name else None
    if model is None and len(grant.models) == 1:
        return next(iter(grant.models))
    if model is None:
        model = settings.default_model
        if model is None or (grant.models and model not in grant.models):
            raise invalid_request(f"name a `{where}`: this relay has no default model", param=where)
    if grant.models and model not in grant.models:
        raise RelayError("forbidden", "this model is not yours to use", param=where, phase="admission")
    return model


def _messages(draft: Draft, profile: ProfileTable) -> list[Object]:
    system = draft.system if profile.system is None else profile.system
    return draft.messages if system is None else [{"role": "system", "content": system}, *draft.messages]


def _capped(draft: Draft, caps: Sequence[Caps | CapsTable], set_there: Object) -> Object:
    """The parameters, found to be within the caps, and the length of the answer where nobody has set one."""
    sent = draft.parameters
    for field in ("n", "temperature"):
        _within(draft, sent.get(field), _least(caps, field), field)
    lengths = [(bound, name) for name in LENGTHS for bound in _given(caps, name)]
    if not lengths:
        return sent
    most, name = min(lengths)
    for field in LENGTHS:
        _within(draft, sent.get(field), most, field)
    if any(field in sent or field in set_there for field in LENGTHS):
        return sent
    return sent | {name: most}


def _prompt_bytes(draft: Draft, messages: list[Object], caps: Sequence[Caps | CapsTable]) -> int:
    most = _least(caps, "messages")
    if most is not None and len(draft.messages) > most:
        raise invalid_request(f"messages: there may be at most {most:g} here", param="messages")
    _within(draft, chat.text_bytes(draft.messages), _least(caps, "prompt_bytes"), "messages", " bytes of text")
    return chat.text_bytes(messages)


def _within(draft: Draft, value: object, most: float | None, field: str, unit: str = "") -> None:
    if most is not None and isinstance(value, int | float) and value > most:
        where = field if unit else f"{draft.prefix}{field}"
        raise invalid_request(f"{where} may be at most {most:g}{unit} here", param=where)


def _least(caps: Sequence[Caps | CapsTable], field: str) -> float | None:
    return min(_given(caps, field), default=None)


def _given(caps: Sequence[Caps | CapsTable], field: str) -> Iterator[float]:
    return (bound for cap in caps if (bound := getattr(cap, field)) is not None)
