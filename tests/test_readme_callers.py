"""Keys, tokens and tables, by the commands and the file that the README shows."""

import hashlib
import re
import tomllib
from pathlib import Path

from app.demo.server import DemoServer
from tests.relay import event_of, running
from tests.terminal import run as run_relay
from tests.test_readme import block_with, run


async def test_the_key_the_table_and_the_token_of_the_readme_work(tmp_path: Path) -> None:
    command, _, shown = block_with("keys new", "console").partition("\n")
    made = await run_relay(tmp_path, *command.removeprefix("$ .venv/bin/sse-relay ").split())
    key, said = made.out.partition("\n")[0], made.err + made.out
    assert re.sub(r"[\w-]{43,64}", "…", shown).split() == re.sub(r"[\w-]{43,64}", "…", in_order(said)).split()
    tables = tomllib.loads(block_with("[upstreams.openai]", "toml"))
    shown_key = re.findall(r"KEY=(rk_\S+)", block_with("/tokens", "console"))[0]
    assert tables["keys"]["shop"]["sha256"] == [hashlib.sha256(shown_key.encode()).hexdigest()]
    tables["keys"]["shop"]["sha256"] = [hashlib.sha256(key.encode()).hexdigest()]
    demo = DemoServer()
    tables["upstreams"]["openai"] |= {"base_url": "http://127.0.0.1:9/v1", "api_key_env": None}
    tables["upstreams"]["spare"] |= {"base_url": await demo.start(), "aliases": {"gpt-4o-mini": "demo-fast"}}
    async with running("http://127.0.0.1:9/v1", **tables) as relay:
        _, mint, _, _, ask = block_with("/tokens", "console").strip().splitlines()
        minted = await run("sh", "-c", f"KEY={key}; {here(mint, relay.port)} -s")
        token = re.findall(r'"token":"([^"]+)"', minted)[0]
        answer = await run("sh", "-c", f"TOKEN={token}; {here(ask, relay.port)} -s")
    await demo.stop()
    events = [event_of(block) for block in answer.strip().split("\n\n")]
    assert (events[0]["model"], events[-2]["type"]) == ("gpt-4o-mini", "done")


def in_order(said: str) -> str:
    """What a terminal shows of stdout and stderr, which are read one after the other here."""
    lines = said.splitlines()
    first = next(line for line in lines if line.startswith("The key of"))
    second = next(line for line in lines if line.startswith("For relay.toml"))
    rest = [line for line in lines if line not in (first, second)]
    return "\n".join([first, rest[0], second, *rest[1:]])


def here(command: str, port: int) -> str:
    return command.removeprefix("$ ").replace(":8000", f":{port}")
