"""Serves ASGI applications over HTTP: connections, their limits, and the allowed clients."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from etcd_actions.web.answering import ListenerStatistics
    from etcd_actions.web.asgi import (
        Application,
        ClientDisconnected,
        Message,
        Receive,
        Send,
        on_disconnect,
        respond,
        take_endless_body,
        take_long_body,
    )
    from etcd_actions.web.bind import Bind
    from etcd_actions.web.http_limits import HttpLimits
    from etcd_actions.web.listener import Listener, open_listener
    from etcd_actions.web.server_tls import ServerTls

__all__ = [
    "Application",
    "Bind",
    "ClientDisconnected",
    "HttpLimits",
    "Listener",
    "ListenerStatistics",
    "Message",
    "Receive",
    "Send",
    "ServerTls",
    "on_disconnect",
    "open_listener",
    "respond",
    "take_endless_body",
    "take_long_body",
]

# Imported on first use: the table of settings needs only an address.
_MODULES = {
    "Bind": "bind",
    "HttpLimits": "http_limits",
    "Listener": "listener",
    "ListenerStatistics": "answering",
    "ServerTls": "server_tls",
    "open_listener": "listener",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES.get(name, 'asgi')}"), name)
    globals()[name] = value
    return value
