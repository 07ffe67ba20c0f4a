"""Flyte's run service, as far as the outbox needs it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import trio

from etcd_actions.model import ActionObject, ActionUpdate, Phase
from etcd_actions.storage.store import KeyChange


class RunService(ABC):
    """The service that keeps the records of runs; a base class for one of your own.

    A call returns once the run service has accepted the report. When it raises, the leader calls
    it again after a back-off, without limit; :class:`~etcd_actions.errors.RunServiceRejected`
    says that it will never accept, and makes a dead letter. The calls for one action come one
    after another, in order. A call may be repeated after it was accepted, or cancelled.

    A call is cancelled when the leader's lease may end (``trio.current_effective_deadline()``
    returns when), since from then on another process may report: a cancelled call must not be
    applied much later.

    Attributes:
        keeps_order: Whether it ignores a state after a newer one, from any leader. Then calls
            need no lease, and a terminal state is reported once after a change of the leader.
    """

    keeps_order: ClassVar[bool] = False

    def accepts(self, phase: Phase, deleted: bool) -> bool:
        """Return whether a state of this phase, or a deletion, is reported at all; all are."""
        return True

    @abstractmethod
    async def record_action(self, update: ActionUpdate, action: ActionObject | None) -> None:
        """Make the action known, before its first status.

        Args:
            update: Its state.
            action: The stored object; None if it was deleted before it could be read.

        Raises:
            RunServiceUnavailable: It may be accepted by a later call.
            RunServiceRejected: It never will.
        """

    @abstractmethod
    async def update_action_status(self, update: ActionUpdate) -> None:
        """Report a state of the action.

        It returns for a terminal state only when no earlier state can be applied after it,
        unless :meth:`unsettled_until` says when that is.

        Raises:
            RunServiceActionUnknown: There is no record of the action: the leader calls
                :meth:`record_action`, then this again.
            RunServiceUnavailable: It may be accepted by a later call.
            RunServiceRejected: It never will.
        """

    async def update_action_state(self, update: ActionUpdate, action: ActionObject | None) -> None:
        """Report a state with its object, None if that is deleted; calls update_action_status.

        The leader calls this one. Override it where the object is needed.
        """
        await self.update_action_status(update)

    def unsettled_until(self, key: bytes) -> float:
        """Until when, on trio's clock, an earlier call about an object may still be applied.

        A terminal state that is accepted before that is reported again after it, then marked.
        """
        return -math.inf

    def mark_companions(
        self, update: ActionUpdate, action: ActionObject | None
    ) -> MarkCompanions | None:
        """What it stores of a terminal state in the transaction of the mark; None for nothing.

        For a run service that keeps its records in the same etcd. Where the transaction
        succeeds :meth:`update_action_state` is not called.
        """
        return None


@dataclass(frozen=True)
class MarkCompanions:
    """What a run service that keeps its records in the same etcd stores of a terminal state.

    Attributes:
        changes: Are made in the transaction of the mark. One that cannot be made raises
            :class:`~etcd_actions.errors.RunServiceRejected`.
        write: Makes them in transactions of their own, as ``update_action_state`` does; safe to
            repeat.
        others: The run service that has to accept the state before it is marked; None for none.
    """

    changes: Sequence[KeyChange]
    write: Callable[[], Awaitable[None]]
    others: RunService | None = None


class NullRunService(RunService):
    """Accepts everything, for a deployment without a run service: terminal states are marked."""

    keeps_order = True

    def accepts(self, phase: Phase, deleted: bool) -> bool:
        """Return whether the action has ended and can be marked."""
        return phase.is_terminal and not deleted

    async def record_action(self, update: ActionUpdate, action: ActionObject | None) -> None:
        """Accept."""
        await trio.lowlevel.checkpoint()

    async def update_action_status(self, update: ActionUpdate) -> None:
        """Accept."""
        await trio.lowlevel.checkpoint()
