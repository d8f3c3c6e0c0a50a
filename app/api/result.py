"""What there is of an answer by now, as JSON: for a client that was interrupted and wants no stream."""

from app.events import Delta, Done, Failed, Passed, Reasoning, Refusal, Start, ToolCall
from app.fleet import Account
from app.wire import native


def result(account: Account) -> dict[str, object]:
    texts: dict[str, list[str]] = {"text": [], "reasoning": [], "refusal": []}
    calls: dict[int, list[ToolCall]] = {}
    for event in account.events:
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
    return _state(account) | joined | {"tool_calls": [_call(calls[index]) for index in sorted(calls)]}


def _state(account: Account) -> dict[str, object]:
    end = account.end
    done = end if isinstance(end, Done) else None
    return {
        "id": account.id,
        "status": "running" if end is None else "done" if done else "error",
        "model": account.model,
        "finish_reason": done.finish_reason if done else None,
        "usage": native.usage_json(done.usage if done else account.usage),
        "error": end.error.as_json() if isinstance(end, Failed) else None,
    }


def _call(pieces: list[ToolCall]) -> dict[str, object]:
    return {
        "index": pieces[0].index,
        "id": next((piece.id for piece in pieces if piece.id), None),
        "name": next((piece.name for piece in pieces if piece.name), None),
        "arguments": "".join(piece.arguments for piece in pieces),
    }
