"""Conditions: said to wait, and ended when they have waited too long."""

from __future__ import annotations

from collections.abc import Callable

from etcd_actions.actions.stored import StoredTaskAction
from etcd_actions.client import ActionsClient
from etcd_actions.errors import DecodeError, InvalidArgument
from etcd_actions.executor.action_run import invalid_spec
from etcd_actions.executor.ages import Ages
from etcd_actions.executor.clock import Clock
from etcd_actions.executor.durations import limit_of
from etcd_actions.executor.reports import Reports
from etcd_actions.model import ActionId, ErrorState, Phase
from etcd_actions.model import flyte as conversions

_TOO_LONG = ErrorState(code="ConditionTimedOut", kind="USER", message="nobody signalled it in time")


class Conditions:
    """Serves the conditions of one executor.

    Args:
        client: How they are read.
        reports: How they are reported on.
        note: Called with a condition that is over.
        clock: What time-outs are counted on.
        ages: When they began to count.
    """

    def __init__(
        self,
        client: ActionsClient,
        reports: Reports,
        note: Callable[[StoredTaskAction], None],
        clock: Clock,
        ages: Ages,
    ) -> None:
        self._client = client
        self._reports = reports
        self._note = note
        self._clock = clock
        self._ages = ages

    async def serve(self, name: str, action_id: ActionId) -> float | None:
        """Say that a condition waits, or that it has waited too long.

        Returns:
            When it is to be looked at again; None for never.

        Raises:
            ActionError: It was signalled, aborted or deleted meanwhile.
            DecodeError: The object cannot be read.
            EtcdError: etcd cannot be asked.
        """
        action = await self._client.get_task_action(action_id)
        if action.is_terminal:
            self._note(action)
            return None
        try:
            condition = conversions.condition_action(action)
            timeout = (
                None
                if condition is None
                else limit_of(condition.timeout, "spec.conditionSpec.timeout")
            )
        except (DecodeError, InvalidArgument) as error:
            await self._report(action, Phase.FAILED, invalid_spec(error))
            return None
        if action.phase is not Phase.PAUSED:
            action = await self._report(action, Phase.PAUSED)
        if timeout is None:
            return None
        ends = self._ages.created(name) + timeout
        if self._clock.monotonic() < ends:
            return ends
        await self._report(action, Phase.TIMED_OUT, _TOO_LONG)
        return None

    async def _report(
        self, action: StoredTaskAction, phase: Phase, error: ErrorState | None = None
    ) -> StoredTaskAction:
        attempt = max(action.status.attempts, 1)
        return await self._reports.report(action, attempt, phase, None, error)
