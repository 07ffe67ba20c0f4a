"""A change in the queue of the outbox, with the parts that its report needs."""

from __future__ import annotations

import msgspec

from etcd_actions.model import ActionObject, ActionUpdate
from etcd_actions.watch import Change


class QueuedReport(Change, frozen=True, gc=False):
    """A change with the parts that its report needs.

    A DELETED change without an update stands for a request: the reports of dead letters about a
    deleted object are repeated.

    Attributes:
        update: The update that reports a deletion; None for a state.
        read: Whether the value was read in this term, when it was the newest.
        action: The decoded value, if it is available.
        delivered: When the watch delivered it, by :func:`time.perf_counter`; 0 if the lag of its
            report does not count.
    """

    update: ActionUpdate | None = None
    read: bool = False
    action: ActionObject | None = None
    delivered: float = 0.0

    @classmethod
    def of(
        cls,
        change: Change,
        update: ActionUpdate | None = None,
        *,
        read: bool = False,
        action: ActionObject | None = None,
        delivered: float = 0.0,
    ) -> QueuedReport:
        """The report of a change."""
        dropped = change.value_dropped
        return cls(
            change.kind,
            change.kv,
            value_dropped=dropped,
            update=update,
            read=read,
            action=action,
            delivered=delivered,
        )

    def without_value(self) -> Change:
        """The same change with its value dropped."""
        return msgspec.structs.replace(super().without_value(), action=None)


def untimed(change: Change) -> Change:
    """The same change, whose lag does not count again."""
    if not isinstance(change, QueuedReport):
        return change
    return msgspec.structs.replace(change, delivered=0.0)
