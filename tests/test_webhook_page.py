"""docs/webhook.md: its code verifies what the relay sends, and its example is what is sent."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec

from tests.relay import ask, chat, running, until
from tests.upstream import Upstream, answer
from tests.webhook_receiver import Receiver

PAGE = (Path(__file__).parents[1] / "docs/webhook.md").read_text(encoding="utf-8")
SECRET = "whsec_" + "c2VjcmV0" * 4


async def test_the_page_about_the_webhook_is_true(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    code: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0], code)
    shown = json.loads(re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)[0])
    async with Upstream() as upstream, Receiver() as receiver:
        upstream.script(answer("Hello"))
        webhook = {"url": receiver.url, "secret_file": tmp_path / "secret"}
        profiles = {"support": {"webhook_text": True}}
        async with running(upstream.base_url, webhook=webhook, profiles=profiles) as relay:
            await ask(relay.port, chat(profile="support"))
            await until(lambda: receiver.received, 5)
    (call,) = receiver.received
    sent = msgspec.json.decode(call.body)
    assert code["is_genuine"](call.headers, call.body, SECRET)
    assert not code["is_genuine"](call.headers, call.body + b" ", SECRET)
    assert (sent.keys(), sent["data"].keys()) == (shown.keys(), shown["data"].keys())
    assert (sent["data"]["text"], sent["data"]["usage"].keys()) == ("Hello", shown["data"]["usage"].keys())
