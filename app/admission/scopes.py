"""Under which name a caller's use is counted."""

import hashlib
import re
from ipaddress import IPv6Address, ip_address
from typing import Final

_PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@|+-]{0,63}", re.ASCII)
HOST_BITS: Final = 64
"""Of an IPv6 address these are its owner's to choose (RFC 7421)."""


def of_subject(credential: str, subject: str) -> str:
    """`key:web/user-1`. Long and odd subjects are hashed: the scope is part of a key in Redis."""
    if not _PLAIN.fullmatch(subject):
        subject = f"#{hashlib.sha256(subject.encode()).hexdigest()[:32]}"
    return f"{credential}/{subject}"


def of_address(host: str | None) -> str:
    """`ip:192.0.2.1`, `ip:2001:db8::/64`. `ip:-` are those without an address, as on a Unix socket."""
    try:
        address = ip_address(host or "")
    except ValueError:
        return "ip:-"
    if not isinstance(address, IPv6Address):
        return f"ip:{address}"
    if address.ipv4_mapped is not None:
        return f"ip:{address.ipv4_mapped}"
    network = int(address) >> HOST_BITS << HOST_BITS
    return f"ip:{IPv6Address(network)}/{128 - HOST_BITS}"
