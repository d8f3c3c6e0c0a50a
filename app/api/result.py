"""What there is of an answer by now, as JSON: for a client that was interrupted and wants no stream."""

from app.errors import RelayError
from app.events import Delta, Done, Failed, Passed, Reasoning, Refusal, Start, ToolCall
from app.relay import Generation
from app.wire import native


def result(generation: Generation) -> dict[str, object]:
    """Raises `not_resumable` for a stream whose beginning is not kept."""
    log = generation.log
    if not log.resumable or log.live_from is not None:
        raise RelayError("not_resumable", "this stream can only be read live", phase="admission")
    texts: dict[str, list[str]] = {"text": [], "reasoning": [], "refusal": []}
    calls: dict[int, list[ToolCall]] = {}
    for event in log.everything():
        match event.piece if isinstance(event, Passed) else event:
            case Delta(content=text):
                texts["text"].append(text)
            case Reasoning(reasoning=text):
                texts["reasoning"].append(text)
            case Refusal(refusal=text):
                texts["refusal"].append(text)
            case ToolCall() as call:
                calls.setdefault(call.index, []).append(call)
            case Start() | Done() | Failed() | None:
                pass
    joined = {name: "".join(pieces) for name, pieces in texts.items()}
    return _state(generation) | joined | {"tool_calls": [_call(calls[index]) for index in sorted(calls)]}


def _state(generation: Generation) -> dict[str, object]:
    end = generation.log.closed
    done = end if isinstance(end, Done) else None
    return {
        "id": generation.id,
        "status": "running" if end is None else "done" if done else "error",
        "model": generation.chat.model,
        "finish_reason": done.finish_reason if done else None,
        "usage": native.usage_json(done.usage if done else generation.usage()),
        "error": end.error.as_json() if isinstance(end, Failed) else None,
    }


def _call(pieces: list[ToolCall]) -> dict[str, object]:
    return {
        "index": pieces[0].index,
        "id": next((piece.id for piece in pieces if piece.id), None),
        "name": next((piece.name for piece in pieces if piece.name), None),
        "arguments": "".join(piece.arguments for piece in pieces),
    }
