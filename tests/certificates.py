"""Certificates of the tests' own authorities, made by openssl: for servers on loopback and for clients."""

import ssl
import subprocess
from functools import cached_property
from pathlib import Path
from typing import Final

KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")


class Authority:
    """An authority of the name `name` in `folder`; what it signs is good for a day."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder: Final = folder
        self._name: Final = name
        self.file: Final = folder / f"{name}.pem"
        self._key = folder / f"{name}.key"
        _openssl("req", "-x509", *KEY, "-nodes", "-keyout", self._key, "-out", self.file, "-subj", f"/CN={name}")

    def issue(self, name: str, *, names: str = "IP:127.0.0.1,DNS:localhost") -> tuple[Path, Path]:
        """A certificate and its key, both in PEM."""
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        request = self._folder / f"{name}.csr"
        extensions = self._folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={names}\n")
        _openssl("req", *KEY, "-nodes", "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        signed_by = ("-CA", self.file, "-CAkey", self._key, "-CAcreateserial")
        _openssl("x509", "-req", "-in", request, *signed_by, "-out", certificate, "-days", "1", "-extfile", extensions)
        return certificate, key

    @cached_property
    def _server(self) -> tuple[Path, Path]:
        return self.issue(f"{self._name}-server")

    def server(self, *, clients_of: "Authority | None" = None) -> ssl.SSLContext:
        """The context of a server on loopback; with `clients_of`, its clients must show a certificate."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*self._server)
        if clients_of is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(clients_of.file)
        return context


def encrypted(key: Path) -> Path:
    """The same key, behind a password."""
    locked = key.with_suffix(".locked")
    _openssl("ec", "-in", key, "-aes256", "-passout", "pass:secret", "-out", locked)
    return locked


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
