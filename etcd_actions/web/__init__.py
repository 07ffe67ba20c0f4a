"""Serves ASGI applications: connections, their limits, and who may connect."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from etcd_actions.web.asgi import (
        Application,
        ClientGone,
        Message,
        Receive,
        Send,
        on_lost,
        take_long_body,
    )
    from etcd_actions.web.bind import Bind
    from etcd_actions.web.http_limits import HttpLimits
    from etcd_actions.web.listener import Listener, ListenerStatistics, open_listener
    from etcd_actions.web.server_tls import ServerTls

__all__ = [
    "Application",
    "Bind",
    "ClientGone",
    "HttpLimits",
    "Listener",
    "ListenerStatistics",
    "Message",
    "Receive",
    "Send",
    "ServerTls",
    "on_lost",
    "open_listener",
    "take_long_body",
]

# Imported when first used: the table of settings needs an address alone.
_HOMES = {
    "Application": "asgi",
    "Bind": "bind",
    "ClientGone": "asgi",
    "HttpLimits": "http_limits",
    "Listener": "listener",
    "ListenerStatistics": "listener",
    "Message": "asgi",
    "Receive": "asgi",
    "Send": "asgi",
    "ServerTls": "server_tls",
    "on_lost": "asgi",
    "open_listener": "listener",
    "take_long_body": "asgi",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
