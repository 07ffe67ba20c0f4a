"""What answers the requests of a listener, and what became of them."""

from __future__ import annotations

import time
from collections import Counter
from email.utils import formatdate

import structlog

from etcd_actions._internal.containment import Containment
from etcd_actions.web.asgi import Application
from etcd_actions.web.floods import Floods
from etcd_actions.web.hosts import Hosts
from etcd_actions.web.http_limits import HttpLimits

_log = structlog.get_logger(__name__)


class Counts:
    """What became of a listener's connections and requests.

    Attributes:
        accepted: Number of connections that were let in.
        refused: Number of those that were not, by reason.
        closed: Number of those that were closed from here, by reason.
        refused_requests: Number of requests that were refused before the application.
        protocol_errors: How often a client left, or broke the protocol, in the middle.
    """

    def __init__(self) -> None:
        self.accepted = 0
        self.refused: Counter[str] = Counter()
        self.closed: Counter[str] = Counter()
        self.refused_requests: Counter[str] = Counter()
        self.protocol_errors = 0


class Answering:
    """What answers the requests of a listener.

    Attributes:
        application: Who answers.
        hosts: The names that a request may be for; None for any.
    """

    def __init__(
        self,
        application: Application,
        hosts: Hosts | None,
        limits: HttpLimits,
        containment: Containment,
        counts: Counts,
        floods: Floods,
    ) -> None:
        self.application = application
        self.hosts = hosts
        self.limits = limits
        self.containment = containment
        self.counts = counts
        self.floods = floods
        self._date = (0, (b"date", b""))

    @property
    def date(self) -> tuple[bytes, bytes]:
        """The header that says when an answer was made."""
        now = int(time.time())
        if self._date[0] != now:
            self._date = now, (b"date", formatdate(now, usegmt=True).encode("ascii"))
        return self._date[1]

    def protocol_error(self, error: BaseException) -> None:
        """Count that a client left in the middle, or sent what is no HTTP."""
        self.counts.protocol_errors += 1
        _log.debug("client_left", error=f"{type(error).__name__}: {error}")
