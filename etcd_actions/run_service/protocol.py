"""Flyte's run service, as far as the outbox needs it."""

from __future__ import annotations

from typing import Final, Protocol

from etcd_actions.model import ActionObject, ActionUpdate, Phase


class RunService(Protocol):
    """Who keeps the record of runs that people look at.

    Each call either returns, and then the run service has accepted what it was told, or
    raises, and then it is called again, after a back-off, for ever; but
    :class:`~etcd_actions.errors.RunServiceRejected` says that it never will accept, and makes
    a dead letter. The calls for one action come one after another, in order; a call may be
    repeated after it was accepted, and after it was cancelled.

    A call is cancelled when the leader's lease may end (``trio.current_effective_deadline()``
    says when), since another process tells from then on: what was cancelled must not be applied
    much later.

    An implementation may have more than these:

    - ``unsettled_until(key: bytes) -> float``: until when, in trio's time, an earlier call about
      an action may still be applied. An ending that is accepted before that is told again after
      it, and then marked.
    - ``update_action_state(update, action)``: is called instead of `update_action_status`, with
      the object whose state it is, None where that is gone.
    - ``keeps_order = True``: it takes no state once a newer one was told, from any leader. Then
      it may be told at any time, and an ending is told once after a change of the leader.
    """

    def wants(self, phase: Phase, deleted: bool) -> bool:
        """Whether a state of this phase, or a deletion, is to be told at all."""
        ...

    async def record_action(self, update: ActionUpdate, action: ActionObject | None) -> None:
        """Make the action known, before its first status.

        ``action`` is the stored object, None where it was deleted before it could be read.

        Raises:
            RunServiceUnavailable: It may be accepted when told again.
            RunServiceRejected: It never will.
        """

    async def update_action_status(self, update: ActionUpdate) -> None:
        """Tell a state of the action.

        Returns after an ending only when no earlier state can be applied behind it, unless
        ``unsettled_until`` says when that is.

        Raises:
            RunServiceActionUnknown: There is no record of the action: that is told first, then
                this again.
            RunServiceUnavailable: It may be accepted when told again.
            RunServiceRejected: It never will.
        """


async def tell_status(
    run_service: RunService, update: ActionUpdate, action: ActionObject | None
) -> None:
    """Tell a state, with the object where the run service takes it; raises what that raises."""
    with_object = getattr(run_service, "update_action_state", None)
    if with_object is None:
        await run_service.update_action_status(update)
    else:
        await with_object(update, action)


def keeps_order(run_service: RunService) -> bool:
    """Whether it takes no state once a newer one was told."""
    return getattr(run_service, "keeps_order", False) is True


class NullRunService:
    """Accepts everything, for a deployment that has no run service.

    It wants the endings only: they are what gets marked.
    """

    keeps_order: Final = True

    def wants(self, phase: Phase, deleted: bool) -> bool:
        """Whether the action is over and can be marked."""
        return phase.is_terminal and not deleted

    async def record_action(self, update: ActionUpdate, action: ActionObject | None) -> None:
        """Accept."""

    async def update_action_status(self, update: ActionUpdate) -> None:
        """Accept."""
