"""Serves ASGI applications: connections, their limits, and who may connect."""

from etcd_actions.serving.asgi import (
    Application,
    ClientGone,
    Message,
    Receive,
    Send,
    on_lost,
    take_long_body,
)
from etcd_actions.serving.bind import Bind
from etcd_actions.serving.limits import HttpLimits
from etcd_actions.serving.listener import Listener, ListenerStatistics, open_listener
from etcd_actions.serving.tls import ServerTls

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
