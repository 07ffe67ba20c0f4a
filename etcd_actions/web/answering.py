"""The application of a listener with its limits, its boundary and its statistics."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from email.utils import formatdate

import structlog

from etcd_actions._internal.containment import Containment
from etcd_actions.web.asgi import Application
from etcd_actions.web.hosts import Hosts
from etcd_actions.web.http_limits import HttpLimits
from etcd_actions.web.log_limits import LogLimits

_log = structlog.get_logger(__name__)


@dataclass(kw_only=True)
class ListenerStatistics:
    """The statistics of a listener.

    Attributes:
        open_connections: Number of open connections.
        busy_connections: Number of those that have a request.
        accepted: Number of connections that were admitted.
        refused: Number of connections that were refused, by reason: ``total`` and ``address`` (the
            most allowed are open), ``descriptors`` (the process has too few left), ``user``
            (it belongs to another user of this machine).
        closed: Number of connections that the listener closed, by reason: ``replaced`` (by
            a new one), ``header_timeout``, ``idle``, ``stalled``, ``handshake``.
        refused_requests: Number of requests that were refused by their ``host`` or ``origin``.
        protocol_errors: Number of clients that left during a request, or sent invalid HTTP.
    """

    open_connections: int = 0
    busy_connections: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    closed: Counter[str] = field(default_factory=Counter)
    refused_requests: Counter[str] = field(default_factory=Counter)
    protocol_errors: int = 0


@dataclass
class Answering:
    """The application of a listener, with the parts that its connections need to call it.

    Attributes:
        application: The ASGI application.
        hosts: The host names that a request may have; None for any.
        limits: The limits of clients.
        containment: Counts failed requests and connections.
        counts: The counts of the listener.
        log_limits: Limits the log lines that clients cause.
    """

    application: Application
    hosts: Hosts | None
    limits: HttpLimits
    containment: Containment
    counts: ListenerStatistics
    log_limits: LogLimits
    _date: tuple[int, tuple[bytes, bytes]] = field(default=(0, (b"date", b"")), init=False)

    @property
    def date(self) -> tuple[bytes, bytes]:
        """The header ``date``."""
        now = int(time.time())
        if self._date[0] != now:
            self._date = now, (b"date", formatdate(now, usegmt=True).encode("ascii"))
        return self._date[1]

    def protocol_error(self, error: BaseException) -> None:
        """Count a client that left during a request, or sent invalid HTTP."""
        self.counts.protocol_errors += 1
        _log.debug("client_left", error=f"{type(error).__name__}: {error}")
