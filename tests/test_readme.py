"""What the README shows is what happens: its commands are run word for word, its reader reads."""

import asyncio
import json
import re
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.demo.server import DemoServer
from tests.relay import Relay, event_of, running

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DEADLINE_SECONDS = 20


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    demo = DemoServer()
    async with running(await demo.start(), default_model="demo-fast") as relay:
        yield relay
    await demo.stop()


def block_with(start: str, language: str) -> str:
    blocks: list[str] = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    return next(block for block in blocks if start in block)


async def run(program: str, *arguments: str) -> str:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    process = await asyncio.create_subprocess_exec(program, *arguments, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(DEADLINE_SECONDS):
        output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


def shape(blocks: str) -> list[object]:
    """The events without what differs from run to run."""
    events = [event_of(block) for block in blocks.strip().split("\n\n")]
    told = ("type", "content", "seq", "finish_reason", "usage", "resumable")
    return [[event.get(name) for name in told] + sorted(event) for event in events]


async def test_curl_shows_what_the_readme_shows(relay: Relay) -> None:
    command, _, shown = block_with("curl -N localhost:8000/chat/stream -H", "console").partition("\n")
    output = await run("sh", "-c", command.removeprefix("$ ").replace(":8000", f":{relay.port}") + " -s")
    assert shape(output) == shape(shown)


async def test_the_reader_in_the_readme_reads_an_answer(relay: Relay) -> None:
    code = block_with("TextDecoderStream", "js").replace('"/chat', f'"http://127.0.0.1:{relay.port}/chat')
    text = await run("node", "--input-type=module", "-e", code + "console.log(JSON.stringify(text))")
    assert json.loads(text).startswith("You said: “hi”")


async def test_the_sdk_in_the_readme_streams(relay: Relay) -> None:
    code = block_with("OpenAI(base_url", "python").replace(":8000", f":{relay.port}")
    assert (await run(sys.executable, "-c", code)).startswith("You said: “hi”")


async def test_the_commands_of_the_second_block_come_back_and_stop(relay: Relay) -> None:
    first, resume, result, stop = re.findall(
        r"^\$ (.*?)(?:\s+#.*)?$", _joined_lines("Last-Event-ID: s_76f0"), re.MULTILINE
    )
    whole = await run("sh", "-c", _for(relay, first) + " -s")
    stream_id = event_of(whole.split("\n\n")[0])["id"]
    rest = await run("sh", "-c", _for(relay, resume, stream_id).replace(".41'", ".3'") + " -s")
    assert rest == whole.partition(f"id: {stream_id}.3\n\n")[2]
    answer = json.loads(await run("sh", "-c", _for(relay, result, stream_id) + " -s"))
    assert answer["status"] == "done"
    assert answer["text"].startswith("You said: “hi”")
    assert json.loads(await run("sh", "-c", _for(relay, stop, stream_id) + " -s"))["id"] == stream_id


def test_every_link_leads_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
            assert (page.parent / target).exists(), f"{page} links to {target}"


COMMENT = re.compile(r"\s+#.*$", re.MULTILINE)


def skeleton(readme: str) -> dict[str, object]:
    """What does not change with the language."""
    prose = re.sub(r"^```.*?^```$", "", readme, flags=re.DOTALL | re.MULTILINE)
    return {
        "headings": [len(marks) for marks in re.findall(r"^(#+) ", prose, re.MULTILINE)],
        "code": [COMMENT.sub("", code) for code in re.findall(r"^```.*?^```$", readme, re.DOTALL | re.MULTILINE)],
        "links": sorted(set(re.findall(r"\]\(([^)]+)\)", prose)) - {"README.md", "README.zh-CN.md"}),
        "names": sorted(set(re.findall(r"`([A-Z][A-Z_]+[A-Z])`", prose))),
        "settings": re.findall(r"^\| (`[A-Z_]+`) \| (.*?) \|", prose, re.MULTILINE),
        "rows": [line.count("|") for line in prose.splitlines() if line.startswith("|")],
    }


def test_the_chinese_readme_keeps_step() -> None:
    chinese = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
    assert skeleton(chinese) == skeleton(README)
    assert re.findall(r"^#+ (.*)$", chinese, re.MULTILINE) != re.findall(r"^#+ (.*)$", README, re.MULTILINE)


def test_every_test_that_the_architecture_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")))
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    assert len(named) > 20
    assert {name for name in named if f"def {name}(" not in sources} == set()


def _joined_lines(start: str) -> str:
    return block_with(start, "console").replace("\\\n", " ")


def _for(relay: Relay, command: str, stream_id: str = "") -> str:
    return command.replace(":8000", f":{relay.port}").replace("s_76f0…", stream_id)
