"""Chunks → pieces, and the one end of an answer.

The contract:

- `end` is set once, to `Complete` or to a `RelayError`; what comes after it is nobody's.
- `finished` is latched by a finish_reason. From then on nothing that upstream says can make a failure of the answer:
  the caller has it whole. What still comes (usage, more text, another finish_reason) is taken until upstream ends.
- `carrying` is latched by the first chunk that carries something. Before it a failure can still be an HTTP status, and
  a refused request is the caller's; after it text may be delivered, and the same refusal is upstream's failure.
- Within one chunk text counts first, then an error, then the finish_reason: a failure that comes with a "stop" is one.
"""

from collections.abc import Sequence

import msgspec

from app.decode import failure
from app.decode.fields import Choice, Chunk, Says, Tokens, ToolPart
from app.decode.text import Channel, pieces
from app.decode.tools import MAX_NAME_CHARACTERS, ToolCalls
from app.errors import RelayError
from app.events import Delta, Piece, Reasoning, Refusal, ToolCall, Usage

MAX_CHARACTERS_BESIDE_A_PIECE = 400
"""Of an id and a name together: with a full piece of arguments (`text`) they still fit into a line of 64 KiB."""

ERROR_REASONS = frozenset({"error", "insufficient_system_resource"})
"""Finish reasons that are failures: OpenRouter's and DeepSeek's."""


class Limits(msgspec.Struct, frozen=True):
    """What one upstream answer may cost, and whether it must say that it is whole.

    `max_event_bytes` holds for one frame, or a whole body that is no event stream; `max_answer_bytes` for the UTF-8 of
    all text, reasoning, refusal and arguments, and of the JSON around them where it is passed on. `finish_optional`: an
    end without a finish_reason counts as whole.
    """

    max_event_bytes: int
    max_answer_bytes: int
    finish_optional: bool = False


class Complete(msgspec.Struct, frozen=True):
    """The answer is whole. `usage` is what upstream reported, if it did."""

    finish_reason: str
    usage: Usage | None


class Others:
    """The choices beside the first, where a client asked for several: passed on unread, but the answer waits for them.

    Upstreams that know no `n` answer once, so a choice that never began is missed only until upstream ends.
    """

    def __init__(self, choices: int) -> None:
        self._choices = choices
        self.missing = set(range(1, choices))
        self.begun: set[int] = set()

    def asked(self, index: int) -> bool:
        return 0 < index < self._choices

    def receive(self, index: int, choice: Choice) -> bool:
        """Whether it carries something."""
        if choice.finish_reason:
            self.missing.discard(index)
            self.begun.discard(index)
            return True
        if index in self.missing:
            self.begun.add(index)
        return choice.delta is not None and choice.delta.carries


