"""Limits the log lines that clients can cause."""

from __future__ import annotations

import structlog
import trio

_EVERY = 60.0
"""Seconds between two lines of the same event and reason."""

_log = structlog.get_logger(__name__)


class LogLimits:
    """Logs the first event of each kind, then one a minute with the number of omitted ones."""

    def __init__(self, flag: str) -> None:
        self._flag = flag
        self._kinds: dict[tuple[str, str], tuple[float, int]] = {}

    def report(self, event: str, reason: str, **details: object) -> None:
        """Log a warning, unless the same event and reason was logged within a minute."""
        now = trio.current_time()
        at, omitted = self._kinds.get((event, reason), (float("-inf"), 0))
        if now - at < _EVERY:
            self._kinds[event, reason] = (at, omitted + 1)
            return
        self._kinds[event, reason] = (now, 0)
        _log.warning(event, listener=self._flag, reason=reason, omitted=omitted, **details)
