"""What one of all processes does: its outbox is at work, and what was left half-way is finished.

The leader is elected by an etcd lease (:mod:`etcd_actions.etcd.election`). While its term lasts it
tells the run service, marks, finishes aborts, ends conditions in time, collects what was orphaned,
and saves the position. It begins with what is known to be unmarked, and with the deletions since
the position; all others keep these deletions, until the position says that they are done with.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog
import trio

from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.containment import Containment
from etcd_actions._internal.retrying import retrying, seldom
from etcd_actions.actions.abort import Aborter
from etcd_actions.actions.condition_timeouts import ConditionTimeouts
from etcd_actions.actions.orphans import OrphanCollector
from etcd_actions.errors import EtcdError, Unavailable
from etcd_actions.etcd.api import Compare, Etcd
from etcd_actions.etcd.election import Election, open_election
from etcd_actions.etcd.term import Term
from etcd_actions.follow import Index
from etcd_actions.record.checkpoint import Checkpoint, Predecessor
from etcd_actions.record.leader_calls import LANDING
from etcd_actions.record.outbox import Outbox
from etcd_actions.storage.store import Fence
from etcd_actions.watch import Change

_BACKOFF: Final = Backoff(initial=0.1, cap=5.0)
_CLEANING: Final = Backoff(initial=0.5, cap=60.0)
_RESTARTS: Final = Backoff(initial=0.2, cap=30.0)
_TERM: Final = "the leader's work"
_PORTION: Final = 256
"""Keys of the backlog that are looked at before others have their turn."""

_log: Final = structlog.get_logger(__name__)


Progress = Callable[[], int]
"""Returns the revision up to which every change was handled; 0 for none."""


@dataclass(frozen=True)
class Duties:
    """What the leader sees to besides its outbox.

    Attributes:
        aborter: Finishes aborts that were cut off.
        orphans: Collects what lost its parent unseen.
        timeouts: Ends conditions in time.
    """

    aborter: Aborter
    orphans: OrphanCollector
    timeouts: ConditionTimeouts

    async def clean_up(self) -> None:
        """Finish what was left half-way; what etcd does not do is tried again, for ever."""
        report = seldom(_log, "clean_up_failed")
        async for refused in retrying(_CLEANING, on=EtcdError, report=report):
            with refused:
                async for attempt in retrying(_BACKOFF, on=Unavailable, report=report):
                    with attempt:
                        await self.aborter.resume()
                        await self.orphans.sweep()


class Leader:
    """Stands for election, and works while elected; see the module's text.

    Args:
        etcd: The connection.
        key: The election's.
        position: Where a successor begins.
        outbox: Tells and marks.
        index: What is known of the keys.
        duties: What else is to be done.
        fence: What the marks compare; it is set to the leadership.
        ttl: For how many seconds the leader may be silent; None works without an election, and
            keeps no position.
        save_every: Seconds between two times that the position is saved.
        containment: The boundaries of the process.
    """

    def __init__(
        self,
        etcd: Etcd,
        key: bytes,
        position: Checkpoint,
        outbox: Outbox,
        index: Index,
        duties: Duties,
        *,
        fence: Fence,
        ttl: int | None,
        save_every: float,
        containment: Containment,
    ) -> None:
        self._etcd = etcd
        self._key = key
        self._position = position
        self._outbox = outbox
        self._index = index
        self._duties = duties
        self._fence = fence
        self._ttl = ttl
        self._save_every = save_every
        self._containment = containment
        self._election: Election | None = None

    @property
    def is_elected(self) -> bool:
        """Whether this process leads, by an election."""
        return self._election is not None and self._election.is_leader

    @property
    def checkpoint(self) -> int:
        """The checkpoint as it was last saved or read; 0 for none."""
        return self._position.saved

    async def start_at(self) -> int:
        """Where a first list shows the deletions since; 0 for the newest.

        Raises:
            EtcdError: etcd could not be asked.
        """
        return 0 if self._ttl is None else await self._position.load()

    @asynccontextmanager
    async def standing(self, progress: Progress) -> AsyncIterator[None]:
        """Stand for election, and work while elected; on leaving the term ends in order."""
        if self._ttl is None:
            async with self._outbox.at_work(), trio.open_nursery() as nursery:
                self._begin_work(nursery, None)
                yield
                nursery.cancel_scope.cancel("the watch was stopped")
            return
        async with (
            open_election(
                self._etcd, self._key, ttl=self._ttl, containment=self._containment
            ) as self._election,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(self._serve_terms, self._election, progress)
            yield
            await self._save_position(self._election, progress)
            nursery.cancel_scope.cancel("the watch was stopped")

    async def _serve_terms(self, election: Election, progress: Progress) -> None:
        """Work while elected, for ever; meanwhile follow the leader's position.

        When the work fails unexpectedly another process may lead: this one gives up, and
        stands again after a while.
        """
        failures = 0
        while True:
            began = trio.current_time()
            with self._containment.unit("task", _TERM, parks=True) as term:
                await self._serve_term(election, progress)
            if term.failed:
                election.give_up()
                lived = trio.current_time() - began > _RESTARTS.cap
                failures = 1 if lived else failures + 1
                await trio.sleep(_RESTARTS.delay(failures))

    async def _serve_term(self, election: Election, progress: Progress) -> None:
        """Wait to be elected, then work while that lasts."""
        keep = self._containment.keep
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep, "task", "following the position", self._follow_position)
            await election.wait_leader()
            nursery.cancel_scope.cancel("elected")
        if (term := election.term) is None:
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._work, term, progress)
            await term.over.wait()
            nursery.cancel_scope.cancel("no longer elected")

    async def _work(self, term: Term, progress: Progress) -> None:
        """Tell and mark, until cancelled."""
        keep, fence = self._containment.keep, term.leadership.fence
        hold_until = await self._open_term(term)
        self._fence.compare = fence
        async with (
            self._outbox.at_work(term, hold_until=hold_until),
            trio.open_nursery() as nursery,
        ):
            self._begin_work(nursery, fence)
            current = partial(self._done_up_to, progress)
            save = partial(self._position.keep, current, fence, every=self._save_every)
            nursery.start_soon(keep, "task", "saving the position", save)
            nursery.start_soon(self._containment.heal_later, "task", _TERM)
            await trio.sleep_forever()

    def _begin_work(self, nursery: trio.Nursery, fence: Compare | None) -> None:
        """Do what was left undone, and from now on what the one process at work has to."""
        keep = self._containment.keep
        self._deliver_deletions()
        nursery.start_soon(keep, "task", "delivering the backlog", self._deliver_backlog)
        nursery.start_soon(keep, "task", "cleaning up", self._duties.clean_up)
        timeouts = partial(self._duties.timeouts.end_in_time, lambda: fence)
        nursery.start_soon(keep, "task", "time-outs of conditions", timeouts)

    def _deliver_deletions(self) -> None:
        for update in self._index.deletions():
            key, revision = update.key, update.revision
            self._outbox.deliver(Change.deletion(key, revision), update)

    async def _deliver_backlog(self) -> None:
        """Have everything done that is known to be undone."""
        for number, key in enumerate(list(self._index)):
            if number % _PORTION == _PORTION - 1:
                await trio.lowlevel.checkpoint()
            if self._index.comes_again(key):
                # This start has not come to it yet: it is going to be handled again.
                continue
            if (known := self._index.get(key)) is None:
                continue
            # Without its value, which is read again; what its lease is shows then.
            change = Change.unread(key, known.create_revision, known.revision)
            if self._outbox.wants(change, known):
                self._outbox.deliver(change, None)

    async def _open_term(self, term: Term) -> float:
        """Note that this process leads; returns until when what others told may still land."""
        revision, fence = term.leadership.create_revision, term.leadership.fence
        report = seldom(_log, "term_not_opened")
        before: Predecessor | None = None
        async for attempt in retrying(_BACKOFF, on=EtcdError, report=report):
            with attempt:
                before = await self._position.open_term(revision, term.ttl, fence)
        if before is None:
            return -math.inf
        if before.own:
            return self._outbox.reporter.calls.uncertain_until
        hold = (before.ttl or term.ttl) + LANDING
        _log.info("endings_held", seconds=hold)
        return term.began + hold

    async def _follow_position(self) -> None:
        """Forget the deletions that the leader is done with."""
        while True:
            try:
                position = await self._position.load()
            except EtcdError as error:
                _log.debug("position_unreadable", error=str(error))
            else:
                self._index.forget_deletions(position)
            await trio.sleep(self._save_every)

    async def _save_position(self, election: Election, progress: Progress) -> None:
        """Save it once more at the end; what is not saved is only looked at again.

        Where nothing is left that may still land a successor need not wait for it.
        """
        if not election.is_leader:
            return
        with trio.move_on_after(1), self._containment.unit("task", "saving the position"):
            try:
                await self._position.save(self._done_up_to(progress), election.fence)
                if self._outbox.close_if_settled():
                    await self._position.close_term(election.fence)
            except EtcdError as error:
                _log.info("position_not_saved", error=str(error))

    def _done_up_to(self, progress: Progress) -> int:
        """Every deletion up to this revision is done with.

        Puts do not count: what they made is in the list that a successor begins with.
        """
        oldest = self._index.oldest_deletion
        handled = progress()
        return handled if oldest is None else min(handled, oldest - 1)
