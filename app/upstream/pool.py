"""All upstreams: which of them is asked, and whether any may be."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Final, Self

from app.errors import RelayError
from app.settings import Settings
from app.upstream.breaker import Breaker
from app.upstream.client import Upstream
from app.upstream.configured import configured
from app.upstream.listing import Model, union
from app.upstream.member import Member, Standing, Terms
from app.upstream.place import Place


class Pool:
    """`app.places.Pool`. Claims, places and their ends are synchronous: between two awaits nothing moves."""

    def __init__(self, upstreams: Sequence[tuple[Terms, Upstream]], *, failures: int, open_s: float) -> None:
        self._members: Final = [
            Member(terms, upstream, Breaker(failures, open_s), self._tell) for terms, upstream in upstreams
        ]
        self._named = self._by_name()
        self._listeners: list[Callable[[], None]] = []
        self._turn = 0

    @classmethod
    def of(cls, settings: Settings, *, user_agent: str) -> Self:
        """The upstreams of `relay.toml`, else the one of OPENAI_*, by the name "default". It needs no running loop.

        Raises SettingsError for what only using it would show: a file that is no certificate, a URL that is none.
        """
        upstreams = [(terms, Upstream(service)) for terms, service in configured(settings, user_agent=user_agent)]
        return cls(upstreams, failures=settings.breaker_failures, open_s=settings.breaker_open_seconds)

    def serving(self, model: str) -> frozenset[str]:
        return frozenset(member.name for member in self._serving(model))

    def claim(self, model: str, *, besides: Collection[str] = ()) -> Place | None:
        now = asyncio.get_running_loop().time()
        serving = self._serving(model)
        able = [each for each in serving if each.name not in besides and each.breaker.may_ask(now)]
        if not able and not besides:
            opens_in_s = min(member.breaker.opens_in_s(now) for member in serving)
            words = "upstream is not available; try again"
            raise RelayError("upstream_unavailable", words, phase="connect", retry_after_s=opens_in_s)
        free = [member for member in able if not member.is_full]
        if not free:
            return None
        self._turn += 1
        return Place(min(free, key=lambda member: member.rank(now)), model, turn=self._turn)

    def room(self) -> int | None:
        left = [member.left for member in self._members]
        return None if None in left else sum(each for each in left if each is not None)

    def on_room(self, tell: Callable[[], None]) -> None:
        self._listeners.append(tell)

    def states(self) -> tuple[Standing, ...]:
        now = asyncio.get_running_loop().time()
        return tuple(member.standing(now) for member in self._members)

    async def models(self) -> list[Model]:
        """Every model once, as the upstream that would be asked first describes it.

        An upstream that cannot be asked hides no other's models. Raises its failure where there are none at all.
        """
        ordered = sorted(self._members, key=lambda member: member.terms.priority)
        return union(await asyncio.gather(*(member.models() for member in ordered)))

    async def aclose(self) -> None:
        for member in self._members:
            await member.aclose()

    def _by_name(self) -> dict[str, list[Member]]:
        named: dict[str, list[Member]] = {}
        for member in self._members:
            for name in {*member.terms.models, *member.terms.aliases}:
                named.setdefault(name, [])
        return {name: [member for member in self._members if _serves(member, name)] for name in named}

    def _serving(self, model: str) -> list[Member]:
        """In the order of the settings; at least one."""
        serving = self._named.get(model) or [member for member in self._members if _serves(member, model)]
        if serving:
            return serving
        raise RelayError("not_found", f"there is no model `{model[:128]}`", param="model", phase="admission")

    def _tell(self) -> None:
        for tell in self._listeners:
            tell()


def _serves(member: Member, model: str) -> bool:
    terms = member.terms
    if model in terms.aliases or model in terms.models:
        return True
    return not terms.models and member.upstream.may_serve(model)
