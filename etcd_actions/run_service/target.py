"""The address of Flyte's run service, as users write it."""

from __future__ import annotations

from urllib.parse import urlsplit

from etcd_actions.errors import ConfigError
from etcd_actions.etcd.endpoints import Endpoint, check_host

_ENCRYPTED = {"": None, "http": False, "https": True}
_PORTS = {"http": 80, "https": 443}


def parse_target(text: str) -> Endpoint:
    """Parse ``host:port``, ``http://host:port`` or ``https://host:port``.

    With a scheme the port may be omitted.

    Raises:
        ConfigError: It has another form.
    """
    form = "use host:port, http://host:port or https://host:port"
    try:
        split = urlsplit(text if "://" in text else f"//{text}")
        port = split.port
    except ValueError as error:
        raise ConfigError(f"run service {text!r}: {error}: {form}") from None
    if split.username is not None or split.password is not None:
        raise ConfigError(f"run service: its address has a user or password in it: {form}")
    if split.scheme not in _ENCRYPTED:
        raise ConfigError(f"run service {text!r}: scheme {split.scheme!r} is not supported: {form}")
    if port is None:
        port = _PORTS.get(split.scheme)
    if not split.hostname or not port or split.path not in ("", "/") or split.query:
        raise ConfigError(f"run service {text!r}: {form}")
    try:
        check_host(split.hostname)
    except ValueError as error:
        raise ConfigError(f"run service {text!r}: {error}: {form}") from None
    return Endpoint(split.hostname, port, _ENCRYPTED[split.scheme])
