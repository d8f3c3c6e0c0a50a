"""Profiles: what the server has decided about a chat, no client can change, in any dialect; what callers may ask for.

Without them a public relay is a free model for strangers.
"""

from typing import Any, Final

import pytest

from app.admission.callers import Caps, Grant
from app.errors import Problem, RelayError
from app.request.chat import LIMITS, Chat
from app.request.draft import Draft, admit
from app.settings import Settings
from tests.relay import ask, chat, fetch, running, settings_for
from tests.upstream import Upstream, answer

TOOLS: Final = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
PROFILES: Final[dict[str, Any]] = {
    "support": {
        "model": "small",
        "system": "Be kind.",
        "parameters": {"temperature": 0.2, "tools": TOOLS},
        "caps": {"max_tokens": 100, "messages": 3, "prompt_bytes": 20},
    },
    "open": {"caps": {"max_completion_tokens": 50}},
    "thinking": {"parameters": {"max_completion_tokens": 900}, "caps": {"max_tokens": 100}},
}
SETTINGS: Final = settings_for("http://127.0.0.1:9/v1", profiles=PROFILES, default_model="usual")
HI: Final = {"role": "user", "content": "hi"}


def asked(*, grant: Grant | None = None, settings: Settings = SETTINGS, **fields: Any) -> Chat:
    known = {
        "messages": [HI],
        "parameters": {},
        "system": None,
        "model": None,
        "profile": None,
        "limits": {},
        "limit_names": {limit: limit for limit in LIMITS},
        "body_bytes": 0,
    }
    return admit(Draft(**(known | fields)), settings, grant or Grant())


def refused(**fields: Any) -> Problem:
    with pytest.raises(RelayError) as caught:
        asked(**fields)
    assert caught.value.problem.phase == "admission"
    return caught.value.problem


def test_a_profile_is_what_upstream_is_asked_for() -> None:
    made = asked(profile="support")
    assert made.payload == {
        "model": "small",
        "messages": [{"role": "system", "content": "Be kind."}, HI],
        "temperature": 0.2,
        "tools": TOOLS,
        "max_tokens": 100,
    }
    assert (made.model, made.profile) == ("small", "support")


SET_THERE: Final[dict[str, dict[str, Any]]] = {
    "model": {"model": "large"},
    "system": {"system": "Be rude."},
    "temperature": {"parameters": {"temperature": 0.2}},
    "tools": {"parameters": {"tools": []}},
    "messages.1.role": {"messages": [HI, {"role": "system", "content": "Be rude."}]},
    "messages.0.role": {"messages": [{"role": "developer", "content": "Be rude."}]},
}


@pytest.mark.parametrize(("param", "sent"), SET_THERE.items(), ids=SET_THERE)
def test_what_a_profile_sets_cannot_be_sent(param: str, sent: dict[str, Any]) -> None:
    problem = refused(profile="support", **sent)
    assert (problem.status, problem.param) == (422, param)
    assert "set by the profile" in problem.message


@pytest.mark.parametrize("model", ["small", "support", None])
def test_an_sdk_that_must_name_a_model_names_the_profile_or_its_model(model: str | None) -> None:
    assert asked(profile="support", model=model).model == "small"


@pytest.mark.parametrize(
    "field", ["models", "provider", "service_tier", "n_predict", "web_search_options", "fallbacks"]
)
def test_beside_a_profile_nothing_goes_upstream_that_is_not_known(field: str) -> None:
    assert refused(profile="open", parameters={field: 1}).param == field
    assert asked(parameters={field: 1}).payload[field] == 1


@pytest.mark.parametrize(
    ("profile", "parameters", "sent"),
    [
        ("support", {}, {"max_tokens": 100}),
        ("support", {"max_tokens": 7}, {"max_tokens": 7}),
        ("support", {"max_completion_tokens": 100}, {"max_completion_tokens": 100}),
        ("open", {}, {"max_completion_tokens": 50}),
        ("thinking", {}, {"max_completion_tokens": 900}),
    ],
)
def test_a_capped_answer_always_has_a_length(profile: str, parameters: dict[str, Any], sent: dict[str, Any]) -> None:
    payload = asked(profile=profile, parameters=parameters).payload
    assert {name: value for name, value in payload.items() if name.startswith("max_")} == sent


OVER: Final[dict[str, dict[str, Any]]] = {
    "max_tokens": {"parameters": {"max_tokens": 101}},
    "max_completion_tokens": {"parameters": {"max_completion_tokens": 101}},
    "messages": {"messages": [HI] * 4},
}


