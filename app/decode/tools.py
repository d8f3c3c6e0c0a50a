"""Which tool call a part belongs to, where upstreams number them in four ways or not at all.

OpenAI numbers from 0 and names a call once. Gemini sends whole calls without an index. Ollama has sent several calls
with index 0, told apart by id and name. Some gateways repeat id and name with every part. A call is known to clients by
its `index`: upstream's own where that is free, else the next.
"""

from app.decode.fields import ToolPart
from app.decode.text import Channel
from app.errors import RelayError

MAX_TOOL_CALLS = 1024
"""Calls are remembered until the answer's end; no model makes so many, and a runaway upstream must not cost memory."""

MAX_NAME_CHARACTERS = 512
"""Of an id or a name: one that is longer is no name."""


class Call:
    """One tool call, as far as clients have been told."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.id = ""
        self.name = ""
        self.arguments = Channel()

    def news(self, part: ToolPart) -> tuple[str | None, str | None]:
        """The part's id and name, each only where it was not told before."""
        call_id = None if self.id else part.id or None
        name = None if self.name else part.name or None
        self.id, self.name = self.id or call_id or "", self.name or name or ""
        return call_id, name


class ToolCalls:
    """The calls of one answer."""

    def __init__(self) -> None:
        self.calls: dict[int, Call] = {}
        self._by_upstream_index: dict[int, Call] = {}
        self._by_id: dict[str, Call] = {}
        self._last: Call | None = None

    def find(self, part: ToolPart) -> Call:
        """The part's call, a new one where it is none of those before.

        Raises `RelayError` (`upstream_protocol`) for ids and names beyond any name, and for too many calls.
        """
        if max(len(part.id or ""), len(part.name)) > MAX_NAME_CHARACTERS:
            raise RelayError("upstream_protocol", "upstream sent a tool call whose id or name is too long")
        call = self._known(part) or self._new(part.index)
        if part.index is not None:
            self._by_upstream_index[part.index] = call
        if part.id:
            self._by_id[part.id] = call
        self._last = call
        return call

    def _known(self, part: ToolPart) -> Call | None:
        if part.index is None:
            if part.id:
                return self._by_id.get(part.id)
            return None if part.name else self._last
        call = self._by_upstream_index.get(part.index)
        if call is not None and part.name and part.id and call.id and call.id != part.id:
            # A used index under another id: another call (Ollama, several gateways), unless that id is known too.
            return self._by_id.get(part.id)
        return call

    def _new(self, upstream_index: int | None) -> Call:
        if len(self.calls) == MAX_TOOL_CALLS:
            raise RelayError("upstream_protocol", f"upstream sent more than {MAX_TOOL_CALLS} tool calls")
        free = upstream_index is not None and 0 <= upstream_index < MAX_TOOL_CALLS and upstream_index not in self.calls
        index = upstream_index if upstream_index is not None and free else max(self.calls, default=-1) + 1
        call = self.calls[index] = Call(index)
        return call
