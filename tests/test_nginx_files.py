"""The files of nginx/: nginx takes each variant without a word, and its numbers stand in order with the relay's."""

import re
from pathlib import Path
from typing import Any, Final

import pytest

from app.server import KEEP_ALIVE_SECONDS
from app.settings import MiB, Settings
from tests.nginx import SHIPPED, VARIANTS, Variant, checked, lay, seconds, values, version

DEFAULTS: Final[Any] = Settings.model_construct()
RESOLVE_SINCE: Final = (1, 27, 3)
RESOLVED: Final = "server relay:8000 resolve max_fails=0;"


@pytest.mark.parametrize("variant", VARIANTS)
async def test_nginx_takes_each_variant_without_a_warning(tmp_path: Path, variant: Variant) -> None:
    await lay(tmp_path, variant, [8000], plain_port=8080, secure_port=8443)
    said = await checked(tmp_path)
    assert "test is successful" in said
    expected = "deprecated" if variant == "debian.conf" and await version() >= (1, 25, 1) else "none"
    assert [line for line in said.splitlines() if "[" in line and expected not in line] == []


async def test_replicas_are_found_by_their_name(tmp_path: Path) -> None:
    """What nginx 1.22 cannot read is one word of one line; a newer one reads the line as it is shipped."""
    container = (SHIPPED / "container.conf").read_text()
    assert container.count(RESOLVED) == 1
    await lay(tmp_path, "nginx.conf", [8000], plain_port=8080, secure_port=8443)
    laid = tmp_path / "container.conf"
    known = RESOLVED if await version() >= RESOLVE_SINCE else "server 127.0.0.1:8000 max_fails=0;"
    laid.write_text(laid.read_text().replace("server 127.0.0.1:8000 max_fails=0;", known))
    await checked(tmp_path)
    assert values("resolver") == ["127.0.0.11 valid=1s ipv6=off"]
    assert values("zone") == ["relays 256k"]  # wanted by `resolve`


def test_silence_is_shorter_than_nginx_waits() -> None:
    shortest, *_, longest = seconds("proxy_read_timeout")
    assert DEFAULTS.heartbeat_seconds * 3 <= shortest
    assert DEFAULTS.hold_status_seconds < shortest
    assert DEFAULTS.max_timeout_total_seconds < longest
    assert seconds("send_timeout")[0] > DEFAULTS.send_timeout_seconds


def test_only_the_pages_files_are_taken_faster_than_their_reader_reads() -> None:
    """For streams the relay says so itself as well (`X-Accel-Buffering`)."""
    assert (values("proxy_buffering"), values("proxy_cache")) == (["on", "off"], ["page"])
    assert "proxy_buffering on;" in (SHIPPED / "paths.conf").read_text().split("location /static/ {")[1].split("}")[0]


def test_nginx_gives_up_a_connection_to_a_relay_before_the_relay_does() -> None:
    [upstream] = re.findall(r"keepalive_timeout (\d+)s;", (SHIPPED / "pool.conf").read_text())
    assert int(upstream) < KEEP_ALIVE_SECONDS


def test_a_reload_waits_for_the_longest_stream() -> None:
    [shutdown] = seconds("worker_shutdown_timeout")
    assert shutdown > DEFAULTS.max_timeout_total_seconds
    assert shutdown > DEFAULTS.drain_grace_seconds


def test_the_relay_refuses_a_body_before_nginx_would() -> None:
    [most] = values("client_max_body_size")
    assert int(most.removesuffix("m")) * MiB > DEFAULTS.max_body_bytes


def test_another_relay_is_asked_only_where_nothing_was_sent() -> None:
    assert values("proxy_next_upstream") == ["error timeout"]
    assert values("proxy_connect_timeout") == ["2s"]
    servers = values("server")
    assert servers
    assert all("max_fails=0" in server for server in servers)


def test_the_admin_listener_is_named_nowhere() -> None:
    lines = [line.split("#")[0] for path in SHIPPED.glob("*.conf") for line in path.read_text().splitlines()]
    assert not any(str(DEFAULTS.admin_port) in line for line in lines)


def test_no_key_is_committed() -> None:
    assert (SHIPPED / "certs" / ".gitignore").read_text().splitlines()[1:] == ["*", "!.gitignore"]
