"""Aborts the children of an action that did not succeed: no action waits for them any more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import structlog
import trio

from etcd_actions.actions.stored_action import StoredAction, same_run
from etcd_actions.errors import EtcdError, NotFound
from etcd_actions.executor.scheduling.failures import DELAYED, PARKED
from etcd_actions.executor.shared import Shared
from etcd_actions.model import ActionUpdate

_log = structlog.get_logger(__name__)


class ChildAborts:
    """See the module's text.

    Args:
        shared: The parts of the executor.
        nursery: Runs one task for each child.
        on_end: Called when a task has ended.

    Attributes:
        open: The children that are being aborted, and by how many tasks.
    """

    def __init__(self, shared: Shared, nursery: trio.Nursery, on_end: Callable[[], None]) -> None:
        self._shared = shared
        self._nursery = nursery
        self._on_end = on_end
        self.open: Counter[str] = Counter()

    def start(self, name: str, parent: StoredAction) -> None:
        """Abort the open children of an action that has ended.

        Args:
            name: The executor's name of the action.
            parent: The action.
        """
        for child in self._shared.board.children(name):
            if (known := self._shared.board.get(child)) is not None:
                self.open[child] += 1
                self._nursery.start_soon(self._abort, parent, known.update)

    async def _abort(self, parent: StoredAction, child: ActionUpdate) -> None:
        try:
            await abort_child(self._shared, parent, child)
        finally:
            self.open[child.name] -= 1
            if not self.open[child.name]:
                del self.open[child.name]
            self._on_end()


async def abort_child(shared: Shared, parent: StoredAction, child: ActionUpdate) -> None:
    """Abort a child of an action that did not succeed; retry until the child has ended.

    Args:
        shared: The parts of the executor.
        parent: The action, which has ended.
        child: The newest state of the child.
    """
    reason = f"its parent {parent.spec.action_name} has ended: {parent.phase.name}"
    name, incarnation = child.name, child.incarnation
    failures = 0
    while (known := shared.board.get(name)) is not None:
        if known.update.incarnation != incarnation:
            break
        if not same_run(known.update.action_id, parent.action_id):
            # It is the child of another run, which had the parent's name before.
            return
        with shared.client.containment.unit("abort", name, parks=True) as unit:
            try:
                await shared.client.abort_action(
                    known.update.action_id, reason, incarnation=incarnation
                )
            except NotFound:
                return
            except EtcdError as error:
                _log.debug("child_not_aborted", action=name, error=str(error))
            else:
                return
        failures += 1
        await trio.sleep((PARKED if unit.failed else DELAYED).delay(failures))
    shared.client.containment.forget("abort", name)
