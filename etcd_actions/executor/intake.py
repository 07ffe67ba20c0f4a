"""Takes in what happens to actions, each state inside a boundary of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from etcd_actions._internal.clock import Clock
from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.client import ActionsClient
from etcd_actions.errors import ActionError, DecodeError, InvalidArgument, NotFound
from etcd_actions.executor.scheduling.failures import PARKED, Failures
from etcd_actions.executor.updates import gone, name_of, named_by_key, place_of, update_of
from etcd_actions.model import ActionUpdate

_log = structlog.get_logger(__name__)


class UpdatesEnded(Exception):
    """The subscription to all actions ended by itself."""


@dataclass(frozen=True)
class Taker:
    """Who takes the states.

    Attributes:
        take_in: Called with each state, under the name by its key (`name_of`), and whether it is
            told as it comes.
        known: Gives the states of all actions that are not over.
        synced: Called after each snapshot.
        replaced: Called when the store turned out to be another one: revisions begin anew.
        failed: Called with the name of an action of which a state could not be taken in, and the
            time when :meth:`Intake.again` is to be called.
    """

    take_in: Callable[[ActionUpdate, bool], None]
    known: Callable[[], list[ActionUpdate]]
    synced: Callable[[], None]
    replaced: Callable[[], None]
    failed: Callable[[str, float], None]


class Intake:
    """Follows all actions.

    Args:
        client: How they are followed.
        clock: What times are on.
        taker: See :class:`Taker`.
    """

    def __init__(self, client: ActionsClient, clock: Clock, taker: Taker) -> None:
        self._client = client
        self._taker = taker
        self._failures = Failures(clock)
        self._untaken: dict[str, ActionUpdate] = {}

    async def follow(self) -> None:
        """Take in all that happens; to be called again whenever it ends.

        Each time it begins with a snapshot. What is known and not in it is over.

        Raises:
            UpdatesEnded: No more updates come.
            EtcdError: etcd cannot be read.
        """
        seen: set[str] = set()
        listing = True
        replaced = 0
        async with self._client.subscribe_all() as updates:
            async for item in updates:
                if updates.replaced != replaced:
                    replaced = updates.replaced
                    self._taker.replaced()
                if isinstance(item, ActionUpdate):
                    if listing:
                        seen.add(name_of(item))
                    self.note(item, live=not listing)
                    continue
                for update in gone(self._taker.known(), seen, item.revision):
                    if await self._is_gone(update):
                        self.note(update)
                seen.clear()
                listing = False
                self._taker.synced()
        raise UpdatesEnded("no more updates come, though the executor goes on")

    def note(self, update: ActionUpdate, *, live: bool = False) -> None:
        """Take in a state; one that cannot be taken in is tried again later.

        Args:
            update: The state.
            live: Whether it is told as it comes.
        """
        if not self._is_ours(update):
            return
        name = name_of(update)
        with self._client.containment.unit("update", name, parks=True) as unit:
            self._taker.take_in(named_by_key(update), live)
        self._untaken.pop(name, None)
        # An object that says that it is another's does so until it is changed.
        if unit.failed and not isinstance(unit.error, InvalidArgument):
            self._untaken[name] = update
            self._taker.failed(name, self._failures.again(name, PARKED))
        else:
            self._failures.drop(name)

    def _is_ours(self, update: ActionUpdate) -> bool:
        """Whether it is where the client looks for that action; in another namespace it is not."""
        try:
            namespace = self._client.namespace_of(update.action_id)
        except InvalidArgument:
            return False
        return place_of(update)[0] == namespace

    async def _is_gone(self, update: ActionUpdate) -> bool:
        """Whether an action that a snapshot lacks is deleted, and not only unreadable."""
        try:
            await self._client.get_task_action(update.action_id)
        except NotFound:
            return True
        except (ActionError, DecodeError) as error:
            _log.warning("action_unreadable", action=update.name, reason=str(error))
        return False

    def note_action(self, action: StoredAction) -> None:
        """Take in an action as it was read."""
        self.note(update_of(action))

    def again(self, name: str) -> None:
        """Try once more to take in what failed."""
        if (update := self._untaken.get(name)) is not None:
            self.note(update)
