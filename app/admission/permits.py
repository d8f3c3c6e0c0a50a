"""Who may start now. A permit travels with its generation, and the end of one is the end of the other."""

from typing import Final

import msgspec

from app.errors import RelayError

BUSY_RETRY_SECONDS: Final = 2.0


class Caller(msgspec.Struct, frozen=True):
    """Whom a stream belongs to: a key's name ("" without keys) and a subject, None where the client proved none.

    Two requests without a subject are the same caller: what keeps them apart is that neither can guess an id.
    """

    key: str
    subject: str | None

    def may_see(self, owner: "Caller") -> bool:
        return self.key == owner.key and (owner.subject is None or owner.subject == self.subject)


class Permit:
    """The right to run one generation; releasing it twice is the same as once."""

    def __init__(self, permits: "Permits") -> None:
        self._permits: Permits | None = permits

    def release(self) -> None:
        if self._permits is not None:
            self._permits.in_use -= 1
            self._permits = None


class Permits:
    """A bounded number of permits."""

    def __init__(self, limit: int) -> None:
        self.limit: Final = limit
        self.in_use = 0

    def acquire(self) -> Permit:
        """Raises `overloaded` when all are in use."""
        if self.in_use >= self.limit:
            message = f"all {self.limit} streams are taken; try again"
            raise RelayError("overloaded", message, phase="admission", retry_after_s=BUSY_RETRY_SECONDS)
        self.in_use += 1
        return Permit(self)
