"""The client of etcd: keys, values and revisions, whatever the values mean.

Other packages use the values and protocols of :mod:`~etcd_actions.etcd.api`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from etcd_actions.etcd.connection_settings import ConnectionSettings, Tls, TransportName, User

if TYPE_CHECKING:
    from etcd_actions.etcd.api import Etcd
    from etcd_actions.etcd.client import EtcdClient
    from etcd_actions.etcd.connecting import open_connection, open_etcd

__all__ = [
    "ConnectionSettings",
    "Etcd",
    "EtcdClient",
    "Tls",
    "TransportName",
    "User",
    "open_connection",
    "open_etcd",
]

# Imported on first use, because they import trio: the command line reads settings before that.
_HOMES = {
    "Etcd": "api",
    "EtcdClient": "client",
    "open_connection": "connecting",
    "open_etcd": "connecting",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
