"""What a model writes, as the page shows it: rendered, harmless, on every width and to everybody."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import Browser, Request, expect

from app.demo.answers import MARKDOWN
from tests.browser import AXE, Table, launched, seated
from tests.upstream import answer, chunk, delta, finish, hang, head, wait

HOSTILE = """\
<script>window.hacked = 1</script>
<img src=x onerror="window.hacked = 2"> <svg onload="window.hacked = 3"><style>*{color:red}</style></svg>
<iframe src="javascript:parent.hacked = 4"></iframe> <form action="https://evil.example"><input name=q></form>
<p style="position:fixed" class="bar" id="composer" onclick="window.hacked = 5">text</p>

[one](javascript:window.hacked=6) [two](  JaVaScRiPt:window.hacked=7) [three](data:text/html,<script>hacked=8</script>)
<a href="java&#10;script:window.hacked=9" target=_self>four</a> [five](https://good.example "title")

![a picture](https://tracker.example/pixel.png) <math><mtext><table><mglyph><style><img src=x onerror=hacked=10>

```html
<script>window.hacked = 11</script>
```
"""

TRICKY = """\
Setext
======

- one

  more of *one*
- two
    1. deep
    2. deeper

after | table
---|:-:
a | b

~~~js
const fence = "```";

~~~
> quote
continued

- [x] done
- [ ] to do

line<br>break & <kbd>Esc</kbd> **bold *both***\r
\r
last `code`
"""


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with launched() as browser:
        yield browser


async def test_markdown_is_rendered_and_code_can_be_copied(chromium: Browser) -> None:
    context = {"permissions": ["clipboard-read", "clipboard-write"]}
    async with seated(chromium, context=context) as table:
        table.upstream.script(answer(*MARKDOWN))
        await table.ask("hi")
        await table.over()
        await expect(table.prose.locator("h1")).to_have_text("What a relay does")
        await expect(table.prose.locator("li")).to_have_count(3)
        await expect(table.prose.locator("td")).to_have_count(6)
        await table.prose.get_by_role("button", name="Copy code").click()
        await expect(table.prose.locator(".code-bar")).to_have_text("pythonCopied")
        copied = await table.page.evaluate("navigator.clipboard.readText()")
        assert copied == MARKDOWN.split("```")[1].removeprefix("python\n").removesuffix("\n")


@pytest.mark.parametrize("pieces", [[HOSTILE], [*HOSTILE]], ids=["whole", "by character"])
async def test_hostile_markdown_is_harmless(chromium: Browser, pieces: list[str]) -> None:
    asked: list[str] = []

    def note(request: Request) -> None:
        asked.append(request.url)

    async with seated(chromium) as table:
        table.page.on("request", note)
        table.upstream.script((head(), *map(chunk, pieces), hang()))
        await table.ask("hi")
        await expect(table.prose.locator("pre")).to_contain_text("hacked = 11")
        await harmless(table)
        await table.page.keyboard.press("Escape")
        await table.over("stopped")
        await harmless(table)
    assert [url for url in asked if not url.endswith("/static/icon.svg") and "/chat/stream" not in url] == []


async def harmless(table: Table) -> None:
    """Nothing ran, nothing can, and what is shown links to other places alone."""
    forbidden = "script, img, svg, style, iframe, form, input, math, [style], [id], [class='bar'], [onclick], [onerror]"
    await expect(table.prose.locator(forbidden)).to_have_count(0)
    await expect(table.prose).to_contain_text("<script>window.hacked = 1</script>")
    assert await table.page.evaluate("window.hacked") is None
    links = "links => links.map(link => [link.textContent, link.getAttribute('href'), link.rel, link.target])"
    shown = {text: href for text, href, *_ in await table.prose.locator("a").evaluate_all(links)}
    assert shown["five"] == "https://good.example"
    assert shown["a picture"] == "https://tracker.example/pixel.png"
    assert {shown[name] for name in ("one", "two", "three", "four") if name in shown} <= {None}
    manners = {(rel, target) for _, _, rel, target in await table.prose.locator("a").evaluate_all(links)}
    assert manners == {("noopener noreferrer", "_blank")}


@pytest.mark.parametrize("text", [TRICKY, MARKDOWN, HOSTILE], ids=["tricky", "demo", "hostile"])
async def test_markdown_that_grows_becomes_what_it_is_as_a_whole(chromium: Browser, text: str) -> None:
    async with seated(chromium) as table:
        grown, whole = await table.page.evaluate(GROW, text)
        assert grown == whole


GROW = """async (text) => {
    const { Markdown } = await import("/static/markdown.js");
    const [grown, whole] = [document.createElement("div"), document.createElement("div")];
    const view = new Markdown(grown);
    for (let end = 1; end <= text.length; end += 1) view.show(text.slice(0, end));
    new Markdown(whole).finish(text);
    return [grown.innerHTML, whole.innerHTML];
}"""


async def test_blocks_that_are_over_are_not_drawn_again(chromium: Browser) -> None:
    async with seated(chromium) as table:
        table.upstream.script((head(), chunk("first\n\nsecond\n\n"), delta(content="third"), hang()))
        await table.ask("hi")
        await expect(table.prose).to_contain_text("third")
        same = """async () => {
            const { Markdown } = await import("/static/markdown.js");
            const view = new Markdown(document.body.appendChild(document.createElement("div")));
            view.show("first\\n\\nsecond\\n\\n");
            const first = document.body.lastElementChild.firstElementChild;
            view.show("first\\n\\nsecond\\n\\nthird\\n\\nfourth");
            return first === document.body.lastElementChild.firstElementChild;
        }"""
        assert await table.page.evaluate(same)


@pytest.mark.parametrize("width", [320, 390, 1280])
async def test_nothing_is_wider_than_the_page(chromium: Browser, width: int) -> None:
    long = f"{'x' * 300}\n\n```\n{'y' * 300}\n```\n\n|{'z' * 90}|{'z' * 90}|\n|-|-|\n|a|b|"
    async with seated(chromium, context={"viewport": {"width": width, "height": 700}}) as table:
        table.upstream.script(answer(long))
        await table.page.click("#options-toggle")
        await table.ask("q" * 300)
        await table.over()
        for box in ("document.documentElement", "document.getElementById('scroller')"):
            assert await table.page.evaluate(f"{box}.scrollWidth - {box}.clientWidth") == 0
        await expect(table.page.locator("#send")).to_be_in_viewport()


async def test_a_reader_who_scrolled_away_is_left_in_peace(chromium: Browser) -> None:
    released = asyncio.Event()
    lines = "".join(f"{number}. line\n" for number in range(1, 201))
    async with seated(chromium) as table:
        table.upstream.script((head(), chunk(lines), wait(released), chunk("201. last"), finish()))
        scroller, footer = table.page.locator("#scroller"), table.answer.locator("footer")
        await table.ask("hi")
        await expect(table.prose.locator("li")).to_have_count(200)
        await expect(footer).to_be_in_viewport()
        await scroller.evaluate("scroller => { scroller.scrollTop = 0; }")
        await expect(table.page.locator("#latest")).to_be_visible()
        released.set()
        await table.over()
        await table.page.evaluate("new Promise(requestAnimationFrame)")
        assert await scroller.evaluate("scroller => scroller.scrollTop") == 0
        await table.page.click("#latest")
        await expect(footer).to_be_in_viewport()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing(chromium: Browser, scheme: str) -> None:
    if not AXE.exists():
        pytest.skip("axe-core is not installed (tests/install)")
    async with seated(chromium, context={"color_scheme": scheme}) as table:
        steps = head(), delta(reasoning_content="Hm."), chunk(MARKDOWN), finish()
        table.upstream.script(steps, answer("Half", finish=None), (head(), chunk("Half"), hang()))
        assert await violations(table) == []
        await table.page.click("#options-toggle")
        for state in ("done", "failed"):
            await table.ask("hi")
            await table.over(state)
        await table.ask("hi")
        await expect(table.prose).to_have_text("Half")
        assert await violations(table) == []


async def violations(table: Table) -> list[Any]:
    """What axe-core has to say; told by the debugger, since the page's policy lets no script of ours in."""
    await table.page.evaluate(AXE.read_text())
    found = json.loads(await table.page.evaluate("axe.run().then(found => JSON.stringify(found.violations))"))
    return [(rule["id"], node["html"], node["failureSummary"]) for rule in found for node in rule["nodes"]]
