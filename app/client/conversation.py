from typing import Final, Literal

import msgspec


class Message(msgspec.Struct, frozen=True):
    """One message of a chat, as OpenAI's list has them."""

    role: Literal["system", "user", "assistant"]
    content: str


class Conversation:
    """The turns so far. Only what was answered is kept, so that a failed turn can be asked again."""

    def __init__(self, system: str | None = None) -> None:
        self._system: Final = [Message("system", system)] if system else []
        self._turns: list[Message] = []

    def asking(self, prompt: str) -> list[Message]:
        """The messages to send for the next turn."""
        return [*self._system, *self._turns, Message("user", prompt)]

    def keep(self, prompt: str, answer: str) -> None:
        self._turns += [Message("user", prompt), Message("assistant", answer)]

    def clear(self) -> None:
        """Forgets the turns, not the system prompt."""
        self._turns.clear()
