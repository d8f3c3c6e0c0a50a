"""Headless Chromium on the chat page, the table that a test sits at with it, and a wire that can be cut."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from playwright.async_api import Browser, ConsoleMessage, Locator, Page, async_playwright

from tests.relay import Relay, running
from tests.upstream import Upstream

AXE: Final = Path(__file__).parent / "page" / "node_modules" / "axe-core" / "axe.min.js"
DEADLINE_MILLISECONDS: Final = 5000
MAX_MARK_BYTES: Final = 256
LOST: Final = "Failed to load resource"
"""What Chromium itself says of a connection that was cut and of every status from 400 on."""


@contextlib.asynccontextmanager
async def launched() -> AsyncIterator[Browser]:
    """Debian's Chromium; what playwright would download is not needed."""
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("chromium is not installed (tests/install)")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        await browser.close()


class Wire:
    """A TCP proxy: `cut` ends every connection without a word; while it is `down`, new ones end at once.

    `cut_behind` lists byte strings: the connection that brings the first of them to the client ends right behind it.
    With `piece_bytes` the client gets everything in pieces of that size.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._writers: set[asyncio.StreamWriter] = set()
        self.down = False
        self.cut_behind: list[bytes] = []
        self.piece_bytes = 65536

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def close(self) -> None:
        self._server.close()
        self.cut()
        while self._writers:  # noqa: ASYNC110 — their tasks end in the next turns
            await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.down:
            writer.transport.abort()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        self._writers |= {writer, back}
        await asyncio.gather(self._pass(reader, back), self._pass_down(there, writer))
        self._writers -= {writer, back}

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _pass_down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        before, cut = b"", False
        with contextlib.suppress(ConnectionError):
            while not cut and (data := await reader.read(self.piece_bytes)):
                passed, cut = self._up_to_cut(before, data)
                before = (before + passed)[-MAX_MARK_BYTES:]
                writer.write(passed)
                await writer.drain()
                await asyncio.sleep(0)  # a piece leaves as it is, and is not joined to the next one
        writer.close()

    def _up_to_cut(self, before: bytes, data: bytes) -> tuple[bytes, bool]:
        """What of `data` may still pass, and whether the connection is to be cut behind it."""
        if not self.cut_behind:
            return data, False
        mark = self.cut_behind[0]
        tail = before[max(0, len(before) - len(mark) + 1) :]  # the mark may have begun in what came before
        place = (tail + data).find(mark)
        if place < 0:
            return data, False
        self.cut_behind.pop(0)
        return data[: place + len(mark) - len(tail)], True


class Table(msgspec.Struct):
    """A page on a relay with a scripted upstream. Selectors are those of the last answer."""

    page: Page
    relay: Relay
    upstream: Upstream
    wire: Wire

    @property
    def answer(self) -> Locator:
        return self.page.locator(".answer").last

    @property
    def prose(self) -> Locator:
        return self.answer.locator(".prose")

    @property
    def line(self) -> Locator:
        return self.answer.locator(".line")

    def state(self, *names: str) -> Locator:
        """The last answer, once it is in one of these states."""
        return self.page.locator(", ".join(f'.turn:last-child[data-state="{name}"]' for name in names))

    async def ask(self, question: str) -> None:
        await self.page.fill("#message", question)
        await self.page.press("#message", "Enter")

    async def over(self, *states: str) -> None:
        """Waits until the last answer has ended, in one of these states (`done`)."""
        await self.state(*(states or ("done",))).wait_for(timeout=DEADLINE_MILLISECONDS)


@contextlib.asynccontextmanager
async def seated(
    browser: Browser, *, failing: bool = False, context: Any = None, **settings: Any
) -> AsyncIterator[Table]:
    """A fresh browser profile on a fresh relay. In the end the page must have complained of nothing.

    With `failing`, connections or requests fail on purpose, and what Chromium says of these does not count.
    """
    async with Upstream() as upstream, running(upstream.base_url, default_model="m", **settings) as relay:
        wire = Wire(relay.port)
        await wire.open()
        profile = await browser.new_context(**(context or {}))
        profile.set_default_timeout(DEADLINE_MILLISECONDS)
        complaints: list[str] = []
        profile.on("console", lambda message: complaints.extend(_complaint(message, failing)))
        profile.on("weberror", lambda error: complaints.append(str(error.error)))
        page = await profile.new_page()
        try:
            await page.goto(f"http://127.0.0.1:{wire.port}/")
            yield Table(page, relay, upstream, wire)
        finally:
            await profile.close()
            await wire.close()
        assert complaints == [], complaints


def _complaint(message: ConsoleMessage, failing: bool) -> Iterator[str]:
    expected = failing and message.text.startswith(LOST)
    if message.type in ("error", "warning") and not expected:
        yield f"{message.type}: {message.text}"
