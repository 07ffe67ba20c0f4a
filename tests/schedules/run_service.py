"""The run service of a schedule: it meets faults, and keeps a log of what landed, in order."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import grpc

from etcd_actions import Phase
from tests.support.run_service_server import Fault, RunServiceServer

_PERMANENT = (3, 11, 12)
_NOT_FOUND = 5


class Landing(NamedTuple):
    """One call that reached the run service. Times are ``time.monotonic``'s seconds.

    Attributes:
        what: ``record`` or ``status``.
        run: Of which action.
        name: Of which action.
        phase: What it was told.
        attempt: Of which attempt.
        arrived: When the call came in.
        landed: When it was applied, or not.
        applied: Whether it was.
        accepted: Whether its answer says so.
        rejected: Whether its answer says that it never will be.
    """

    what: str
    run: str
    name: str
    phase: Phase = Phase.UNSPECIFIED
    attempt: int = 1
    arrived: float = 0.0
    landed: float = 0.0
    applied: bool = True
    accepted: bool = True
    rejected: bool = False

    @property
    def action(self) -> tuple[str, str]:
        """Which action it is about."""
        return self.run, self.name

    def __str__(self) -> str:
        """Short, for messages."""
        answer = "accepted" if self.accepted else "rejected" if self.rejected else "unanswered"
        applied = "" if self.applied else ", not applied"
        return f"{self.phase.name}/{self.attempt}@{self.landed:.3f}({answer}{applied})"


class LoggingRunService(RunServiceServer):
    """As :class:`~tests.support.run_service_server.RunServiceServer`, with a log.

    It gives up a call when the client has gone or its deadline has passed, as Flyte's does.

    Attributes:
        landings: All calls about actions, in the order in which they were decided.
        forgotten: When it lost all its rows, in ``time.monotonic``'s seconds.
    """

    def __init__(self) -> None:
        super().__init__(threads=64)
        self.landings: list[Landing] = []
        self.forgotten: list[float] = []
        self._rows: set[tuple[str, str]] = set()
        self._lost: set[tuple[str, str]] = set()

    def heal(self) -> None:
        """Forget all faults, and let go of what is held."""
        with self._lock:
            self._faults.clear()
            holds, self._holds = self._holds, []
        for hold in holds:
            hold.set()

    def forget(self) -> None:
        """Lose all rows: a status of what had one is NOT_FOUND until it is recorded again."""
        with self._lock:
            self.forgotten.append(time.monotonic())
            self._lost |= self._rows
            self._rows.clear()

    def _serve_scripted(self, what: str, request: Any, context: grpc.ServicerContext) -> int:
        arrived = time.monotonic()
        fault = self._fault(what, "")
        if fault.delay:
            time.sleep(fault.delay)
        if fault.hold is not None:
            fault.hold.wait()
        accepting = fault.code in (0, 6) and fault.rpc is None
        identifier = request.action_id
        action = identifier.run.name, identifier.name
        phase, attempt = Phase.UNSPECIFIED, 1
        if what == "status":
            phase, attempt = Phase(request.status.phase), max(request.status.attempts, 1)
        # Looked at and noted in one piece, so that the log has the order in which they landed.
        with self._lock:
            if what == "status" and action in self._lost:
                # No row is changed, whatever becomes of the answer.
                accepting = False
                fault = Fault(rpc=fault.rpc, code=0 if fault.rpc else _NOT_FOUND)
            applied = (accepting or fault.applied) and context.is_active()
            if applied and what == "record":
                self._lost.discard(action)
                self._rows.add(action)
            self.landings.append(
                Landing(
                    what,
                    identifier.run.name,
                    identifier.name,
                    phase,
                    attempt,
                    arrived,
                    time.monotonic(),
                    applied,
                    accepting and applied,
                    fault.rpc is None and fault.code in _PERMANENT,
                )
            )
        if fault.rpc is not None:
            context.abort(fault.rpc, fault.details)
        return fault.code
