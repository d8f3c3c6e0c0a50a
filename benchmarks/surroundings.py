"""What a variant has around it, all of it on the rig's core: TLS before upstream, Redis, somebody who reads metrics."""

import http.client
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, Literal

from benchmarks import nginx
from benchmarks.processes import OUT, found, free_port, wait_for_port
from benchmarks.redis_server import redis_server

Need = Literal["tls", "redis", "telemetry"]
_PROGRAMS: Final[Mapping[Need, tuple[str, ...]]] = {"tls": ("nginx", "openssl"), "redis": ("redis-server",)}

TELEMETRY: Final = {"RELAY_LOG_LEVEL": "info", "RELAY_LOG_FORMAT": "json"}
SCRAPE_SECONDS: Final = 1.0
"""Prometheus asks every 15 s as a rule."""


def lacks(need: Need) -> str | None:
    """The first program that is missing for it."""
    return next((program for program in _PROGRAMS.get(need, ()) if not found(program)), None)


@contextmanager
def surrounded(needs: Sequence[Need], upstream_port: int) -> Iterator[Mapping[str, str]]:
    """Gives the settings by which a relay makes use of it."""
    with ExitStack() as stack:
        settings: dict[str, str] = {}
        for need in needs:
            settings |= stack.enter_context(_STARTS[need](upstream_port))
        yield settings


@contextmanager
def _tls(upstream_port: int) -> Iterator[Mapping[str, str]]:
    folder, port = OUT / "tls", free_port()
    folder.mkdir(parents=True, exist_ok=True)
    certificate = _certificate(folder)
    (folder / "nginx.conf").write_text(nginx.TLS.format(port=port, upstream_port=upstream_port))
    with subprocess.Popen(nginx.command(folder)) as process:
        try:
            wait_for_port(process, port)
            yield {"OPENAI_BASE_URL": f"https://127.0.0.1:{port}/v1", "SSL_CERT_FILE": str(certificate)}
        finally:
            process.terminate()


def _certificate(folder: Path) -> Path:
    """One for loopback, that nobody trusts but who is told to."""
    made = folder / "certificate.pem"
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(folder / "key.pem"))
    names = ("-subj", "/CN=upstream", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2")
    program = shutil.which("openssl") or "openssl"
    subprocess.run([program, "req", "-x509", *key, *names, "-out", made], check=True, capture_output=True)
    return made


@contextmanager
def _redis(_upstream_port: int) -> Iterator[Mapping[str, str]]:
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)):
        yield {"RELAY_REDIS_URL": f"unix://{folder}/redis.sock", "RELAY_REDIS_TTL_SECONDS": "20"}


@contextmanager
def _telemetry(_upstream_port: int) -> Iterator[Mapping[str, str]]:
    port, over = free_port(), threading.Event()
    scraper = threading.Thread(target=_scrape, args=(port, over), name="scraper")
    scraper.start()
    try:
        yield {**TELEMETRY, "RELAY_ADMIN_PORT": str(port)}
    finally:
        over.set()
        scraper.join()


def _scrape(port: int, over: threading.Event) -> None:
    while not over.wait(SCRAPE_SECONDS):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/metrics")
            connection.getresponse().read()
        except OSError:
            pass  # it starts, or it has ended
        finally:
            connection.close()


_STARTS: Final = {"tls": _tls, "redis": _redis, "telemetry": _telemetry}
