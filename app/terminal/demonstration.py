"""`sse-relay demo`: upstream, relay and reader in one process, over real sockets."""

import errno
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import Final

from app.client import AsyncRelayClient
from app.demo.server import DemoServer
from app.server import serve
from app.settings import Settings
from app.terminal.chat import FAILED, Answer
from app.terminal.screen import Typewriter, note

MESSAGE: Final = "What does a relay do?"


class Demonstration:
    """Shows one answer; then serves on until Ctrl-C, unless it is to be shown `once`. `code` is the exit code."""

    def __init__(self, settings: Settings, message: str, *, once: bool) -> None:
        self.code = FAILED
        self._settings: Final = settings
        self._message: Final = message
        self._once: Final = once

    async def run(self, *, any_port: bool) -> None:
        """With `any_port` a free one does where the wished one is taken. Raises OSError when there is none."""
        upstream = DemoServer()
        settings = self._settings.model_copy(update={"openai_base_url": await upstream.start()})
        try:
            await self._serve(settings, any_port=any_port)
        finally:
            await upstream.stop()

    async def _serve(self, settings: Settings, *, any_port: bool) -> None:
        try:
            await serve(settings, on_ready=self._show)
        except OSError as error:
            if not (any_port and error.errno == errno.EADDRINUSE):
                raise
            note(f"port {settings.port} is taken; a free one will do")
            await serve(settings.model_copy(update={"port": 0}), on_ready=self._show)

    async def _show(self, url: str, _admin_url: str | None) -> None:
        note(f"> {self._message}")
        async with AsyncRelayClient(url) as relay:
            answer = Answer(relay.stream(self._message), Typewriter(), url)
            self.code = await answer.read()
        if self._once:
            signal.raise_signal(signal.SIGTERM)
        elif not (answer.problem and answer.problem.code == "draining"):  # it was Ctrl-C that ended the answer
            print(f"\n{_next_steps(url)}", flush=True)


def _next_steps(url: str) -> str:
    body = '{"message": "Hello"}'
    return (
        f"The relay listens on {url} until Ctrl-C. Try in another terminal:\n\n"
        f"  curl -N {url}/chat/stream -H 'Content-Type: application/json' -d '{body}'\n"
        f"  {_command()} chat --url {url}\n"
        f"  {_command()} chat --url {url} --model demo-reasoning 'Why?'\n"
    )


def _command() -> str:
    """How this program is called from here: `make demo` leaves it in a virtual environment that nobody activated."""
    if shutil.which("sse-relay"):
        return "sse-relay"
    return shlex.quote(os.path.relpath(Path(sys.executable).with_name("sse-relay")))
