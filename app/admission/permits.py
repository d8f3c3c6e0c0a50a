"""Who may start now. A permit travels with its generation, and the end of one is the end of the other."""

from typing import Final

from app.errors import RelayError

BUSY_RETRY_SECONDS: Final = 2.0


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
