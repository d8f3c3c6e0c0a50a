"""The way to an upstream: by which proxy, whose certificates are trusted, and by which we are known.

A proxy that an upstream names is always used. Else HTTPS_PROXY and HTTP_PROXY hold, by the scheme of its base URL,
unless NO_PROXY names its host (as curl and Python read it: suffixes, with a port or without, or `*`). Loopback is never
reached by the proxy of the environment: that would be another machine's loopback.

A proxy with an https:// URL is trusted by the system's certificates and shown none of ours: `ca_file` and the client's
certificate are the upstream's.
"""

import ssl
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # of the pure part, not in typeshed

import msgspec

from app.settings import Settings, SettingsError
from app.settings.tables import UpstreamTable

PORTS: Final = {"http": 80, "https": 443}


class Egress(msgspec.Struct, frozen=True):
    """`proxy` may hold its user and password. `tls` is None for the system's trust and no certificate of ours."""

    proxy: str | None = None
    tls: ssl.SSLContext | None = None

    def __repr__(self) -> str:
        return "<Egress>"


def of_environment(settings: Settings) -> Egress:
    """The way to the upstream of OPENAI_*. Raises SettingsError."""
    return Egress(_proxy_of_environment(_parts(settings.openai_base_url, "OPENAI_BASE_URL"), settings))


def of_table(name: str, table: UpstreamTable, settings: Settings) -> Egress:
    """The way to `[upstreams.NAME]`. Raises SettingsError, with its place, for a file that is no good."""
    where = f"upstreams.{name}"
    target = _parts(table.base_url, f"{where}.base_url")
    if table.proxy is None:
        proxy = _proxy_of_environment(target, settings)
    else:
        proxy = table.proxy
        _parts(proxy, f"{where}.proxy")
    return Egress(proxy, _tls(where, table, target))


def proxy_to(url: str, settings: Settings) -> str | None:
    """The environment's proxy to a URL that is no upstream's. Raises SettingsError."""
    return _proxy_of_environment(_parts(url, url), settings)


def _proxy_of_environment(target: SplitResult, settings: Settings) -> str | None:
    variable, proxy = "HTTP_PROXY", settings.http_proxy
    if target.scheme == "https":
        variable, proxy = "HTTPS_PROXY", settings.https_proxy
    if proxy is None or _is_loopback(target.hostname or "") or _is_excepted(target, settings.no_proxy):
        return None
    _parts(proxy, variable)
    return proxy


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _is_excepted(target: SplitResult, no_proxy: str) -> bool:
    host = target.hostname or ""
    port = target.port or PORTS[target.scheme]
    # An IPv6 address stands in a URL in brackets, and in NO_PROXY mostly without.
    ways = (host, f"[{host}]:{port}") if ":" in host else (f"{host}:{port}",)
    return any(proxy_bypass_environment(way, {"no": no_proxy.strip()}) for way in ways)


def _parts(url: str, where: str) -> SplitResult:
    """Without the URL in its words: it may hold a password."""
    try:
        parts = urlsplit(url)
        if parts.hostname and (parts.port is None or parts.port > 0):
            return parts
    except ValueError:
        pass  # a port that is no number, or brackets without an address
    raise SettingsError([f"{where}: the URL has no host, or a port that is none"])


def _tls(where: str, table: UpstreamTable, target: SplitResult) -> ssl.SSLContext | None:
    files = (table.ca_file, table.client_certificate_file)
    if files == (None, None):
        return None
    if target.scheme != "https":
        field = "ca_file" if table.ca_file else "client_certificate_file"
        raise SettingsError([f"{where}.{field}: the base_url is http://, where there are no certificates"])
    if problems := list(_unreadable(where, table)):
        raise SettingsError(problems)
    return _context(where, table)


def _unreadable(where: str, table: UpstreamTable) -> Iterator[str]:
    for field in ("ca_file", "client_certificate_file", "client_key_file"):
        file: Path | None = getattr(table, field)
        try:
            if file is not None:
                file.read_bytes()
        except OSError as error:
            yield f"{where}.{field}: {file} cannot be read ({type(error).__name__})"


def _context(where: str, table: UpstreamTable) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=table.ca_file)
    except ssl.SSLError:
        raise SettingsError([f"{where}.ca_file: {table.ca_file} holds no certificate in PEM"]) from None
    context.set_alpn_protocols(["http/1.1"])
    if (certificate := table.client_certificate_file) is not None:
        try:
            # With a password, if only an empty one, OpenSSL does not ask for one on the terminal and wait.
            context.load_cert_chain(certificate, table.client_key_file, password="")
        except ssl.SSLError:
            words = f"{certificate} and its key are no pair in PEM, or the key is encrypted"
            raise SettingsError([f"{where}.client_certificate_file: {words}"]) from None
    return context
