"""`sse-relay chat`: one question, or several turns. Ctrl-C stops the answer, a second one quits."""

import asyncio
import contextlib
import os
import signal
import sys
from typing import Final

from app.client import AsyncAnswerStream, AsyncRelayClient, AsyncStreamingChat, RelayProblem
from app.terminal.screen import Screen, Typewriter, advice, complain, note

SUCCESS: Final = 0
FAILED: Final = 1
NO_RELAY: Final = 2
INTERRUPTED: Final = 128 + signal.SIGINT
PIPE_CLOSED: Final = 128 + signal.SIGPIPE
STOP_SECONDS: Final = 2.0


class Answer:
    """One answer on the screen, and what Ctrl-C does to it."""

    def __init__(self, stream: AsyncAnswerStream, screen: Screen, url: str) -> None:
        self.interrupts = 0
        self.problem: RelayProblem | None = None
        self._stream: Final = stream
        self._screen: Final = screen
        self._url: Final = url
        self._stopping: asyncio.Task[None] | None = None

    async def run(self) -> int:
        """Shows the answer to its end, or until Ctrl-C; returns the exit code."""
        loop = asyncio.get_running_loop()
        reading = asyncio.create_task(self.read(), name="read the answer")
        loop.add_signal_handler(signal.SIGINT, self._interrupt, reading)
        try:
            await asyncio.wait([reading])
            await self._stopped()
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            reading.cancel()
        if reading.cancelled():
            self._screen.break_off()
            note("stopped")
            return INTERRUPTED
        return reading.result()

    def _interrupt(self, reading: asyncio.Task[int]) -> None:
        self.interrupts += 1
        if self.interrupts == 1 and self._stream.id is not None:
            self._stopping = asyncio.create_task(self._stream.stop(), name="stop the generation")
        else:  # the second Ctrl-C, or the relay has not answered yet and our leaving stops the generation
            reading.cancel()

    async def read(self) -> int:
        """Shows the answer to its end and returns the exit code."""
        try:
            return await self._show()
        except RelayProblem as problem:
            self.problem = problem
            self._screen.break_off()
            complain(advice(problem, self._url))
            return NO_RELAY if problem.code in ("unreachable", "not_a_relay") else FAILED
        except BrokenPipeError:  # `sse-relay chat … | head -1`: nobody reads on, so nobody should pay on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered has to go somewhere
            self._stopping = asyncio.create_task(self._stream.stop(), name="stop the generation")
            return PIPE_CLOSED

    async def _show(self) -> int:
        async with self._stream:
            async for event in self._stream:
                self._screen.show(event)
                if event.type == "done":
                    self._screen.finish(event)
        return INTERRUPTED if self._stopping else SUCCESS

    async def _stopped(self) -> None:
        """The relay's word that it stops need not be waited for long, and cannot be answered if it does not come."""
        if self._stopping:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping, STOP_SECONDS)


class Chat:
    """Questions to one relay with the same fields (`model` and so on), and the same `key` where it asks for one."""

    def __init__(self, url: str, *, model: str | None, system: str | None, key: str | None) -> None:
        self._url: Final = url
        headers = None if key is None else {"authorization": f"Bearer {key}"}
        self._relay: Final = AsyncRelayClient(url, headers=headers)
        self._chat: Final = AsyncStreamingChat(self._relay, system=system, model=model)
        self._quit = False

    async def ask(self, prompt: str, screen: Screen) -> int:
        """One question and no other; returns the exit code."""
        async with self._relay:
            return await self._turn(prompt, screen)

    def converse(self) -> int:
        """Turns until `/quit`, Ctrl-D or Ctrl-C at the prompt; returns the exit code."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # its import gives input() a history and line editing
        with asyncio.Runner() as runner:
            try:
                return self._turns(runner)
            finally:
                runner.run(self._relay.close())

    def _turns(self, runner: asyncio.Runner) -> int:
        if not runner.run(self._is_there()):
            return NO_RELAY
        note(f"{self._url} · /clear forgets the turns, /quit or Ctrl-D leaves, Ctrl-C stops an answer")
        while not self._quit and (prompt := _read_prompt()) is not None:
            match prompt.strip():
                case "":
                    pass
                case "/quit":
                    return SUCCESS
                case "/clear":
                    self._chat.clear()
                    note("cleared")
                case text:
                    runner.run(self._turn(text, Typewriter()))
        return INTERRUPTED if self._quit else SUCCESS

    async def _turn(self, prompt: str, screen: Screen) -> int:
        """Returns the exit code. What was answered, also up to a stop, is part of the next turn."""
        answer = Answer(self._chat.stream(prompt), screen, self._url)
        code = await answer.run()
        self._quit = answer.interrupts > 1
        return code

    async def _is_there(self) -> bool:
        """Asked before the first prompt: nobody should write a long question to nothing."""
        try:
            await self._relay.check()
        except RelayProblem as problem:
            complain(advice(problem, self._url))
            return False
        return True


def _read_prompt() -> str | None:
    try:
        return input("> ")
    except (EOFError, KeyboardInterrupt):
        sys.stdout.write("\n")
        return None
