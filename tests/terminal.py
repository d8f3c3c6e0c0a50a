"""`sse-relay` as a person and as a script run it: in a pseudo-terminal, or with pipes."""

import asyncio
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

COMMAND = Path(sys.executable).with_name("sse-relay")
DEADLINE_SECONDS = 20.0


class Finished(msgspec.Struct, frozen=True):
    code: int
    out: str
    err: str


def environment(folder: Path, more: Mapping[str, str]) -> dict[str, str]:
    """Nothing of the developer's own settings."""
    own = {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8", "TERM": "xterm-256color"}
    return {**own, "RELAY_ADMIN_PORT": "-1", **more}  # the admin listener's usual port is one for the whole machine


async def run(folder: Path, *arguments: str, stdin: str = "", **variables: str) -> Finished:
    """To its end, with pipes."""
    process = await asyncio.create_subprocess_exec(
        COMMAND,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=folder,
        env=environment(folder, variables),
    )
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            out, err = await process.communicate(stdin.encode())
    finally:
        await _end(process)
    assert process.returncode is not None
    return Finished(process.returncode, out.decode(), err.decode())


class Terminal:
    """A command in a pseudo-terminal: keys go in, the screen's bytes come out."""

    def __init__(self, process: asyncio.subprocess.Process, controller: int, screen: asyncio.StreamReader) -> None:
        self.text = ""
        self._process = process
        self._controller = controller
        self._screen = screen

    async def expect(self, text: str) -> str:
        """Waits until `text` is on the screen; returns what came up to it and takes that away."""
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                while text not in self.text:
                    assert await self._more(), f"{text!r} never came: {self.text!r}"
        except TimeoutError:
            raise AssertionError(f"{text!r} did not come in time: {self.text!r}") from None
        before, found, self.text = self.text.partition(text)
        return before + found

    def press(self, keys: str) -> None:
        os.write(self._controller, keys.encode())

    async def end(self) -> int:
        """The exit code; what was still written is in `text`."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while await self._more():
                pass
            return await self._process.wait()

    async def _more(self) -> bool:
        try:
            data = await self._screen.read(4096)
        except OSError:  # EIO: the last process left the terminal
            return False
        self.text += data.decode()
        return bool(data)


@asynccontextmanager
async def terminal(folder: Path, *arguments: str, **variables: str) -> AsyncIterator[Terminal]:
    controller, terminal_end = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        COMMAND,
        *arguments,
        preexec_fn=lambda: _sit_down(terminal_end),
        pass_fds=(terminal_end,),
        cwd=folder,
        env=environment(folder, variables),
    )
    os.close(terminal_end)
    screen = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(screen), os.fdopen(os.dup(controller), "rb", 0)
    )
    try:
        yield Terminal(process, controller, screen)
    finally:
        await _end(process)
        transport.close()
        os.close(controller)


def _sit_down(terminal_end: int) -> None:
    """So that Ctrl-C is a signal, and one that is heard: who was started in the background of a script ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.login_tty(terminal_end)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()
