"""The parts of an executor that its other parts share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from etcd_actions._internal.clock import Clock
from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.client import ActionsClient
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from etcd_actions.executor.executor_settings import ExecutorSettings
from etcd_actions.executor.reports import Reports
from etcd_actions.executor.scheduling.ages import Ages
from etcd_actions.executor.scheduling.board import Board
from etcd_actions.executor.scheduling.capacity import Capacity
from etcd_actions.executor.scheduling.failures import Failures
from etcd_actions.executor.scheduling.schedule import Schedule


@dataclass(eq=False)
class RunningAction:
    """One action that runs.

    Attributes:
        name: The executor's name of the action, ``<namespace>/<name>``.
        failures: The number of its failures in a row.
        has_slot: Whether it has a slot. Without one no process is started.
        scope: Cancelled when the executor has lost its claims.
        ended: Set when an update reports that the action is terminal or deleted.
        place: The directory of its present attempt; None before its start.
        elsewhere: Whether another executor has it.
        not_before: The time before which it is not retried, on the executor's clock; None for none.
    """

    name: str
    failures: int
    has_slot: bool
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)
    place: AttemptDirectory | None = None
    elsewhere: bool = False
    not_before: float | None = None


@dataclass(frozen=True)
class Shared:
    """The parts of an executor that its other parts share.

    Attributes:
        client: Reads and writes actions; it has the boundaries.
        settings: The executor's.
        clock: The clock of all times.
        board: The actions that are not terminal.
        schedule: The actions that wait.
        failures: The failures of actions.
        ages: The ages of actions.
        capacity: The free slots.
        reports: Reports phases.
        note: Called with each action that was read or written.
        wake: Called when the schedule has changed.
        running: The actions that run, by name.
    """

    client: ActionsClient
    settings: ExecutorSettings
    clock: Clock
    board: Board
    schedule: Schedule
    failures: Failures
    ages: Ages
    capacity: Capacity
    reports: Reports
    note: Callable[[StoredAction], None]
    wake: Callable[[], None]
    running: dict[str, RunningAction] = field(default_factory=dict)

    def forget_failures(self, name: str) -> None:
        """Forget the failures of an action that runs, or is terminal, and unpark it."""
        self.failures.drop(name)
        self.client.containment.forget("action", name)
