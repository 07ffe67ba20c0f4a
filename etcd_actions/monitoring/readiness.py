"""The answer of ``/readyz``, as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from etcd_actions._internal.quoting import printable
from etcd_actions.monitoring.health import Check


class Readiness:
    """Whether a process is ready, by its checks.

    Attributes:
        ready: Whether all vital checks pass.
        status: ``ready``, ``degraded`` if only other checks fail, or ``not ready``.
    """

    def __init__(self, checks: Sequence[Check]) -> None:
        self._checks = checks
        self.ready = all(check.ok for check in checks if check.is_vital)
        fit = "ready" if all(check.ok for check in checks) else "degraded"
        self.status = fit if self.ready else "not ready"

    def text(self, *, verbose: bool) -> bytes:
        """The status, and a line for each failed check; if ``verbose``, for each check."""
        lines = [self.status]
        for check in self._checks:
            if verbose or not check.ok:
                mark = "+" if check.ok else "-" if check.is_vital else "!"
                lines.append(f"[{mark}] {check.name}: {printable(check.reason or 'ok')}")
        return "\n".join([*lines, ""]).encode()

    def json(self) -> bytes:
        """An object with ``ready``, ``status``, and ``checks``: the reason of each, or ``ok``."""
        checks = {check.name: check.reason or "ok" for check in self._checks}
        report = {"ready": self.ready, "status": self.status, "checks": checks}
        return json.dumps(report).encode() + b"\n"
