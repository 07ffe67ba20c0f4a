"""Visits to actions that wait: each reads the object, reports QUEUED or PAUSED, and sets alarms."""

from __future__ import annotations

import math

import structlog
import trio

from etcd_actions.actions.status import ActionStatus
from etcd_actions.errors import (
    ActionError,
    DecodeError,
    EtcdError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from etcd_actions.executor.action_run import ActionRun
from etcd_actions.executor.scheduling.failures import DELAYED, PARKED, PATIENCE
from etcd_actions.executor.scheduling.schedule import Due
from etcd_actions.executor.shared import Shared
from etcd_actions.executor.task_templates import invalid_spec
from etcd_actions.model import ActionId, ActionUpdate, Phase
from etcd_actions.model import flyte as conversions
from etcd_actions.model.durations import limit_of

_log = structlog.get_logger(__name__)


class Visits:
    """The visits to actions that wait.

    Args:
        shared: The parts of the executor.
        runs: Computes the limits of actions.
    """

    def __init__(self, shared: Shared, runs: ActionRun) -> None:
        self._shared = shared
        self._runs = runs
        self._send, self._names = trio.open_memory_channel[str](math.inf)

    def add(self, name: str) -> None:
        """Request a visit to an action."""
        self._send.send_nowait(name)

    async def work(self) -> None:
        """Visit the requested actions, each inside a boundary; several tasks may call it."""
        shared = self._shared
        async for name in self._names:
            known = shared.board.get(name)
            if known is None or name in shared.running:
                continue
            with shared.client.containment.unit("action", name, parks=True) as unit:
                if known.is_condition:
                    await self._visit_condition(name, known.update.action_id)
                else:
                    await self._queue(name, known.update)
            if shared.board.get(name) is None:
                # It has ended: no other part unparks it.
                shared.client.containment.forget("action", name)
            elif unit.failed:
                self._alarm(name, shared.failures.again(name, PARKED))

    async def serve_condition(self, action_id: ActionId) -> None:
        """Report that a condition waits, or that its object is invalid.

        The leader ends the wait after its timeout.

        Raises:
            ActionError: It was signalled, aborted or deleted.
            DecodeError: The object cannot be read.
            EtcdError: etcd cannot be read or written.
        """
        action = await self._shared.client.get_task_action(action_id)
        if action.is_terminal:
            self._shared.note(action)
            return
        phase, error = Phase.PAUSED, None
        try:
            condition = conversions.condition_action(action)
            if condition is not None:
                limit_of(condition.timeout, "spec.conditionSpec.timeout")
        except (DecodeError, InvalidArgument) as invalid:
            phase, error = Phase.FAILED, invalid_spec(invalid)
        if action.phase is not phase:
            attempt = max(action.status.attempts, 1)
            await self._shared.reports.report(action, attempt, phase, None, error)

    async def _queue(self, name: str, update: ActionUpdate) -> None:
        """Report that an action waits for a slot, and set the alarm of its limit."""
        shared = self._shared
        try:
            action = await shared.client.get_task_action(update.action_id)
            if action.phase is Phase.UNSPECIFIED:
                action = await shared.client.put_status(
                    update.action_id,
                    max(action.status.attempts, 1),
                    ActionStatus(Phase.QUEUED),
                    seen=action,
                )
            shared.note(action)
            ends = self._runs.limits(action, name).waiting_ends()
            if not await self._runs.needs_slot(action, name):
                ends = shared.clock.monotonic()
        except (InvalidArgument, DecodeError) as error:
            # It fails without a slot.
            _log.debug("not_queued", action=name, reason=str(error))
            ends = shared.clock.monotonic()
        except ActionError as error:
            # It is terminal: its start detects that.
            _log.debug("not_queued", action=name, reason=str(error))
            return
        except EtcdError as error:
            _log.debug("not_queued", action=name, reason=str(error))
            self._alarm(name, shared.failures.again(name, DELAYED))
            return
        if name not in shared.running and shared.board.get(name) is not None:
            shared.failures.drop(name)
            shared.schedule.at(Due.EXPIRED, name, ends)
            shared.wake()

    async def _visit_condition(self, name: str, action_id: ActionId) -> None:
        failures = self._shared.failures
        try:
            await self.serve_condition(action_id)
        except (NotFound, FailedPrecondition) as error:
            # It was signalled, aborted or deleted: the update will follow.
            _log.debug("condition_left", action=name, reason=str(error))
            if failures.count(name) >= PATIENCE:
                raise
            self._alarm(name, failures.again(name, DELAYED))
        except EtcdError as error:
            _log.debug("condition_delayed", action=name, error=str(error))
            self._alarm(name, failures.again(name, DELAYED))
        else:
            failures.drop(name)
            self._alarm(name, None)

    def _alarm(self, name: str, when: float | None) -> None:
        if self._shared.board.get(name) is not None:
            self._shared.schedule.at(Due.VISIT, name, when)
            self._shared.wake()
