"""Follows actions, and delivers their states, each inside a boundary of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
import structlog

from etcd_actions._internal.clock import Clock
from etcd_actions._internal.quoting import clipped, quoted
from etcd_actions.actions.stored_action import StoredAction, update_of
from etcd_actions.client import ActionsClient
from etcd_actions.client.arguments import action_id_of
from etcd_actions.errors import ActionError, DecodeError, InvalidArgument, NotFound
from etcd_actions.executor.scheduling.board import Board
from etcd_actions.executor.scheduling.failures import PARKED, Failures
from etcd_actions.executor.scheduling.schedule import Due, Schedule
from etcd_actions.model import ActionUpdate, Phase
from etcd_actions.shards import ShardRange

_MOST_REFUSED: Final = 10_000
"""The most keys that are remembered, and so logged, because their objects cannot be run."""
_LONGEST_NAME: Final = 200

_log = structlog.get_logger(__name__)


class UpdatesEnded(Exception):
    """A subscription ended by itself."""


class Intake:
    """Follows the actions of ranges.

    Args:
        client: Subscribes to them.
        clock: The clock of retries.
        board: The actions that are not terminal.
        schedule: Has the alarms of retries.
        sink: Called with each state, whose name is that of its key, and with False if the state is
            part of a snapshot.
        wake: Called after each snapshot, and after a failure.
    """

    def __init__(
        self,
        client: ActionsClient,
        clock: Clock,
        board: Board,
        schedule: Schedule,
        sink: Callable[[ActionUpdate, bool], None],
        wake: Callable[[], None],
    ) -> None:
        self._client = client
        self._board = board
        self._schedule = schedule
        self._sink = sink
        self._wake = wake
        self._failures = Failures(clock)
        self._failed: dict[str, ActionUpdate] = {}
        # Keys with objects that cannot be run, as far as that was logged.
        self._refused: set[str] = set()

    async def follow(self, range_: ShardRange, synced: Callable[[], None]) -> None:
        """Deliver all states of a range; the caller calls it again after each error.

        Each call begins with a snapshot. Known actions that are not in it have ended.

        Args:
            range_: The range of ``<namespace>/<name>``.
            synced: Called when the snapshot is complete.

        Raises:
            UpdatesEnded: No more updates come.
            EtcdError: etcd cannot be read.
        """
        seen: set[str] = set()
        listing = True
        replaced = 0
        async with self._client.work.subscribe(range_) as updates:
            async for item in updates:
                if updates.replaced != replaced:
                    replaced = updates.replaced
                    self._board.forget_revisions()
                if isinstance(item, ActionUpdate):
                    if listing:
                        seen.add("/".join(_key_names(item)))
                    self.note(item, live=not listing)
                    continue
                for update in self._missing(range_, seen, item.revision):
                    if await self._is_gone(update):
                        self.note(update)
                seen.clear()
                listing = False
                synced()
                self._wake()
        raise UpdatesEnded("no more updates come, though the executor runs")

    def note(self, update: ActionUpdate, *, live: bool = False) -> None:
        """Deliver a state; one that fails is retried later."""
        namespace, name = _key_names(update)
        if not self._is_ours(update, namespace):
            return
        full_name = f"{namespace}/{name}"
        if not update.is_deleted and (flaw := _flaw_of(update, name)):
            self._refuse(update, full_name, flaw)
            return
        self._refused.discard(full_name)
        with self._client.containment.unit("update", full_name, parks=True) as unit:
            self._sink(msgspec.structs.replace(update, name=full_name), live)
        self._failed.pop(full_name, None)
        if unit.failed:
            self._failed[full_name] = update
            self._schedule.at(Due.NOTE, full_name, self._failures.again(full_name, PARKED))
            self._wake()
        else:
            self._failures.drop(full_name)

    def note_action(self, action: StoredAction) -> None:
        """Deliver the state of an action that was read."""
        self.note(update_of(action))

    def again(self, name: str) -> None:
        """Retry a state that failed."""
        if (update := self._failed.get(name)) is not None:
            self.note(update)

    def _refuse(self, update: ActionUpdate, name: str, flaw: str) -> None:
        """Log, once for a key, that no executor can run its object.

        No request reads the object by the names in it, so nothing can be reported about it either.
        """
        if name in self._refused or len(self._refused) >= _MOST_REFUSED:
            return
        self._refused.add(name)
        with self._client.containment.unit("log_line", "action_refused"):
            _log.warning(
                "action_refused",
                key=update.key.decode(errors="backslashreplace"),
                revision=update.revision,
                reason=f"no executor can run the object: {flaw}",
                remedy="delete the key, or store the object with valid names, under their key",
            )

    def _is_ours(self, update: ActionUpdate, namespace: str) -> bool:
        """Whether the client would read the action in the namespace of this object."""
        try:
            return self._client.namespace_of(update.action_id) == namespace
        except InvalidArgument:
            return False

    def _missing(self, range_: ShardRange, seen: set[str], revision: int) -> list[ActionUpdate]:
        """The deletions of the known actions that are missing in a snapshot at a revision."""
        missing = (name for name in self._board.names() if name not in seen)
        known = [self._board.get(name) for name in missing if name.encode() in range_]
        return [
            msgspec.structs.replace(
                each.update, phase=Phase.ABORTED, revision=revision, is_deleted=True
            )
            for each in known
            if each is not None and each.update.revision <= revision
        ]

    async def _is_gone(self, update: ActionUpdate) -> bool:
        """Whether an action that a snapshot lacks is deleted, and not only unreadable."""
        try:
            await self._client.get_task_action(update.action_id)
        except NotFound:
            return True
        except (ActionError, DecodeError) as error:
            _log.warning("action_unreadable", action=update.name, reason=str(error))
        return False


def _key_names(update: ActionUpdate) -> tuple[str, str]:
    """Namespace and name by the key: the names in the object may be anything."""
    parts = update.key.decode(errors="replace").rsplit("/", 2)
    return parts[-2] if len(parts) > 1 else "", parts[-1]


def _flaw_of(update: ActionUpdate, name: str) -> str:
    """Why requests for the action that an object names do not read its key; empty if they do."""
    if (named := update.action_id.object_name) != name:
        return f"it names {quoted(named, _LONGEST_NAME)}, which has another key"
    try:
        action_id_of(update.action_id)
    except InvalidArgument as error:
        return clipped(str(error), _LONGEST_NAME)
    return ""
