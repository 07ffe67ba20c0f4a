"""Reports to two run services."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from etcd_actions.errors import RunServiceActionUnknown, RunServiceError, RunServiceRejected
from etcd_actions.model import ActionObject, ActionUpdate, Phase
from etcd_actions.run_service.protocol import MarkCompanions, RunService


class BothRunServices(RunService):
    """Reports to one run service, then to another, also if the first one fails.

    A call fails if one of the two fails. An error after which the call is repeated has precedence
    over a rejection. After a repeated call the other one may have got the report twice.

    Args:
        first: Receives each report first.
        second: Receives the reports that it accepts.
    """

    def __init__(self, first: RunService, second: RunService) -> None:
        self._first = first
        self._second = second

    def accepts(self, phase: Phase, deleted: bool) -> bool:
        """Whether one of the two accepts it."""
        return self._first.accepts(phase, deleted) or self._second.accepts(phase, deleted)

    async def record_action(self, update: ActionUpdate, action: ActionObject | None) -> None:
        """Report the record of an action to both.

        Raises:
            RunServiceUnavailable: One of the two may accept a later call.
            RunServiceRejected: One of the two rejected it for good.
        """
        await self._report(lambda service: service.record_action(update, action), update)

    async def update_action_status(self, update: ActionUpdate) -> None:
        """See :meth:`update_action_state`."""
        await self.update_action_state(update, None)

    async def update_action_state(self, update: ActionUpdate, action: ActionObject | None) -> None:
        """Report a state to both.

        Raises:
            RunServiceActionUnknown: One of the two has no record of the action.
            RunServiceUnavailable: One of the two may accept a later call.
            RunServiceRejected: One of the two rejected it for good.
        """
        await self._report(lambda service: service.update_action_state(update, action), update)

    def unsettled_until(self, key: bytes) -> float:
        """The time, on trio's clock, until which an earlier call to either may still be applied."""
        return max(each.unsettled_until(key) for each in (self._first, self._second))

    def mark_companions(
        self, update: ActionUpdate, action: ActionObject | None
    ) -> MarkCompanions | None:
        """The keys that the first one writes with the mark; None if it writes none.

        The second one receives a call.
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
        # After this error the outbox reports the record, and then the status again.
        return 0
    return 2 if isinstance(error, RunServiceRejected) else 1
