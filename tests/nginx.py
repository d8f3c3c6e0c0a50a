"""A real nginx before relays: with the files of nginx/ as an operator runs them, or as a bare balancer."""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Final, Literal

from tests.nginx_process import Nginx, change, command, listener, port_of, program, ran, running

SHIPPED: Final = Path(__file__).parents[1] / "nginx"

Variant = Literal["nginx.conf", "tls.conf", "debian.conf"]
VARIANTS: Final[tuple[Variant, ...]] = ("nginx.conf", "tls.conf", "debian.conf")

USER: Final = "user root;" if os.geteuid() == 0 else ""
"""Workers of another user could not write to the test's folder."""

TEMPORARY: Final = " ".join(
    f"{name}_temp_path {name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
)
"""Where Debian would have them only root may write."""

PLACES: Final = {
    r"user [\w-]+;": "",
    r"pid /run/nginx\.pid;": f"{USER} pid nginx.pid;",
    r"/var/log/nginx/access\.log": "/dev/stdout",
    r"/var/log/nginx/error\.log": "/dev/stderr",
    r"/var/(cache|lib)/nginx/page": "page",
    r"worker_rlimit_nofile \d+;": "",  # more than a machine may grant
    r"http \{": f"http {{ {TEMPORARY}",
    r"( *server \S+ (resolve )?max_fails=0;.*\n)+": "RELAYS\n",
    r"(?m)^( *listen) 80\b": r"\1 127.0.0.1:PLAIN",
    r"(?m)^( *listen) 443\b": r"\1 127.0.0.1:SECURE",
}
"""All that a test changes in what is shipped: user, files, addresses. `resolve`, which 1.22 lacks, goes with those."""

UNKNOWN_TO_1_22: Final = {r"\bhttp2 on;": "", r"(listen \S+ ssl) so_keepalive": r"\1 http2 so_keepalive"}

BALANCER: Final = """\
USER
pid nginx.pid;
error_log stderr notice;
events { worker_connections CONNECTIONS; }
http {
    access_log off;
    TEMPORARY
    upstream relays { RELAYS }
    server {
        listen 127.0.0.1:PLAIN;
        location = /connections { stub_status; }
        location / {
            proxy_pass http://relays;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_set_header Host $http_host;
        }
    }
}
"""
"""Requests go to one relay after the other, as many as may come."""

CONNECTIONS: Final = 1024


@contextlib.asynccontextmanager
async def shipped(
    relay_ports: Iterable[int], variant: Variant = "nginx.conf", changes: Mapping[str, str] | None = None
) -> AsyncIterator[Nginx]:
    """What nginx/ holds, before these relays. `changes`: regular expressions, and what is to stand in their place."""
    with tempfile.TemporaryDirectory(prefix="nginx-") as name, listener() as plain, listener() as secure:
        folder = Path(name)
        await lay(folder, variant, relay_ports, plain_port=port_of(plain), secure_port=port_of(secure))
        change(folder, changes or {})
        sockets = [plain] if variant == "nginx.conf" else [plain, secure]
        async with running(folder, *sockets) as nginx:
            yield nginx


@contextlib.asynccontextmanager
async def fronted(relay_port: int, *, max_streams: int = 128) -> AsyncIterator[int]:
    """TLS and HTTP/2 before a relay; gives the port. In the end nginx must have complained of nothing."""
    streams = {r"include paths\.conf;": f"http2_max_concurrent_streams {max_streams}; include paths.conf;"}
    async with shipped([relay_port], "debian.conf", streams | {r" crit;": " error;"}) as nginx:
        yield nginx.port
    assert nginx.complaints == [], nginx.complaints


@contextlib.asynccontextmanager
async def balanced(relay_ports: Iterable[int], *, connections: int = CONNECTIONS) -> AsyncIterator[int]:
    """A bare nginx before several relays; gives its port, where /connections tells how many it has."""
    with tempfile.TemporaryDirectory(prefix="nginx-") as name, listener() as plain:
        text = BALANCER.replace("USER", USER).replace("TEMPORARY", TEMPORARY).replace("CONNECTIONS", str(connections))
        _fill(Path(name) / "nginx.conf", text, relay_ports, port_of(plain))
        async with running(Path(name), plain) as nginx:
            yield nginx.port


async def lay(folder: Path, variant: Variant, relay_ports: Iterable[int], *, plain_port: int, secure_port: int) -> None:
    """The shipped files in a folder of a test, the variant as its nginx.conf, and a certificate."""
    shutil.copytree(SHIPPED, folder, dirs_exist_ok=True)
    shutil.copy(SHIPPED / variant, folder / "nginx.conf")
    await _certify(folder / "certs")
    places = PLACES | (UNKNOWN_TO_1_22 if await version() < (1, 25, 1) else {})
    for path in list(folder.glob("*.conf")):  # noqa: ASYNC240 — a handful of small files
        text = path.read_text()
        for pattern, place in places.items():
            text = re.sub(pattern, place, text)
        _fill(path, text, relay_ports, plain_port, secure_port)


async def version() -> tuple[int, ...]:
    """Of the nginx that is installed."""
    said = await ran(program("nginx"), "-v")
    return tuple(map(int, re.findall(r"nginx/(\d+)\.(\d+)\.(\d+)", said)[0]))


async def checked(folder: Path) -> str:
    """What `nginx -t` says of the folder's nginx.conf; AssertionError when it refuses it."""
    return await ran(*command(folder), "-t")


def _fill(path: Path, text: str, relay_ports: Iterable[int], plain_port: int, secure_port: int = 0) -> None:
    servers = " ".join(f"server 127.0.0.1:{port} max_fails=0;" for port in relay_ports)
    text = text.replace("RELAYS", servers).replace("PLAIN", str(plain_port)).replace("SECURE", str(secure_port))
    path.write_text(text)


async def _certify(folder: Path) -> None:
    """A certificate that nobody vouches for, of a day."""
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{folder}/privkey.pem")
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    arguments = ("req", "-x509", *key, *names, "-days", "1", "-out", f"{folder}/fullchain.pem")
    await ran(program("openssl"), *arguments)


def values(name: str) -> list[str]:
    """What a directive is set to, wherever in nginx/."""
    texts = (path.read_text() for path in sorted(SHIPPED.glob("*.conf")))
    return [value for text in texts for value in re.findall(rf"(?m)^ *{name} +([^;{{]*);", text)]


def seconds(name: str) -> list[float]:
    """Of a directive that is a time; the longest one last."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    found = [re.fullmatch(r"(\d+)(ms|s|m|h|d)", value) for value in values(name)]
    return sorted(int(each[1]) * units[each[2]] for each in found if each)
