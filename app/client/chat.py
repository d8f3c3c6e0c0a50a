"""Several turns with one relay. What is kept of a turn is decided by the reading of its answer (`on_done`)."""

import asyncio
from collections.abc import AsyncGenerator, Generator, Iterable
from functools import partial
from typing import Final

from app.client.async_client import AsyncAnswerStream, AsyncRelayClient
from app.client.conversation import Conversation, Message
from app.client.sync_client import AnswerStream, RelayClient


class StreamingChat(Conversation):
    """A conversation whose answers are streamed. `fields` are those of `POST /chat/stream` and go with every question.

    A turn is kept when its answer is whole, or with what was written of one that was stopped. One that failed is not:
    it can be asked again. `history` are the turns of an earlier chat.
    """

    def __init__(
        self, relay: RelayClient, *, system: str | None = None, history: Iterable[Message] = (), **fields: object
    ) -> None:
        super().__init__(system, history)
        self._relay: Final = relay
        self._fields: Final = fields
        self._turn: AnswerStream | None = None

    def stream(self, prompt: str, **fields: object) -> AnswerStream:
        """The next turn's events."""
        asked, on_done = self.asking(prompt), partial(self.keep, prompt)
        self._turn = self._relay.stream(asked, on_done=on_done, **self._fields | fields)
        return self._turn

    def ask(self, prompt: str, **fields: object) -> Generator[str, None, None]:
        """The next answer's text as it is written; leaving the loop stops it. Raises RelayProblem when it fails."""
        with self.stream(prompt, **fields) as turn:
            try:
                for event in turn:
                    if text := event.content or event.refusal:
                        yield text
            except (GeneratorExit, KeyboardInterrupt):  # nobody else knows this stream and could come back to it
                turn.stop()
                raise

    def answer(self, prompt: str, **fields: object) -> str:
        """The next answer as a whole. Raises RelayProblem when it is not whole."""
        answer = self.stream(prompt, **fields).collect()
        return answer.text or answer.refusal

    def stop(self) -> None:
        """Stops the turn that is under way, from any thread; what was written is kept."""
        if self._turn is not None:
            self._turn.stop()


class AsyncStreamingChat(Conversation):
    """A conversation whose answers are streamed. `fields` are those of `POST /chat/stream` and go with every question.

    A turn is kept when its answer is whole, or with what was written of one that was stopped. One that failed is not:
    it can be asked again. `history` are the turns of an earlier chat.
    """

    def __init__(
        self, relay: AsyncRelayClient, *, system: str | None = None, history: Iterable[Message] = (), **fields: object
    ) -> None:
        super().__init__(system, history)
        self._relay: Final = relay
        self._fields: Final = fields
        self._turn: AsyncAnswerStream | None = None

    def stream(self, prompt: str, **fields: object) -> AsyncAnswerStream:
        """The next turn's events."""
        asked, on_done = self.asking(prompt), partial(self.keep, prompt)
        self._turn = self._relay.stream(asked, on_done=on_done, **self._fields | fields)
        return self._turn

    async def ask(self, prompt: str, **fields: object) -> AsyncGenerator[str, None]:
        """The next answer's text as it is written; leaving the loop stops it. Raises RelayProblem when it fails.

        A `break` is heard of once the event loop finalizes the generator; `contextlib.aclosing` does it at once."""
        async with self.stream(prompt, **fields) as turn:
            try:
                async for event in turn:
                    if text := event.content or event.refusal:
                        yield text
            except (GeneratorExit, asyncio.CancelledError):  # nobody else knows this stream and could come back to it
                await turn.stop()
                raise

    async def answer(self, prompt: str, **fields: object) -> str:
        """The next answer as a whole. Raises RelayProblem when it is not whole."""
        answer = await self.stream(prompt, **fields).collect()
        return answer.text or answer.refusal

    async def stop(self) -> None:
        """Stops the turn that is under way, from any task; what was written is kept."""
        if self._turn is not None:
            await self._turn.stop()
