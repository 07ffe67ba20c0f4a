"""Where etcd listens: the endpoints as etcdctl users write them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

from etcd_actions.errors import ConfigError

DEFAULT_PORT = 2379


class Endpoint(NamedTuple):
    """One member's client address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_endpoints(texts: str | Iterable[str]) -> tuple[Endpoint, ...]:
    """Read ``host:port`` or ``http://host:port``, several separated by commas.

    Raises :class:`~etcd_actions.errors.ConfigError` that names the endpoint at fault.
    """
    given = [texts] if isinstance(texts, str) else texts
    parts = [part.strip() for text in given for part in text.split(",")]
    endpoints = tuple(dict.fromkeys(_parse_endpoint(part) for part in parts if part))
    if not endpoints:
        raise ConfigError("no etcd endpoint given: use host:port, such as 127.0.0.1:2379")
    return endpoints


def _parse_endpoint(text: str) -> Endpoint:
    split = urlsplit(text if "://" in text else f"//{text}")
    if split.scheme not in ("", "http"):
        raise ConfigError(
            f"endpoint {text!r}: scheme {split.scheme!r} is not supported, "
            "use host:port or http://host:port"
        )
    try:
        port = DEFAULT_PORT if split.port is None else split.port
    except ValueError as error:
        raise ConfigError(f"endpoint {text!r}: {error}") from None
    if not split.hostname or port == 0 or split.path not in ("", "/") or split.username:
        raise ConfigError(f"endpoint {text!r} is not of the form host:port")
    return Endpoint(split.hostname, port)
