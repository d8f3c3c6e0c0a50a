"""The most that may be asked for: of several bounds the tightest holds."""

from collections.abc import Iterator, Sequence
from typing import Final

from app.admission.callers import Caps
from app.errors import invalid_request
from app.settings.parameters import Object
from app.settings.tables import CapsTable

LENGTHS: Final = ("max_tokens", "max_completion_tokens")
"""Two names of one thing: the older one, and that of OpenAI's reasoning models."""

READ: Final = ("tools", "response_format", "functions")
"""Parameters that the model reads as it reads messages."""


class Bounds:
    """All caps that bind one request. `prefix`: where parameters stand in its body; `choices`: where no cap has a word.

    Its methods raise 422, naming the field and the bound.
    """

    def __init__(self, caps: Sequence[Caps | CapsTable], *, prefix: str, choices: int | None) -> None:
        self._caps = caps
        self._prefix = prefix
        self._choices = choices

    def hold_prompt(self, messages: list[Object], system: str | None, sent: Object) -> None:
        """What the client has the model read; what the profile adds does not count."""
        most = self._least("messages")
        if most is not None and len(messages) + (system is not None) > most:
            raise invalid_request(f"messages: there may be at most {most:g} here", param="messages")
        bytes_at_most = self._least("prompt_bytes")
        if bytes_at_most is None:
            return
        read = [messages, system, *(sent.get(field) for field in READ)]
        if sum(map(_string_bytes, read)) > bytes_at_most:
            raise invalid_request(f"messages may have at most {bytes_at_most:g} bytes of text here", param="messages")

    def held(self, sent: Object, set_there: Object) -> Object:
        """The parameters, and the length of the answer where nobody has set one."""
        choices = self._least("n")
        self._hold(sent, "n", self._choices if choices is None else choices)
        self._hold(sent, "temperature", self._least("temperature"))
        lengths = [(bound, name) for name in LENGTHS for bound in self._given(name)]
        if lengths:
            most, name = min(lengths)
            for field in LENGTHS:
                self._hold(sent, field, most)
            if not any(field in sent or field in set_there for field in LENGTHS):
                return sent | set_there | {name: most}
        return sent | set_there

    def _hold(self, sent: Object, field: str, most: float | None) -> None:
        if most is not None and (value := sent.get(field)) is not None and value > most:
            where = f"{self._prefix}{field}"
            raise invalid_request(f"{where} may be at most {most:g} here", param=where)

    def _least(self, field: str) -> float | None:
        return min(self._given(field), default=None)

    def _given(self, field: str) -> Iterator[float]:
        return (bound for caps in self._caps if (bound := getattr(caps, field)) is not None)


def _string_bytes(value: object) -> int:
    """UTF-8 bytes of every string, wherever it stands: some templates read fields that others pass over."""
    waiting, size = [value], 0
    while waiting:
        match waiting.pop():
            case str() as text:
                size += len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
            case dict() as fields:
                waiting += fields.values()
            case list() as items:
                waiting += items
            case _:
                pass
    return size
