"""What a client asks for, in any dialect, and what its operator makes of it: the profile, the caller's grant, the caps.

What a profile sets cannot be sent: it is refused, not passed over, so that nobody believes in what has no effect. A
caller that is bound to anything may send the parameters that are known here and no others: upstreams have more ways to
name a model or a length than can be listed.
"""

from collections.abc import Mapping
from typing import Final

import msgspec
from pydantic import ValidationError

from app.admission.callers import Grant
from app.errors import RelayError, invalid_request
from app.events import Passing
from app.request import chat
from app.request.caps import LENGTHS, Bounds
from app.request.chat import Chat
from app.request.faults import refusal, unknown_among
from app.settings import Settings
from app.settings.parameters import ChatParameters, Object
from app.settings.tables import ProfileTable

CONVERSING: Final = {"user", "assistant", "tool", "function"}
"""All other roles instruct, or may be taken for one that does."""

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
    sent = _known(draft, name, grant)
    _refuse_what_is_set(draft, sent, name, profile)
    bounds = Bounds((profile.caps, *grant.caps), prefix=draft.prefix, choices=None if name is None else 1)
    bounds.hold_prompt(draft.messages, draft.system, sent)
    model = _model(draft, settings, grant, name, profile)
    set_there = profile.parameters.model_dump(exclude_unset=True, exclude_none=True)
    messages = _messages(draft, profile)
    return Chat(
        model=model,
        payload=bounds.held(sent, set_there) | {"model": model, "messages": messages},
        limits=chat.limits(draft.limits, settings, draft.limit_names),
        prompt_bytes=chat.text_bytes(messages),
        body_bytes=draft.body_bytes,
        passing=draft.passing,
        profile=name,
        grant=grant,
        on_disconnect=profile.on_disconnect,
        webhook_text=profile.webhook_text,
    )


def _profile_name(draft: Draft, settings: Settings, grant: Grant) -> str | None:
    asked, where = draft.profile, f"{draft.prefix}profile"
    if asked is None and draft.model in grant.profiles:
        return draft.model  # clients that can name nothing but a model
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


def _known(draft: Draft, name: str | None, grant: Grant) -> Object:
    """The parameters, of callers that are bound to anything found to be what they are called: a length in quotes, or
    below zero, is a length to one upstream and none to another.
    """
    if name is None and not grant.models and not grant.caps:
        return draft.parameters
    sent = {field: value for field, value in draft.parameters.items() if value is not None}
    for field in sorted(sent.keys() - (WITH_BOUNDS if name is None else WITH_PROFILE)):
        raise invalid_request(f"`{field[:64]}` may not be sent here", param=f"{draft.prefix}{field[:64]}")
    try:
        ChatParameters.model_validate(
            {field: sent[field] for field in sent.keys() & ChatParameters.model_fields.keys()}
        )
    except ValidationError as error:
        problem = refusal(error, lambda loc: unknown_among(ChatParameters.model_fields, loc[-1])).problem
        raise invalid_request(problem.message, param=f"{draft.prefix}{problem.param}") from None
    return sent


def _refuse_what_is_set(draft: Draft, sent: Object, name: str | None, profile: ProfileTable) -> None:
    pinned = profile.parameters.model_fields_set
    if pinned & {*LENGTHS}:
        pinned = pinned | {*LENGTHS}  # of two lengths some upstreams take the one, some the other
    for field in sorted(pinned & sent.keys()):
        raise invalid_request(f"`{field}` is set by the profile: leave it out", param=f"{draft.prefix}{field}")
    if profile.model is not None and draft.model not in (None, name, profile.model):
        raise invalid_request("`model` is set by the profile: leave it out", param=f"{draft.prefix}model")
    if profile.system is not None:
        _refuse_instructions(draft)


def _refuse_instructions(draft: Draft) -> None:
    if draft.system is not None:
        raise invalid_request("`system` is set by the profile: leave it out", param=f"{draft.prefix}system")
    for index, message in enumerate(draft.messages):
        if message.get("role") not in CONVERSING:
            words = "the system message is set by the profile: send none"
            raise invalid_request(words, param=f"messages.{index}.role")


def _model(draft: Draft, settings: Settings, grant: Grant, name: str | None, profile: ProfileTable) -> str:
    if profile.model is not None:
        return profile.model
    where = f"{draft.prefix}model"
    model = draft.model if draft.model != name else None
    if model is None and len(grant.models) == 1:
        return next(iter(grant.models))
    if model is None:
        model = settings.default_model
        if model is None:
            raise invalid_request(f"name a `{where}`: this relay has no default model", param=where)
        if grant.models and model not in grant.models:
            raise invalid_request(f"name a `{where}`: the default model is not yours to use", param=where)
    if grant.models and model not in grant.models:
        raise RelayError("forbidden", "this model is not yours to use", param=where, phase="admission")
    return model


def _messages(draft: Draft, profile: ProfileTable) -> list[Object]:
    system = draft.system if profile.system is None else profile.system
    return draft.messages if system is None else [{"role": "system", "content": system}, *draft.messages]
