"""Who is compared, how each is started and how each is asked."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import msgspec

from benchmarks.processes import OUT, Server, found, free_port, running

RELAY_COMMAND: Final = (sys.executable, "-m", "app", "serve")
MODEL: Final = "sim-200-20000-8"


class Contender(msgspec.Struct, frozen=True):
    """One way from the client to upstream. An empty command is no server at all: the rig alone, the base of "added"."""

    name: str
    command: tuple[str, ...]
    path: str
    speaks_openai: bool
    openings: int
    flood_tokens: int
    """Of one flooding stream. Both are chosen so that each contender is busy for a second or more, since the kernel
    counts processor time in hundredths; what is compared is the cost of one."""
    on_disconnect: str | None = None
    """For the relay: `None` is its default, a stream that can be resumed."""

    def request(self, model: str, on_disconnect: str | None = None) -> str:
        """The request's JSON; `on_disconnect` asks the relay, and only the relay, for that policy."""
        if self.speaks_openai:
            return json.dumps({"model": model, "messages": [{"role": "user", "content": "x"}], "stream": True})
        policy = (on_disconnect or self.on_disconnect) if self.command == RELAY_COMMAND else None
        return json.dumps({"model": model, "message": "x"} | ({"on_disconnect": policy} if policy else {}))


def _uvicorn(app: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "uvicorn", app, "--port", "{port}")


_OPENAI_PATH: Final = "/v1/chat/completions"
_NGINX: Final = ("nginx", "-p", str(OUT), "-e", "nginx.log", "-c", "nginx.conf")

CONTENDERS: Final = (
    Contender("direct", (), _OPENAI_PATH, True, 4_000, 20_000),
    Contender("relay", RELAY_COMMAND, "/chat/stream", False, 800, 4_000),
    Contender("relay once", RELAY_COMMAND, "/chat/stream", False, 800, 4_000, "cancel"),
    Contender("tutorial", _uvicorn("benchmarks.tutorial:app"), "/chat/stream", False, 400, 400),
    Contender("floor", _uvicorn("benchmarks.floor:app"), _OPENAI_PATH, True, 4_000, 20_000),
    Contender("nginx", _NGINX, _OPENAI_PATH, True, 4_000, 20_000),
)
RELAY: Final = CONTENDERS[1]

NGINX_CONF: Final = """
daemon off;
worker_processes 1;
pid nginx.pid;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  keepalive_requests 1000000;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  upstream llm {{ server 127.0.0.1:{upstream_port}; keepalive 256; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://llm; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }}
  }}
}}
"""


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
    if contender.name == "nginx" and not found("nginx"):
        return "nginx is not installed: its column is left out"
    return None


@contextmanager
def started(contender: Contender, upstream_port: int, **settings: str) -> Iterator[Server | None]:
    """The contender's server, in front of the upstream; None for the one that has none."""
    if not contender.command:
        yield None
        return
    port = free_port()
    if contender.name == "nginx":
        OUT.mkdir(parents=True, exist_ok=True)
        (OUT / "nginx.conf").write_text(NGINX_CONF.format(port=port, upstream_port=upstream_port))
    command = [part.format(port=port) for part in contender.command]
    with running(command, environment(port, upstream_port, **settings), port) as server:
        yield server
