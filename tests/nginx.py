"""A real nginx that speaks TLS and HTTP/2 before a relay, as an operator would put one there."""

import asyncio
import contextlib
import re
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Final

import pytest

DEADLINE_SECONDS: Final = 10.0

LOCATION: Final = """\
location / {
    proxy_pass http://127.0.0.1:8000;
    proxy_http_version 1.1;                     # 1.0, long the default, cannot tell an end from a cut
    proxy_set_header Connection "";             # kept open: `close` would cut the refusal of a large body
    proxy_buffering off;                        # for a reader that is slow nothing piles up here
    proxy_read_timeout 60s;                     # of silence; the relay says something every 15 s
    client_max_body_size 11m;                   # above RELAY_MAX_BODY_BYTES: the relay's refusal is JSON
    proxy_set_header Host $http_host;           # with its port, as in the Origin that it is compared with
    proxy_set_header X-Forwarded-Proto $scheme; # makes the relay's cookie Secure
    proxy_set_header X-Forwarded-For $remote_addr;
}
"""
"""Word for word what docs/http2.md shows."""

HTTP: Final = """\
daemon off;         # a child of the test, ended by its id
master_process off; # one process, of whatever user: workers of another user could not write to the test's folder
pid nginx.pid;
error_log stderr notice;
events { worker_connections CONNECTIONS; }
http {
    access_log off;
    # Where Debian would have them only root may write.
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    INSIDE
}
"""

SERVER: Final = """\
server {
    # `http2 on` is unknown before 1.25.1; since then this form is warned of, and works.
    # reuseport: the test holds the port from the choice on, so that nobody else is given it.
    listen 127.0.0.1:PORT ssl http2 reuseport;
    http2_max_concurrent_streams STREAMS;
    ssl_certificate certificate.pem;
    ssl_certificate_key key.pem;
    LOCATION
}
"""

LISTENS: Final = b"event method"
"""In the first line that nginx logs after it has opened its sockets."""

COMPLAINT: Final = re.compile(r".*\[(?:error|crit|alert|emerg)\].*")


BALANCER: Final = """\
upstream relays { RELAYS }
server {
    listen 127.0.0.1:PORT reuseport;
    location = /connections { stub_status; }
    location / {
        proxy_pass http://relays;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_buffering off;
        proxy_set_header Host $http_host;
    }
}
"""
"""Requests go to one relay after the other."""

CONNECTIONS: Final = 1024


@contextlib.asynccontextmanager
async def fronted(relay_port: int, *, max_streams: int = 128) -> AsyncIterator[int]:
    """nginx before the relay on that port; gives its own port. In the end it must have complained of nothing."""
    with tempfile.TemporaryDirectory(prefix="nginx-") as name, _reserved() as port:
        await _certify(Path(name))
        async with _running(Path(name), _configuration(port, relay_port, max_streams)) as said:
            yield port
    complaints = COMPLAINT.findall(b"".join(said).decode())
    assert complaints == [], complaints


@contextlib.asynccontextmanager
async def balanced(relay_ports: Iterable[int], *, connections: int = CONNECTIONS) -> AsyncIterator[int]:
    """nginx before several relays, without TLS; gives its own port, where /connections tells how many it has."""
    relays = " ".join(f"server 127.0.0.1:{port} max_fails=0;" for port in relay_ports)
    with tempfile.TemporaryDirectory(prefix="nginx-") as name, _reserved() as port:
        configuration = BALANCER.replace("PORT", str(port)).replace("RELAYS", relays)
        async with _running(Path(name), configuration, connections):
            yield port


@contextlib.contextmanager
def _reserved() -> Iterator[int]:
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


@contextlib.asynccontextmanager
async def _running(folder: Path, inside: str, connections: int = CONNECTIONS) -> AsyncIterator[list[bytes]]:
    """Gives what it says, whole when the block has ended."""
    (folder / "nginx.conf").write_text(HTTP.replace("CONNECTIONS", str(connections)).replace("INSIDE", inside))
    arguments = ("-p", str(folder), "-c", "nginx.conf", "-e", "stderr")
    nginx = await asyncio.create_subprocess_exec(_program("nginx"), *arguments, stderr=asyncio.subprocess.PIPE)
    said: list[bytes] = []
    try:
        await _listening(nginx, said)
        yield said
    finally:
        said.append(await _ended(nginx))


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (tests/install)")
    return found


async def _certify(folder: Path) -> None:
    """A certificate that nobody vouches for, of a day."""
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "key.pem")
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    arguments = ("req", "-x509", *key, *names, "-days", "1", "-out", "certificate.pem")
    pipe = asyncio.subprocess.PIPE
    openssl = await asyncio.create_subprocess_exec(_program("openssl"), *arguments, cwd=folder, stderr=pipe)
    _, complaints = await openssl.communicate()
    assert openssl.returncode == 0, complaints.decode()


def _configuration(port: int, relay_port: int, max_streams: int) -> str:
    location = LOCATION.replace(":8000", f":{relay_port}")
    return SERVER.replace("PORT", str(port)).replace("STREAMS", str(max_streams)).replace("LOCATION", location)


async def _listening(nginx: asyncio.subprocess.Process, said: list[bytes]) -> None:
    assert nginx.stderr is not None
    async with asyncio.timeout(DEADLINE_SECONDS):
        async for line in nginx.stderr:
            said.append(line)
            if LISTENS in line:
                return
    raise AssertionError(f"nginx did not start: {b''.join(said).decode()}")


async def _ended(nginx: asyncio.subprocess.Process) -> bytes:
    """Ends it; returns what it still said."""
    with contextlib.suppress(ProcessLookupError):
        nginx.terminate()
    async with asyncio.timeout(DEADLINE_SECONDS):
        _, said = await nginx.communicate()
    return said