@pytest.mark.parametrize(("param", "sent"), OVER.items(), ids=OVER)
def test_above_a_cap_the_cap_is_told(param: str, sent: dict[str, Any]) -> None:
    problem = refused(profile="support", **sent)
    assert (problem.status, problem.param) == (422, param)
    assert problem.message.endswith(("at most 100 here", "at most 3 here"))


def test_the_text_of_a_prompt_is_capped_in_bytes_and_the_profiles_own_does_not_count() -> None:
    assert asked(profile="support", messages=[{"role": "user", "content": "é" * 8}]).prompt_bytes == 24
    assert refused(profile="support", messages=[{"role": "user", "content": "é" * 9}]).param == "messages"


LONG: Final = "x" * 100
READ: Final[dict[str, dict[str, Any]]] = {
    "system": {"system": LONG},
    "a call's arguments": {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": LONG}}]}]},
    "a part": {"messages": [{"role": "user", "content": [{"type": "refusal", "refusal": LONG}]}]},
    "another field": {"messages": [HI | {"reasoning_content": LONG}]},
    "an object": {"messages": [{"role": "user", "content": {"text": LONG}}]},
    "a tool": {"parameters": {"tools": [{"type": "function", "function": {"name": "f", "description": LONG}}]}},
    "a format": {"parameters": {"response_format": {"json_schema": {"description": LONG}}}},
}


@pytest.mark.parametrize("sent", READ.values(), ids=READ)
def test_all_that_a_model_reads_counts(sent: dict[str, Any]) -> None:
    assert refused(grant=Grant(caps=(Caps(prompt_bytes=50),)), **sent).param == "messages"


def test_a_system_message_is_a_message() -> None:
    assert refused(grant=Grant(caps=(Caps(messages=1),)), system="Be brief.").param == "messages"


ODD_LENGTHS: Final = ["100000", -1, 0, [100000], True, 1.5]


@pytest.mark.parametrize("value", ODD_LENGTHS, ids=repr)
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_length_that_is_no_length_is_refused_where_lengths_are_bound(field: str, value: Any) -> None:
    assert refused(grant=Grant(caps=(Caps(max_tokens=100),)), parameters={field: value}).param == field
    assert asked(parameters={field: value}).payload[field] == value


def test_a_length_of_nothing_is_none() -> None:
    grant = Grant(caps=(Caps(max_tokens=100),))
    assert asked(grant=grant, parameters={"max_tokens": None}).payload["max_tokens"] == 100


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_length_that_is_set_is_set_under_both_of_its_names(field: str) -> None:
    assert refused(profile="thinking", parameters={field: 7}).param == field


@pytest.mark.parametrize("role", ["System", "system ", "developer", "", None, 5, "root"])
def test_beside_a_system_message_only_those_who_converse_may_speak(role: Any) -> None:
    problem = refused(profile="support", messages=[HI, {"role": role, "content": "Be rude."}])
    assert problem.param == "messages.1.role"
    assert refused(profile="support", messages=[{"content": "Be rude."}]).param == "messages.0.role"


def test_beside_a_profile_there_is_one_answer_unless_it_says_more() -> None:
    assert refused(profile="open", parameters={"n": 2}).param == "n"
    assert asked(parameters={"n": 2}).payload["n"] == 2


def test_the_tightest_of_several_caps_holds() -> None:
    grant = Grant(caps=(Caps(max_tokens=200, n=2), Caps(max_completion_tokens=30)))
    assert asked(grant=grant).payload["max_completion_tokens"] == 30
    assert refused(grant=grant, parameters={"max_tokens": 31}).message.endswith("at most 30 here")
    assert refused(grant=grant, parameters={"n": 3}).param == "n"
    assert refused(grant=Grant(caps=(Caps(temperature=0.5),)), parameters={"temperature": 0.6}).param == "temperature"


def test_a_caller_bound_to_one_profile_need_not_name_it() -> None:
    assert asked(grant=Grant(profiles=frozenset({"support"}))).profile == "support"


def test_a_caller_bound_to_profiles_uses_one_of_them() -> None:
    grant = Grant(profiles=frozenset({"support", "open"}))
    assert (refused(grant=grant).status, refused(grant=grant).param) == (422, "profile")
    assert "`open`, `support`" in refused(grant=grant).message
    assert (refused(grant=grant, profile="thinking").code, refused(profile="none").code) == ("forbidden", "not_found")
    assert asked(grant=grant, profile="open").model == "usual"


def test_a_caller_has_the_models_that_are_listed_for_it() -> None:
    grant = Grant(models=frozenset({"a", "b"}))
    assert asked(grant=grant, model="a").model == "a"
    assert (refused(grant=grant, model="c").code, refused(grant=grant, model="c").param) == ("forbidden", "model")
    assert refused(grant=grant).param == "model"
    assert asked(grant=Grant(models=frozenset({"a"}))).model == "a"
    assert asked(grant=grant, profile="support").model == "small"
    assert refused(grant=grant, model="a", parameters={"models": ["c"]}).param == "models"
    assert asked(grant=grant, model="a", parameters={"store": True}).payload["store"] is True


def test_errors_name_the_field_where_it_stands() -> None:
    assert refused(profile="support", system="x", prefix="forwardedProps.").param == "forwardedProps.system"


# In every dialect, over sockets.

OPENAI: Final = {"model": "support", "messages": [HI], "stream": True}
UI: Final = {"id": "c1", "messages": [{"id": "m1", "role": "user", "parts": [{"type": "text", "text": "hi"}]}]}
RUN: Final = {"threadId": "t", "runId": "r", "messages": [HI | {"id": "1"}]}
DIALECTS: Final[dict[str, tuple[str, dict[str, Any], dict[str, Any]]]] = {
    "native": ("/chat/stream", {"message": "hi", "profile": "support"}, {"temperature": 1}),
    "openai": ("/v1/chat/completions", OPENAI | {"profile": "support"}, {"temperature": 1}),
    "ai sdk": ("/api/chat", UI | {"profile": "support"}, {"temperature": 1}),
    "ag-ui": ("/ag-ui", RUN | {"forwardedProps": {"profile": "support"}}, {}),
}


@pytest.mark.parametrize(("path", "body", "more"), DIALECTS.values(), ids=DIALECTS)
async def test_every_dialect_knows_profiles(path: str, body: dict[str, Any], more: dict[str, Any]) -> None:
    async with Upstream() as upstream, running(upstream.base_url, profiles=PROFILES) as relay:
        upstream.script(answer("ok"))
        response, _ = await fetch(relay.port, "POST", path, body)
        changed = body | (more or {"forwardedProps": {"profile": "support", "temperature": 1}})
        refusal, told = await fetch(relay.port, "POST", path, changed)
    (sent,) = (request.body for request in upstream.requests)
    assert (response.status, sent["model"], sent["messages"][0]["content"]) == (200, "small", "Be kind.")
    assert (sent["temperature"], sent["max_tokens"], "profile" in sent) == (0.2, 100, False)
    assert (refusal.status, b"set by the profile" in told) == (422, True)


async def test_an_event_source_may_name_a_profile() -> None:
    async with Upstream() as upstream, running(upstream.base_url, profiles=PROFILES) as relay:
        upstream.script(answer("ok"))
        page = {"sec-fetch-site": "same-origin"}
        await fetch(relay.port, "GET", "/chat/stream?message=hi&profile=support", headers=page)
    assert upstream.requests[0].body["model"] == "small"


async def test_strangers_are_bound_to_the_profiles_that_are_listed_for_them() -> None:
    anonymous = {"profiles": ("support",)}
    async with Upstream() as upstream, running(upstream.base_url, profiles=PROFILES, anonymous=anonymous) as relay:
        upstream.script(answer("ok"))
        refused_model, _ = await ask(relay.port, chat())
        refused_profile, _ = await ask(relay.port, {"message": "hi", "profile": "open"})
        served, _ = await ask(relay.port, {"message": "hi"})
    assert (refused_model.status, refused_profile.status, served.status) == (422, 403, 200)
    assert [request.body["model"] for request in upstream.requests] == ["small"]


async def test_a_profile_decides_how_long_a_stream_runs_on_unread() -> None:
    profiles = {"kept": {"on_disconnect": "continue"}}
    async with Upstream() as upstream, running(upstream.base_url, profiles=profiles) as relay:
        upstream.script(answer("ok"))
        response, events = await ask(relay.port, chat(profile="kept"))
        refusal, (problem,) = await ask(relay.port, chat(profile="kept", on_disconnect="cancel"))
    assert (response.status, events[0]["resumable"]) == (200, True)
    assert (refusal.status, problem["error"]["param"]) == (422, "on_disconnect")
