"""The addresses of etcd's members, in the form of etcdctl."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv6Address
from typing import NamedTuple
from urllib.parse import urlsplit

from etcd_actions._internal.quoting import quoted
from etcd_actions.errors import ConfigError

DEFAULT_PORT = 2379

_HOST_PORT = re.compile(r"(?:\[[^\[\]]+\]|[^\[\]:]+)(?::[0-9]*)?")
_ENCRYPTED = {"": None, "http": False, "https": True}


class Endpoint(NamedTuple):
    """The address of a member for clients.

    ``encrypted`` is True for https and False for http; without a scheme it is None, and the
    settings decide.
    """

    host: str
    port: int
    encrypted: bool | None = None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_endpoints(texts: str | Iterable[str]) -> tuple[Endpoint, ...]:
    """Parse ``host:port``, ``http://host:port`` or ``https://host:port``; several by commas.

    Raises:
        ConfigError: There is no endpoint, or one is unusable; the message names it.
    """
    given = [texts] if isinstance(texts, str) else texts
    parts = [part.strip() for text in given for part in text.split(",")]
    endpoints = tuple(dict.fromkeys(_parse_endpoint(part) for part in parts if part))
    if not endpoints:
        raise ConfigError("no etcd endpoint given: use host:port, such as 127.0.0.1:2379")
    return endpoints


def check_host(host: str) -> None:
    """Check that a text can be a host's name or address. No name is resolved.

    Raises:
        ValueError: It cannot; the message completes a sentence.
    """
    if ":" in host:
        address, _, zone = host.partition("%")
        try:
            IPv6Address(address)
        except ValueError:
            raise ValueError(f"{quoted(host)} is not an IPv6 address") from None
        if not zone.isprintable() or " " in zone:
            raise ValueError(f"{quoted(host)} is not an IPv6 address")
        return
    try:
        ascii_name = host.encode("idna").decode("ascii")
    except UnicodeError:
        raise ValueError(f"{quoted(host)} is not a valid name of a host") from None
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,253}", ascii_name):
        raise ValueError(f"{quoted(host)} is not a valid name of a host")


def _parse_endpoint(text: str) -> Endpoint:
    # urlsplit drops these characters silently.
    if any(char <= " " or char == "\x7f" for char in text):
        raise ConfigError(f"endpoint {quoted(text)}: there is a space or a control character in it")
    if text.startswith("unix:"):
        raise ConfigError(
            f"endpoint {quoted(text)} is a unix socket, which is not supported: have etcd listen "
            "on an address of this machine, too, and give host:port, such as 127.0.0.1:2379"
        )
    try:
        split = urlsplit(text if "://" in text else f"//{text}")
    except ValueError as error:
        raise ConfigError(f"endpoint {quoted(text)}: {error}") from None
    try:
        port = DEFAULT_PORT if split.port is None else split.port
    except ValueError:
        raise ConfigError(
            f"endpoint {quoted(text)}: the port is not a number from 1 to 65535"
        ) from None
    if split.username is not None or split.password is not None:
        raise ConfigError(
            "an endpoint has a user or password in it: give host:port, and the user with "
            "--user or ETCDCTL_USER"
        )
    if split.scheme not in _ENCRYPTED:
        raise ConfigError(
            f"endpoint {quoted(text)}: scheme {quoted(split.scheme)} is not supported, "
            "use host:port, http://host:port or https://host:port"
        )
    complete = _HOST_PORT.fullmatch(split.netloc) and not (split.query or split.fragment)
    if not split.hostname or not complete or port == 0 or split.path not in ("", "/"):
        raise ConfigError(f"endpoint {quoted(text)} is not of the form host:port")
    try:
        check_host(split.hostname)
    except ValueError as error:
        raise ConfigError(f"endpoint {quoted(text)}: {error}") from None
    return Endpoint(split.hostname, port, _ENCRYPTED[split.scheme])
