"""The interface of a run service, for the outbox."""

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
    """The service that keeps the records of runs; the base class for one of your own.

    A method returns once the run service has accepted the report. If it raises, the leader calls it
    again after a back-off, without limit. Only :class:`~etcd_actions.errors.RunServiceRejected`
    ends that: the report becomes a dead letter. The calls for one action are made one after the
    other, in order. A call may be repeated after it was accepted or cancelled.

    A call is cancelled before the leader's lease ends; ``trio.current_effective_deadline()``
    returns the time. Afterwards another process may report, so a cancelled call must not be applied
    later.

    Attributes:
        keeps_order: Whether it ignores a state after a newer one, from any leader. Then calls
            need no lease, and a terminal state is reported only once after a change of the leader.
    """

    keeps_order: ClassVar[bool] = False

    def accepts(self, phase: Phase, deleted: bool) -> bool:
        """Return whether a state of this phase, or a deletion, is reported; by default all are."""
        return True

    @abstractmethod
    async def record_action(self, update: ActionUpdate, action: ActionObject | None) -> None:
        """Report the record of an action, before its first status.

        Args:
            update: The state of the action.
            action: The stored object; None if it was deleted before it was read.

        Raises:
            RunServiceUnavailable: A later call may be accepted.
            RunServiceRejected: It is rejected for good.
        """

    @abstractmethod
    async def update_action_status(self, update: ActionUpdate) -> None:
        """Report a state of the action.

        After it has returned for a terminal state no earlier state may be applied, except until
        the time of :meth:`unsettled_until`.

        Raises:
            RunServiceActionUnknown: There is no record of the action: the leader calls
                :meth:`record_action`, then this method again.
            RunServiceUnavailable: A later call may be accepted.
            RunServiceRejected: It is rejected for good.
        """

    async def update_action_state(self, update: ActionUpdate, action: ActionObject | None) -> None:
        """Report a state with its object, which is None after its deletion.

        The leader calls this method, which calls :meth:`update_action_status`. Override it if the
        object is needed.
        """
        await self.update_action_status(update)

    def unsettled_until(self, key: bytes) -> float:
        """The time, on trio's clock, until which an earlier call about an object may be applied.

        A terminal state that is accepted before that time is reported again after it, then marked.
        """
        return -math.inf

    def mark_companions(
        self, update: ActionUpdate, action: ActionObject | None
    ) -> MarkCompanions | None:
        """The keys to write for a terminal state in the transaction of the mark; None for none.

        It is for a run service that keeps its records in the same etcd. If the transaction
        succeeds, :meth:`update_action_state` is not called.
        """
        return None


@dataclass(frozen=True)
class MarkCompanions:
    """The keys that a run service in the same etcd writes with the mark of a terminal state.

    Attributes:
        changes: The changes of keys in the transaction of the mark. A change may raise
            :class:`~etcd_actions.errors.RunServiceRejected`.
        write: Makes the changes in separate transactions, as ``update_action_state`` does; it may
            be repeated.
        others: Another run service that has to accept the state before the mark; None for none.
    """

    changes: Sequence[KeyChange]
    write: Callable[[], Awaitable[None]]
    others: RunService | None = None


class NullRunService(RunService):
    """Accepts all reports, for a deployment without a run service: terminal states are marked."""

    keeps_order = True

    def accepts(self, phase: Phase, deleted: bool) -> bool:
        """Return whether the state is terminal, so that it is marked."""
        return phase.is_terminal and not deleted

    async def record_action(self, update: ActionUpdate, action: ActionObject | None) -> None:
        """Accept."""
        await trio.lowlevel.checkpoint()

    async def update_action_status(self, update: ActionUpdate) -> None:
        """Accept."""
        await trio.lowlevel.checkpoint()
