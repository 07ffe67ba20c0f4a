"""Conditions: said to wait. That one has waited too long is told by the leader."""

from __future__ import annotations

from collections.abc import Callable

from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.client import ActionsClient
from etcd_actions.errors import DecodeError, InvalidArgument
from etcd_actions.executor.action_run import invalid_spec
from etcd_actions.executor.reports import Reports
from etcd_actions.model import ActionId, ErrorState, Phase
from etcd_actions.model import flyte as conversions
from etcd_actions.model.durations import limit_of


class Conditions:
    """Serves the conditions of one executor.

    Args:
        client: How they are read.
        reports: How they are reported on.
        note: Called with a condition that is over.
    """

    def __init__(
        self,
        client: ActionsClient,
        reports: Reports,
        note: Callable[[StoredAction], None],
    ) -> None:
        self._client = client
        self._reports = reports
        self._note = note

    async def serve(self, action_id: ActionId) -> None:
        """Say that a condition waits, or that nobody can say for what or how long.

        Raises:
            ActionError: It was signalled, aborted or deleted meanwhile.
            DecodeError: The object cannot be read.
            EtcdError: etcd cannot be asked.
        """
        action = await self._client.get_task_action(action_id)
        if action.is_terminal:
            self._note(action)
            return
        try:
            condition = conversions.condition_action(action)
            if condition is not None:
                limit_of(condition.timeout, "spec.conditionSpec.timeout")
        except (DecodeError, InvalidArgument) as error:
            await self._report(action, Phase.FAILED, invalid_spec(error))
            return
        if action.phase is not Phase.PAUSED:
            await self._report(action, Phase.PAUSED)

    async def _report(
        self, action: StoredAction, phase: Phase, error: ErrorState | None = None
    ) -> StoredAction:
        attempt = max(action.status.attempts, 1)
        return await self._reports.report(action, attempt, phase, None, error)
