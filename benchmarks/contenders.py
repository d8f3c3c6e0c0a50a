"""Who is compared, and how each is asked. How they are started: surroundings.py."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Literal

import msgspec

from benchmarks import nginx
from benchmarks.processes import OUT, Server, found, free_port, running
from benchmarks.surroundings import Need, lacks, surrounded

RELAY_COMMAND: Final = (sys.executable, "-m", "app", "serve")
MODEL: Final = "sim-200-20000-8"

Asks = Literal["native", "openai", "ai_sdk", "ag_ui"]


class Contender(msgspec.Struct, frozen=True):
    """One way from the client to upstream. An empty command is no server at all: the rig alone, the base of "added"."""

    name: str
    command: tuple[str, ...]
    path: str
    asks: Asks
    openings: int
    flood_tokens: int
    """Of one flooding stream. Both are chosen so that each contender is busy for a second or so: long enough for chance
    to even out, short enough for the slow. What is compared is the cost of one."""
    on_disconnect: str | None = None
    """For the relay: `None` is its default, a stream that can be resumed."""
    accept: str = "text/event-stream"
    needs: tuple[Need, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    """Configuration by its name in benchmarks/out; `{port}` and `{upstream_port}` are filled in."""
    peer: bool = False
    """Somebody else's server: what it cannot do is noted, not a failure of the run."""

    def request(self, model: str, on_disconnect: str | None = None) -> str:
        """The request's JSON; `on_disconnect` asks the relay, and only the relay, for that policy."""
        return json.dumps(self._body(model, self._policy(on_disconnect)))

    def headers(self, on_disconnect: str | None = None) -> tuple[str, ...]:
        """What goes with it, as lines."""
        policy = self._policy(on_disconnect)
        return (f"Accept: {self.accept}", *((f"X-On-Disconnect: {policy}",) if policy else ()))

    def whole_request(self, port: int, model: str, on_disconnect: str | None = None) -> bytes:
        """As it goes over the wire."""
        body = self.request(model, on_disconnect).encode()
        head = (
            f"POST {self.path} HTTP/1.1",
            f"Host: 127.0.0.1:{port}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *self.headers(on_disconnect),
        )
        return "\r\n".join((*head, "", "")).encode() + body

    def _policy(self, on_disconnect: str | None) -> str | None:
        return (on_disconnect or self.on_disconnect) if self.command == RELAY_COMMAND else None

    def _body(self, model: str, policy: str | None) -> Mapping[str, object]:
        match self.asks:
            case "native":
                return {"model": model, "message": "x"} | ({"on_disconnect": policy} if policy else {})
            case "openai":
                return {"model": model, "messages": [{"role": "user", "content": "x"}], "stream": True}
            case "ai_sdk":
                said = {"id": "1", "role": "user", "parts": [{"type": "text", "text": "x"}]}
                return {"id": "chat", "messages": [said], "trigger": "submit-message", "model": model}
            case "ag_ui":
                said = {"id": "1", "role": "user", "content": "x"}
                return {"threadId": "t", "runId": "r", "messages": [said], "forwardedProps": {"model": model}}


def _uvicorn(app: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "uvicorn", app, "--port", "{port}")


OPENAI_PATH: Final = "/v1/chat/completions"
_NATIVE: Final = ("/chat/stream", "native", 500, 4_000)

DIRECT: Final = Contender("direct", (), OPENAI_PATH, "openai", 2_000, 20_000)
RELAY: Final = Contender("relay", RELAY_COMMAND, *_NATIVE)
TUTORIAL: Final = Contender("tutorial", _uvicorn("benchmarks.tutorial:app"), "/chat/stream", "native", 250, 400)
FLOOR: Final = Contender("floor", _uvicorn("benchmarks.floor:app"), OPENAI_PATH, "openai", 2_000, 20_000)
NGINX: Final = Contender(
    "nginx", nginx.command(OUT), OPENAI_PATH, "openai", 2_000, 20_000, files=(("nginx.conf", nginx.PLAIN),)
)

CONTENDERS: Final = (DIRECT, RELAY, TUTORIAL, FLOOR, NGINX)


def _variant(name: str, **changes: object) -> Contender:
    return msgspec.structs.replace(RELAY, name=name, **changes)


VARIANTS: Final = (
    RELAY,
    _variant("plain, without ids", accept="*/*"),
    _variant("cancel: nothing kept", on_disconnect="cancel"),
    _variant("OpenAI's dialect", path=OPENAI_PATH, asks="openai", accept="*/*"),
    _variant("AI SDK", path="/api/chat", asks="ai_sdk", accept="*/*"),
    _variant("AG-UI", path="/ag-ui", asks="ag_ui"),
    _variant("TLS to upstream", needs=("tls",)),
    _variant("shared log on Redis", needs=("redis",)),
    _variant("telemetry read", needs=("telemetry",)),
    _variant("Redis, telemetry", needs=("redis", "telemetry")),
)
"""The relay in other shapes and places, against itself as it is."""


def environment(port: int, upstream_port: int, **more: str) -> Mapping[str, str]:
    return {
        "OPENAI_BASE_URL": f"http://127.0.0.1:{upstream_port}/v1",
        "OPENAI_API_KEY": "x",
        "RELAY_PORT": str(port),
        "RELAY_DEFAULT_MODEL": MODEL,
        "RELAY_ADMIN_PORT": "-1",  # the usual one is one for the whole machine
        **more,
    }


def missing(contender: Contender) -> str | None:
    """Why a contender cannot take part here, in words for the report."""
    if contender is NGINX and not found("nginx"):
        return "nginx is not installed: its column is left out."
    absent = [program for need in contender.needs if (program := lacks(need))]
    return f"{absent[0]} is not installed: “{contender.name}” is left out." if absent else None


@contextmanager
def started(contender: Contender, upstream_port: int, **settings: str) -> Iterator[Server | None]:
    """The contender's server, in front of the upstream; None for the one that has none."""
    if not contender.command:
        yield None
        return
    port = free_port()
    OUT.mkdir(parents=True, exist_ok=True)
    for name, text in contender.files:
        (OUT / name).write_text(text.format(port=port, upstream_port=upstream_port))
    command = [part.format(port=port) for part in contender.command]
    with surrounded(contender.needs, upstream_port) as more:
        variables = environment(port, upstream_port, **dict(contender.settings), **more)
        with running(command, {**variables, **settings}, port) as server:
            yield server
