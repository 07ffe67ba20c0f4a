"""Two run services that get the same reports."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from etcd_actions.errors import RunServiceActionUnknown, RunServiceError, RunServiceRejected
from etcd_actions.model import ActionObject, ActionUpdate, Phase
from etcd_actions.run_service.protocol import MarkCompanions, RunService


class BothRunServices(RunService):
    """Reports to one run service, then to another. Neither waits for what the other accepts.

    A call fails where one of the two did: what may be accepted later counts before what never
    will, so that the call is repeated. The other one may get the report twice then.

    Args:
        first: Gets each report first.
        second: Gets those that it accepts.
    """

    def __init__(self, first: RunService, second: RunService) -> None:
        self._first = first
        self._second = second

    def accepts(self, phase: Phase, deleted: bool) -> bool:
        """Whether one of them does."""
        return self._first.accepts(phase, deleted) or self._second.accepts(phase, deleted)

    async def record_action(self, update: ActionUpdate, action: ActionObject | None) -> None:
        """Make the action known to both.

        Raises:
            RunServiceUnavailable: One of them may accept it later.
            RunServiceRejected: One of them never will.
        """
        await self._report(lambda service: service.record_action(update, action), update)

    async def update_action_status(self, update: ActionUpdate) -> None:
        """See :meth:`update_action_state`."""
        await self.update_action_state(update, None)

    async def update_action_state(self, update: ActionUpdate, action: ActionObject | None) -> None:
        """Report a state to both.

        Raises:
            RunServiceActionUnknown: One of them has no record of the action.
            RunServiceUnavailable: One of them may accept it later.
            RunServiceRejected: One of them never will.
        """
        await self._report(lambda service: service.update_action_state(update, action), update)

    def unsettled_until(self, key: bytes) -> float:
        """Until when an earlier call to one of them may still be applied, in trio's time."""
        return max(each.unsettled_until(key) for each in (self._first, self._second))

    def mark_companions(
        self, update: ActionUpdate, action: ActionObject | None
    ) -> MarkCompanions | None:
        """What the first one stores in the transaction of the mark; the second one is reported to.

        None if the first one has no such form.
        """
        companions = self._first.mark_companions(update, action)
        if companions is None or not self._second.accepts(update.phase, update.is_deleted):
            return companions
        return replace(companions, others=self._second)

    async def _report(
        self, call: Callable[[RunService], Awaitable[None]], update: ActionUpdate
    ) -> None:
        errors: list[RunServiceError] = []
        for service in (self._first, self._second):
            if not service.accepts(update.phase, update.is_deleted):
                continue
            try:
                await call(service)
            except RunServiceError as error:
                errors.append(error)
        if errors:
            raise min(errors, key=_precedence)


def _precedence(error: RunServiceError) -> int:
    if isinstance(error, RunServiceActionUnknown):
        # The outbox reports its record before the next try.
        return 0
    return 2 if isinstance(error, RunServiceRejected) else 1
