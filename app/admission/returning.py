"""Those that run already and wait for an upstream once more: they come before all that have not begun."""

from collections.abc import Callable

from app.errors import RelayError
from app.places import Place

Claim = Callable[[], Place | None]
"""Asks for a place at one of the upstreams that serve a model; None while they are full."""


class Returning:
    """In the order in which they came back. How long one waits at most, it sees to itself."""

    def __init__(self) -> None:
        self._waiting: dict[object, tuple[Claim, Callable[[Place], None]]] = {}

    def wait(self, claim: Claim, called: Callable[[Place], None]) -> Callable[[], None]:
        """`called` is given a place, once; what is returned ends the wait."""
        who = object()
        self._waiting[who] = (claim, called)
        return lambda: (self._waiting.pop(who, None), None)[1]

    def serve(self, ask: Callable[[Claim], Place | None]) -> None:
        for who, (claim, called) in list(self._waiting.items()):
            try:
                place = ask(claim)
            except RelayError:  # nobody may be asked any more: the failure that it has is told when its time is over
                continue
            if place is not None:
                del self._waiting[who]
                called(place)
