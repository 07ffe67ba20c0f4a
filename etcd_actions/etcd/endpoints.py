"""Where etcd listens: the endpoints as etcdctl users write them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

from etcd_actions.errors import ConfigError

DEFAULT_PORT = 2379

_ENCRYPTED = {"": None, "http": False, "https": True}


class Endpoint(NamedTuple):
    """One member's client address.

    ``encrypted`` is what its scheme says; None, without a scheme, leaves it to the settings.
    """

    host: str
    port: int
    encrypted: bool | None = None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_endpoints(texts: str | Iterable[str]) -> tuple[Endpoint, ...]:
    """Read ``host:port``, ``http://host:port`` or ``https://host:port``, several by commas.

    Raises :class:`~etcd_actions.errors.ConfigError` that names the endpoint at fault.
    """
    given = [texts] if isinstance(texts, str) else texts
    parts = [part.strip() for text in given for part in text.split(",")]
    endpoints = tuple(dict.fromkeys(_parse_endpoint(part) for part in parts if part))
    if not endpoints:
        raise ConfigError("no etcd endpoint given: use host:port, such as 127.0.0.1:2379")
    return endpoints


def _parse_endpoint(text: str) -> Endpoint:
    try:
        split = urlsplit(text if "://" in text else f"//{text}")
        port = DEFAULT_PORT if split.port is None else split.port
    except ValueError as error:
        raise ConfigError(f"endpoint {text!r}: {error}") from None
    if split.username is not None or split.password is not None:
        raise ConfigError(
            "an endpoint has a user or password in it: give host:port, and the user with "
            "--user or ETCDCTL_USER"
        )
    if split.scheme not in _ENCRYPTED:
        raise ConfigError(
            f"endpoint {text!r}: scheme {split.scheme!r} is not supported, "
            "use host:port, http://host:port or https://host:port"
        )
    if not split.hostname or port == 0 or split.path not in ("", "/"):
        raise ConfigError(f"endpoint {text!r} is not of the form host:port")
    return Endpoint(split.hostname, port, _ENCRYPTED[split.scheme])
