from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from app.client.events import Answer


class Message(msgspec.Struct, frozen=True):
    """One message of a chat, as OpenAI's list has them."""

    role: Literal["system", "user", "assistant"]
    content: str


class Conversation:
    """The turns so far. Only what was answered is kept, so that a failed turn can be asked again."""

    def __init__(self, system: str | None = None, history: Iterable[Message] = ()) -> None:
        self._system: Final = [Message("system", system)] if system else []
        self._turns: list[Message] = [*history]

    @property
    def history(self) -> tuple[Message, ...]:
        """Questions and answers, without the system prompt."""
        return tuple(self._turns)

    def asking(self, prompt: str) -> list[Message]:
        """The messages to send for the next turn."""
        return [*self._system, *self._turns, Message("user", prompt)]

    def keep(self, prompt: str, answer: Answer) -> None:
        """An answer without a word, one of tool calls alone for example, is no turn: a model would wonder at it."""
        if said := answer.text or answer.refusal:
            self._turns += [Message("user", prompt), Message("assistant", said)]

    def clear(self) -> None:
        """Forgets the turns, not the system prompt."""
        self._turns.clear()
