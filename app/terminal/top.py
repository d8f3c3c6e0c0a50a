"""`sse-relay top`: what runs in a relay, as its admin listener shows it; names and figures, never what is said."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from itertools import cycle
from typing import Final

import msgspec
from rich.console import Console
from rich.live import Live
from rich.text import Text

from app.terminal.board import SORTS, board, whole
from app.terminal.chat import INTERRUPTED, NO_RELAY, PIPE_CLOSED, SUCCESS
from app.terminal.keys import keys
from app.terminal.screen import CONTROLS, complain
from app.terminal.seen import Lookout, Seen, Unseen

TERMINATED: Final = 128 + signal.SIGTERM
PIPE_COLUMNS: Final = 1000
"""A table in a file or a pipe is as wide as it is."""


class Top:
    """Looks every `interval_s`. What shows it returns the exit code. Raises ValueError for what is no URL."""

    def __init__(self, url: str, interval_s: float) -> None:
        self._lookout: Final = Lookout(url)
        self._interval_s: Final = interval_s

    def run(self, *, as_json: bool, once: bool) -> int:
        """Where there is no terminal to draw on, it is shown once."""
        try:
            if as_json:
                return asyncio.run(self._lines(once=once))
            return asyncio.run(self._table() if once or not sys.stdout.isatty() else self._live())
        except Unseen as unseen:
            complain(str(unseen))
            return NO_RELAY
        except KeyboardInterrupt:
            return INTERRUPTED
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain at its end
            return PIPE_CLOSED

    async def _table(self) -> int:
        async with self._lookout:
            seen = await self._lookout.look()
        console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_COLUMNS)
        console.print(whole(seen, self._lookout.url))
        return SUCCESS

    async def _lines(self, *, once: bool) -> int:
        """A JSON object for each look; where there is no more to be seen, why."""
        async with self._lookout:
            line = msgspec.json.encode(await self._lookout.look())
            while True:
                sys.stdout.write(line.decode() + "\n")
                sys.stdout.flush()
                if once:
                    return SUCCESS
                await asyncio.sleep(self._interval_s)
                try:
                    line = msgspec.json.encode(await self._lookout.look())
                except Unseen as unseen:
                    line = msgspec.json.encode({"error": str(unseen)})

    async def _live(self) -> int:
        async with self._lookout:
            display = Display(self._lookout.url, await self._lookout.look())
            looking = asyncio.create_task(self._look_on(display), name="lookout")
            try:
                return await display.show()
            finally:
                looking.cancel()
                await asyncio.wait([looking])

    async def _look_on(self, display: "Display") -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                display.see(await self._lookout.look())
            except Unseen as unseen:
                display.miss(str(unseen))


class Display:
    """A screen of its own until `q`; what was on the terminal before is there again afterwards."""

    def __init__(self, url: str, seen: Seen) -> None:
        self._url: Final = url
        self._seen = seen
        self._trouble: str | None = None
        self._sorts: Final = cycle(SORTS)
        self._sort = next(self._sorts)
        self._code: int | None = None
        self._changed: Final = asyncio.Event()

    def see(self, seen: Seen) -> None:
        self._seen, self._trouble = seen, None
        self._changed.set()

    def miss(self, why: str) -> None:
        self._trouble = why.translate(CONTROLS)
        self._changed.set()

    async def show(self) -> int:
        console = Console(highlight=False)
        with keys(self._pressed), self._signals(), Live(console=console, screen=True, auto_refresh=False) as live:
            while self._code is None:
                self._changed.clear()
                shown = board(self._seen, self._url, sort=self._sort, room=console.size, note=self._note())
                live.update(shown, refresh=True)
                await self._changed.wait()
        return self._code

    def _note(self) -> Text:
        if self._trouble is not None:
            return Text(f"q quits · this is how it was: {self._trouble}; trying again", "bold red")
        return Text(f"q quits · s sorts, now by {self._sort}", "dim")

    def _pressed(self, key: str) -> None:
        match key:
            case "q" | "Q":
                self._code = SUCCESS
            case "s":
                self._sort = next(self._sorts)
        self._changed.set()

    def _ended(self) -> None:
        self._code = TERMINATED
        self._changed.set()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """A terminal of another size is drawn anew, and who ends us gets it back in order. Windows has neither."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(NotImplementedError, AttributeError):
            loop.add_signal_handler(signal.SIGTERM, self._ended)
            loop.add_signal_handler(signal.SIGHUP, self._ended)
            loop.add_signal_handler(signal.SIGWINCH, self._changed.set)
        yield
