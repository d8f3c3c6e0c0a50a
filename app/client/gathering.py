from app.client.events import Answer, ClientEvent, ToolCall, ToolCallPiece
from app.client.problems import ErrorObject


class Gathering:
    """The answer so far, from its events."""

    def __init__(self) -> None:
        self._model: str | None = None
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._refusals: list[str] = []
        self._calls: dict[int, list[ToolCallPiece]] = {}
        self._done: ClientEvent | None = None
        self._error: ErrorObject | None = None

    def take(self, event: ClientEvent) -> None:
        self._texts.append(event.content)
        self._thoughts.append(event.reasoning)
        self._refusals.append(event.refusal)
        self._model = event.model or self._model
        if event.tool_call:
            self._calls.setdefault(event.tool_call.index, []).append(event.tool_call)
        if event.type == "done":
            self._done = event

    def fail(self, error: ErrorObject) -> None:
        self._error = error

    def answer(self, stream_id: str | None) -> Answer:
        return Answer(
            id=stream_id,
            status="error" if self._error else "done" if self._done else "running",
            model=self._model,
            text="".join(self._texts),
            reasoning="".join(self._thoughts),
            refusal="".join(self._refusals),
            tool_calls=tuple(_whole(self._calls[index]) for index in sorted(self._calls)),
            finish_reason=self._done.finish_reason if self._done else None,
            usage=self._done.usage if self._done else None,
            timings=self._done.timings if self._done else None,
            error=self._error,
        )


def _whole(pieces: list[ToolCallPiece]) -> ToolCall:
    return ToolCall(
        pieces[0].index,
        next((piece.id for piece in pieces if piece.id), None),
        next((piece.name for piece in pieces if piece.name), None),
        "".join(piece.arguments for piece in pieces),
    )