class Answer:
    """The state of one upstream answer.

    `carrying`: content, reasoning, refusal, a tool call or a finish_reason was seen; `carried`: in how many pieces and
    chunks; `text_bytes`: UTF-8 of all text, reasoning, refusal and arguments; `usage`: what upstream reported last;
    `end`: how the answer ended, set once.
    """

    def __init__(self, limits: Limits, choices: int = 1) -> None:
        self._limits = limits
        self._spent_bytes = 0
        self.text_bytes = 0
        self.carried = 0
        self._content, self._reasoning, self._refusal = Channel(), Channel(), Channel()
        self._tools = ToolCalls()
        self._finish_reason = ""
        self._others = Others(choices)
        self._pieces: list[Piece] = []
        self.carrying = False
        self.usage: Usage | None = None
        self.end: Complete | RelayError | None = None

    @property
    def finished(self) -> bool:
        """A finish_reason was seen: the answer is whole, whatever happens now."""
        return bool(self._finish_reason) and not self._others.missing

    @property
    def joining(self) -> bool:
        """Whether half a character waits for its other half."""
        said = self._content.waiting or self._reasoning.waiting or self._refusal.waiting
        return bool(said) or any(call.arguments.waiting for call in self._tools.calls.values())

    def take(self) -> list[Piece]:
        """The pieces since the last time."""
        taken, self._pieces = self._pieces, []
        self.carried += len(taken)
        return taken

    def receive(self, chunk: Chunk) -> None:
        """Raises `RelayError` for what ends the answer."""
        error, finish_reason = chunk.error, None
        for choice in chunk.choices or ():
            if choice is None:
                continue
            if choice.index:  # rule 8: choices other than index 0 are not ours
                error = self._beside(choice.index, choice) or error
                continue
            if choice.delta is not None:
                self._says(choice.delta)
            error = error or choice.error
            finish_reason = choice.finish_reason or finish_reason
            if choice.usage is not None:
                self._report(choice.usage)
        if chunk.x_groq is not None and chunk.x_groq.usage is not None:
            self._report(chunk.x_groq.usage)
        if chunk.usage is not None:
            self._report(chunk.usage)
        if error is not None:
            self.receive_error(error)
        if finish_reason:
            self._finish(finish_reason)

    def receive_error(self, error: object) -> None:
        """What upstream told of a failure. Raises it, unless the answer is finished: then it failed at nothing."""
        if not self.finished:
            raise failure.in_band(error, carrying=self.carrying)

    def receive_eof(self, *, cut: bool = False) -> None:
        """Upstream ended, by `[DONE]` or by closing; `cut`: its encoding shows that something is missing."""
        if self._finish_reason and not self._others.begun:
            self._close(Complete(self._finish_reason, self.usage))
        elif self._limits.finish_optional and self.carrying and not cut:
            self._close(Complete("unknown", self.usage))
        else:
            self._close(RelayError("upstream_truncated", "upstream ended before its answer was whole"))

    def fail(self, error: RelayError) -> None:
        """Upstream cannot be read any further."""
        self._close(Complete(self._finish_reason, self.usage) if self.finished else error)

    @property
    def too_long(self) -> bool:
        """More came than one whole answer may be."""
        return self._spent_bytes > self._limits.max_answer_bytes

    def spend(self, size: int) -> None:
        """Raises `RelayError` beyond the limit of a whole answer."""
        self._spent_bytes += size
        if self._spent_bytes > (limit := self._limits.max_answer_bytes):
            raise RelayError("upstream_protocol", f"upstream sent an answer of more than {limit} bytes")

    def _close(self, end: Complete | RelayError) -> None:
        self._pieces += map(Delta, pieces(self._content.receive_eof()))
        self._pieces += map(Reasoning, pieces(self._reasoning.receive_eof()))
        self._pieces += map(Refusal, pieces(self._refusal.receive_eof()))
        for call in self._tools.calls.values():
            self._pieces += (ToolCall(call.index, None, None, rest) for rest in pieces(call.arguments.receive_eof()))
        self.end = end

    def _beside(self, index: int, choice: Choice) -> object:
        """The failure of a choice that was asked for: it would be missing from an answer that looks whole."""
        if not self._others.asked(index):
            return None
        if choice.error or choice.finish_reason in ERROR_REASONS:
            return choice.error or {"message": choice.finish_reason}
        if self._others.receive(index, choice):
            self.carrying = True
            self.carried += 1
        return None

    def _says(self, says: Says) -> None:
        if thought := says.reasoning_content or says.reasoning:  # gateways send the same under both names
            self._pieces += map(Reasoning, self._passed(self._reasoning, thought))
        if says.content:
            self._pieces += map(Delta, self._passed(self._content, says.content))
        if says.refusal:
            self._pieces += map(Refusal, self._passed(self._refusal, says.refusal))
        for part in says.tool_calls or ():
            if part is not None:
                self._tool_part(part)
        if says.function_call is not None and not says.tool_calls:
            # What tool calls were called before November 2023; there was one, so it has an index.
            self._tool_part(ToolPart(0, None, says.function_call))
        if says.shows:
            self.carrying = True
            self.carried += 1

    def _passed(self, channel: Channel, text: str) -> Sequence[str]:
        self.carrying = True
        text = channel.receive(text)
        size = len(text) if text.isascii() else len(text.encode())
        self.text_bytes += size
        self.spend(size)
        return pieces(text)

    def _tool_part(self, part: ToolPart) -> None:
        if not (part.id or part.name or part.arguments):
            return
        call = self._tools.find(part)
        call_id, name = call.news(part)
        first, *more = self._passed(call.arguments, part.arguments) or ("",)
        if len(call_id or "") + len(name or "") > MAX_CHARACTERS_BESIDE_A_PIECE:
            first, more = "", [first, *more] if first else []
        if call_id or name or first:
            self._pieces.append(ToolCall(call.index, call_id, name, first))
            self._pieces += (ToolCall(call.index, None, None, rest) for rest in more)

    def _report(self, tokens: Tokens) -> None:
        self.usage = tokens.as_usage() or self.usage

    def _finish(self, finish_reason: str) -> None:
        if finish_reason in ERROR_REASONS:
            self.receive_error({"message": finish_reason})
            return
        self.carrying = True
        self._finish_reason = finish_reason[:MAX_NAME_CHARACTERS]
