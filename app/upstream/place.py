"""A place at one upstream, for one attempt."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from app.errors import Problem
from app.places import Answer
from app.upstream.breaker import Question
from app.upstream.member import Member

PATIENCE: Final = 0.9
"""What part of the operator's limit must have passed for a time-out to be upstream's fault. A caller may set a shorter
one, and of a request that is tried again only the rest is left: neither says that an upstream is slow.
"""


class Place:
    """`app.places.Place`. What is said of it after its end is not heard."""

    def __init__(self, member: Member, model: str, *, turn: int) -> None:
        self.upstream: Final = member.name
        self.model: Final = member.terms.aliases.get(model, model)
        self.manner: Final = member.terms.manner
        self._member = member
        self._since = asyncio.get_running_loop().time()
        self._question: Question | None = member.ask(self._since, turn=turn)
        self._connect_s = 0.0
        self._has_carried = False

    def open(
        self,
        payload: dict[str, object],
        *,
        connect_s: float,
        sent: Callable[[], None],
        headers: Mapping[str, str] | None = None,
    ) -> Awaitable[Answer]:
        self._connect_s = connect_s
        asked = payload | {"model": self.model}
        return self._member.upstream.open(asked, connect_s=connect_s, sent=sent, headers=headers)

    def carried(self) -> None:
        self._has_carried = True
        if self._question is not None:
            self._member.answered(self._question)

    def succeeded(self) -> None:
        if (question := self._ended()) is not None:
            self._member.whole(question)

    def failed(self, problem: Problem) -> None:
        if self._is_impatient(problem):
            self.release()
        elif (question := self._ended()) is not None:
            self._member.failed(question, problem)

    def release(self) -> None:
        """An answer that its client broke off was well as far as it went."""
        if (question := self._ended()) is None:
            return
        if self._has_carried:
            self._member.whole(question)
        else:
            self._member.dropped(question)

    def _ended(self) -> Question | None:
        question, self._question = self._question, None
        return question

    def _is_impatient(self, problem: Problem) -> bool:
        """Whether a limit has passed before the operator's would have."""
        if problem.code != "upstream_timeout" or problem.upstream_status is not None:
            return False
        terms = self._member.terms
        match problem.phase:
            case "connect":
                return self._connect_s < terms.connect_s * PATIENCE
            case "first_token":
                waited_s = asyncio.get_running_loop().time() - self._since
                return waited_s < terms.first_token_s * PATIENCE
            case _:
                return False
