"""Every recorded upstream answer, over real sockets, becomes what the contract says."""

import pytest

from tests.cases import CASES, Case
from tests.relay import ask, chat, running, text_of
from tests.upstream import Upstream, head, send


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_an_upstream_answer_ends_as_the_contract_says(case: Case) -> None:
    expect = case.expect
    async with Upstream() as upstream, running(upstream.base_url, attempts=1) as relay:
        upstream.script((head(case.status, case.headers), send(case.body)))
        response, events = await ask(relay.port, chat())
    assert response.status == (expect.http_status or 200)
    if response.status != 200:
        assert events[0]["error"]["code"] == expect.code
        return
    *_, end, last = events
    assert last == {"type": "[DONE]"}
    assert end["type"] == expect.end
    assert text_of(events) == expect.text
    assert "".join(event.get("reasoning", "") for event in events) == (expect.reasoning or "")
    assert "".join(event.get("refusal", "") for event in events) == (expect.refusal or "")
    assert len({event["tool_call"]["index"] for event in events if "tool_call" in event}) == (expect.tool_calls or 0)
    if end["type"] == "error":
        assert end["error"]["code"] == expect.code
    else:
        assert end["finish_reason"] == (expect.finish_reason or end["finish_reason"])
        assert (expect.usage or {}).items() <= end["usage"].items()
