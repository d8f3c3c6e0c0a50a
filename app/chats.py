"""Which answer each chat waits for, for dialects whose clients come back by their chat's id, not by the stream's."""

import msgspec

from app.admission.callers import Caller
from app.relay import Generation
from app.stream import STOPPED


class Awaited(msgspec.Struct, frozen=True):
    """The answer that a chat waits for. `message_id`: what its client calls it, in every replay."""

    generation: Generation
    message_id: str


class Chats:
    """The last answer of each chat of each caller, until it is forgotten; there are never more than streams."""

    def __init__(self) -> None:
        self._awaited: dict[tuple[Caller, str], Awaited] = {}
        self._chat_of: dict[str, tuple[Caller, str]] = {}

    def begun(self, chat_id: str, awaited: Awaited) -> bool:
        """The chat of the generation's owner waits for it now; one before it lives on by its own policy.

        False for one that had begun before, and was only asked for again under its key: nothing changes.
        """
        if awaited.generation.id in self._chat_of:
            return False
        chat = (awaited.generation.owner, chat_id)
        self._awaited[chat] = awaited
        self._chat_of[awaited.generation.id] = chat
        return True

    def knows(self, chat_id: str, caller: Caller) -> bool:
        return (caller, chat_id) in self._awaited

    def find(self, chat_id: str, caller: Caller) -> Awaited | None:
        """An answer that was whole, or failed, while nobody read it is waited for still; one that was read is not."""
        awaited = self._awaited.get((caller, chat_id))
        if awaited is None or awaited.generation.read_through or awaited.generation.cause in STOPPED:
            return None
        return awaited

    def forgotten(self, generation: Generation) -> None:
        chat = self._chat_of.pop(generation.id, None)
        awaited = self._awaited.get(chat) if chat else None
        if chat and awaited and awaited.generation is generation:
            del self._awaited[chat]
