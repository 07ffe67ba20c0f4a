"""Two run services that are told the same."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from etcd_actions.errors import RunServiceActionUnknown, RunServiceError, RunServiceRejected
from etcd_actions.model import ActionObject, ActionUpdate, Phase
from etcd_actions.run_service.protocol import RunService, tell_status


class BothRunServices:
    """Tells one run service, then another. Neither waits for what the other accepts.

    A call fails where one of the two did: what may be accepted later counts before what never
    will, so that the call is made again. The other one may be told twice then.

    Args:
        first: Is told first.
        second: Is told of the states that it wants.
    """

    def __init__(self, first: RunService, second: RunService) -> None:
        self._first = first
        self._second = second

    def wants(self, phase: Phase, deleted: bool) -> bool:
        """Whether one of them does."""
        return self._first.wants(phase, deleted) or self._second.wants(phase, deleted)

    async def record_action(self, update: ActionUpdate, action: ActionObject | None) -> None:
        """Make the action known to both.

        Raises:
            RunServiceUnavailable: One of them may accept it when told again.
            RunServiceRejected: One of them never will.
        """
        await self._tell(lambda service: service.record_action(update, action), update)

    async def update_action_status(self, update: ActionUpdate) -> None:
        """See :meth:`update_action_state`."""
        await self.update_action_state(update, None)

    async def update_action_state(self, update: ActionUpdate, action: ActionObject | None) -> None:
        """Tell a state to both.

        Raises:
            RunServiceActionUnknown: One of them has no record of the action.
            RunServiceUnavailable: One of them may accept it when told again.
            RunServiceRejected: One of them never will.
        """
        await self._tell(lambda service: tell_status(service, update, action), update)

    def unsettled_until(self, key: bytes) -> float:
        """Until when an earlier call to one of them may still be applied, in trio's time."""
        until = float("-inf")
        for service in (self._first, self._second):
            own = getattr(service, "unsettled_until", None)
            if own is not None:
                until = max(until, own(key))
        return until

    async def _tell(
        self, call: Callable[[RunService], Awaitable[None]], update: ActionUpdate
    ) -> None:
        errors: list[RunServiceError] = []
        for service in (self._first, self._second):
            if not service.wants(update.phase, update.is_deleted):
                continue
            try:
                await call(service)
            except RunServiceError as error:
                errors.append(error)
        if errors:
            raise min(errors, key=_order)


def _order(error: RunServiceError) -> int:
    if isinstance(error, RunServiceActionUnknown):
        # Its record is told before the next try.
        return 0
    return 2 if isinstance(error, RunServiceRejected) else 1
