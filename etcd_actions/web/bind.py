"""The address of a listener."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple


class Bind(NamedTuple):
    """An address to listen on; port 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return self.host.lower() == "localhost" or is_loopback_address(self.host)


def is_loopback_address(text: str) -> bool:
    """Whether a text is a loopback address; a name is none."""
    address = plain_address(text)
    return address is not None and address.is_loopback


def plain_address(text: str) -> IPv4Address | IPv6Address | None:
    """The address in a text, of a mapped IPv4 address the IPv4 one; None for a name."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
