"""A relay by script: the native dialect's bytes as the contract has them, on the scripted server's real port."""

import json

from tests.upstream import Answer, Step, Upstream, head, send, status

STREAM_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "x-stream-id": "s_1"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12, "source": "reported"}
TIMINGS = {"first_token_s": 0.41, "total_s": 2.03}


def opened() -> Step:
    return head(headers=STREAM_HEADERS)


def say(kind: str, seq: int | None, *, content: str = "", **fields: object) -> Step:
    """One event in the shape with ids; without `seq` it is one that is not kept."""
    kept = {} if seq is None else {"seq": seq}
    cursor = "" if seq is None else f"id: s_1.{seq}\n"
    payload = json.dumps({"type": kind, "content": content, **fields, **kept}, separators=(",", ":"))
    return send(f"data: {payload}\n{cursor}\n".encode())


def start(*, resumable: bool = True) -> Step:
    return say("start", 0, protocol=1, id="s_1", model="m", resumable=resumable)


def delta(seq: int, content: str) -> Step:
    return say("delta", seq, content=content)


def done(seq: int, finish_reason: str = "stop") -> Step:
    return say("done", seq, finish_reason=finish_reason, usage=USAGE, timings=TIMINGS)


def failed(seq: int, code: str, **fields: object) -> Step:
    return say("error", seq, error=problem(code, **fields))


def end() -> Step:
    return send(b"data: [DONE]\n\n")


def problem(code: str, **fields: object) -> dict[str, object]:
    return {"code": code, "message": f"It is {code}.", "type": "t", "retryable": False, "partial": False, **fields}


def refused(http_status: int, code: str, **fields: object) -> Answer:
    """As the relay refuses who accepts an event stream: the status, and an `error` event."""
    event = json.dumps({"type": "error", "content": "", "error": problem(code, **fields)})
    return status(http_status, f"data: {event}\n\ndata: [DONE]\n\n".encode(), {"content-type": "text/event-stream"})


def whole(*texts: str) -> Answer:
    deltas = [delta(seq, text) for seq, text in enumerate(texts, 1)]
    return opened(), start(), *deltas, done(len(texts) + 1), end()


def url_of(relay: Upstream) -> str:
    return relay.base_url.removesuffix("/v1")
