"""The leader: stands for election, runs the outbox, and completes interrupted operations.

The leader is elected by an etcd lease (:mod:`etcd_actions.etcd.election`). During its term it
reports to the run service, writes marks, completes aborts, ends conditions whose time has passed,
collects orphans, and saves the checkpoint. It starts with the unmarked objects of the index, and
with the deletions since the checkpoint. All other processes keep these deletions until the
checkpoint passes them.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import structlog
import trio

from etcd_actions._internal.backoff import Backoff, Restarts
from etcd_actions._internal.containment import Containment
from etcd_actions._internal.retrying import retrying, seldom
from etcd_actions.actions.abort import Aborter
from etcd_actions.actions.condition_timeouts import ConditionTimeouts
from etcd_actions.actions.orphans import OrphanCollector
from etcd_actions.errors import EtcdError, Unavailable
from etcd_actions.etcd.api import Compare, Etcd, KeyRange
from etcd_actions.etcd.election import Election, open_election
from etcd_actions.etcd.term import Leadership, Term
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
"""Keys of the backlog that are handled between two cancellation points."""

_log: Final = structlog.get_logger(__name__)


class WatchProgress(Protocol):
    """The progress of the watch, as :class:`~etcd_actions.pipeline.watch_run.WatchRun` has it.

    Attributes:
        listed: Set once the first list was handled.
    """

    listed: trio.Event

    def done_up_to(self) -> int:
        """Every change up to this revision was handled; 0 for none."""

    def received(self) -> int:
        """The number of changes that were delivered."""


@dataclass(frozen=True)
class LeaderTasks:
    """The leader's tasks in addition to the outbox.

    Attributes:
        aborter: Completes aborts that were interrupted.
        orphans: Collects objects whose parent does not exist.
        timeouts: Ends conditions whose time has passed.
        markers: The range of the markers of aborts.
        objects: The ranges of the objects and of the traces.
    """

    aborter: Aborter
    orphans: OrphanCollector
    timeouts: ConditionTimeouts
    markers: KeyRange
    objects: Sequence[KeyRange]

    async def clean_up(self, listed: trio.Event) -> None:
        """Complete interrupted aborts, and collect orphans; retries failures without limit.

        It lists the objects. Two lists at a time take twice as long, so it waits for the watch's
        first list.
        """
        await listed.wait()
        report = seldom(_log, "clean_up_failed")
        async for refused in retrying(_CLEANING, on=EtcdError, report=report):
            with refused:
                async for attempt in retrying(_BACKOFF, on=Unavailable, report=report):
                    with attempt:
                        await self.aborter.resume(self.markers)
                        await self.orphans.sweep(self.objects)

    def stop(self) -> None:
        """Forget the failures: another process may lead from now on."""
        self.aborter.stop()
        self.orphans.stop()


class Leader:
    """Stands for election, and works while it is the leader; see the module docstring.

    Args:
        etcd: The connection.
        key: The election's key.
        checkpoint: The revision at which a successor starts.
        outbox: Reports and marks.
        index: The facts of the keys.
        tasks: The other tasks.
        fence: The compare of all writes. Each term sets it to the leader's key. Before the first
            term it fails, so that no write is applied.
        name: The value of the election's key; by default host and process.
        stands: Whether it stands for election before :meth:`stand` is called.
        guard: Compares of other keys; this process leads only if they hold when it is elected.
        ttl: Seconds for which the leader may be silent; None to work without an election and
            without a checkpoint.
        save_every: Seconds between two writes of the checkpoint.
        save_idle: The same while no change arrives.
        containment: Counts unexpected failures.
    """

    def __init__(
        self,
        etcd: Etcd,
        key: bytes,
        checkpoint: Checkpoint,
        outbox: Outbox,
        index: Index,
        tasks: LeaderTasks,
        *,
        fence: Fence,
        name: str | None = None,
        stands: bool = True,
        guard: Sequence[Compare] = (),
        ttl: int | None,
        save_every: float,
        save_idle: float,
        containment: Containment,
    ) -> None:
        self._etcd = etcd
        self._key = key
        self._checkpoint = checkpoint
        self._outbox = outbox
        self._index = index
        self._tasks = tasks
        self._fence = fence
        if ttl is not None:
            fence.compare = Leadership(key, -1).fence
        self._name = name
        self._guard = guard
        self._ttl = ttl
        self._save_every = save_every
        self._save_idle = save_idle
        self._containment = containment
        self._election: Election | None = None
        # Whether this process shall stand for election.
        self._stands = stands
        # Seconds for the calls in flight when it resigns.
        self._grace = 0.0
        self._changed = trio.Event()

    @property
    def is_elected(self) -> bool:
        """Whether this process is the elected leader."""
        return self._election is not None and self._election.is_leader

    @property
    def is_refused(self) -> bool:
        """Whether there is no leader, and this process may not lead."""
        return self._election is not None and self._election.is_refused

    @property
    def checkpoint(self) -> int:
        """The checkpoint as it was last saved or read; 0 for none."""
        return self._checkpoint.saved

    async def start_at(self) -> int:
        """The revision of the first list: the checkpoint; 0 for the newest revision.

        If there is no checkpoint, it is created, so that the first leader and its successors
        receive the deletions from now on.

        Raises:
            EtcdError: The checkpoint could not be read.
        """
        return 0 if self._ttl is None else await self._checkpoint.load_or_create(self._guard)

    def stand(self) -> None:
        """Stand for election, now or from the next start of the watch on."""
        self._stands = True
        self._signal()

    async def resign(self, grace: float) -> None:
        """Stand for election no more; as the leader finish the calls in flight, and resign.

        States that are queued stay unmarked in etcd, and the next leader finds them. The watch
        continues. After a cancellation the process resigns nevertheless.

        Args:
            grace: Seconds for the calls in flight. If some take longer, the next leader waits
                until they cannot arrive any more.
        """
        self._stands, self._grace = False, grace
        self._signal()
        await self._wait(lambda: self._election is None)

    @asynccontextmanager
    async def standing(self, progress: WatchProgress) -> AsyncIterator[None]:
        """Stand for election, and work while this process is the leader.

        Leaving the context saves the checkpoint, then gives up the leadership. An exception or a
        cancellation ends the term at once; its successor waits for the calls that may arrive.
        """
        if self._ttl is None:
            async with self._outbox.at_work(), trio.open_nursery() as nursery:
                self._start_work(nursery, progress)
                yield
                nursery.cancel_scope.cancel("the watch was stopped")
            return
        stood = self._stands
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take_part, progress)
            yield
            # The work is drained.
            await self.resign(0)
            self._stands = stood
            nursery.cancel_scope.cancel("the watch was stopped")

    async def _take_part(self, progress: WatchProgress) -> None:
        """Stand for election after :meth:`stand`; otherwise follow the leader's checkpoint."""
        keep = self._containment.keep
        assert self._ttl is not None
        while True:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    keep, "task", "following the checkpoint", self._follow_checkpoint
                )
                await self._wait(lambda: self._stands)
                nursery.cancel_scope.cancel("standing for election")
            try:
                async with (
                    open_election(
                        self._etcd,
                        self._key,
                        name=self._name,
                        ttl=self._ttl,
                        guard=self._guard,
                        containment=self._containment,
                    ) as self._election,
                    trio.open_nursery() as nursery,
                ):
                    nursery.start_soon(self._serve_terms, self._election, progress)
                    await self._wait(lambda: not self._stands)
                    await self._hand_over(self._election, progress)
                    nursery.cancel_scope.cancel("not standing any more")
            finally:
                self._election = None
                self._signal()

    async def _wait(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    def _signal(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _hand_over(self, election: Election, progress: WatchProgress) -> None:
        """Wait for the calls in flight, save the checkpoint and close the term."""
        if self._grace and election.is_leader:
            with trio.move_on_after(self._grace):
                await self._outbox.pause()
        await self._save_last(election, progress)

    async def _serve_terms(self, election: Election, progress: WatchProgress) -> None:
        """Work while this process is the leader; otherwise follow the leader's checkpoint.

        After an unexpected failure of the work this process resigns, so that another one may lead.
        It stands for election again after a delay.
        """
        restarts = Restarts(_RESTARTS)
        while True:
            restarts.begin()
            with self._containment.unit("task", _TERM, parks=True) as term:
                await self._serve_term(election, progress)
            if term.failed:
                election.give_up()
                await trio.sleep(restarts.delay())

    async def _serve_term(self, election: Election, progress: WatchProgress) -> None:
        keep = self._containment.keep
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep, "task", "following the checkpoint", self._follow_checkpoint)
            await election.wait_leader()
            nursery.cancel_scope.cancel("elected")
        if (term := election.term) is None:
            return
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._work, term, progress)
                await term.over.wait()
                nursery.cancel_scope.cancel("no longer elected")
        finally:
            self._tasks.stop()

    async def _work(self, term: Term, progress: WatchProgress) -> None:
        keep, fence = self._containment.keep, term.leadership.fence
        hold_until = await self._open_term(term)
        self._fence.compare = fence
        async with (
            self._outbox.at_work(term, hold_until=hold_until),
            trio.open_nursery() as nursery,
        ):
            self._start_work(nursery, progress)
            current = self._to_save(progress)
            save = partial(
                self._checkpoint.save_periodically, current, fence, every=self._save_every
            )
            nursery.start_soon(keep, "task", "saving the checkpoint", save)
            nursery.start_soon(self._containment.forget_later, "task", _TERM)
            await trio.sleep_forever()

    def _start_work(self, nursery: trio.Nursery, progress: WatchProgress) -> None:
        keep = self._containment.keep
        for update in self._index.deletions():
            self._outbox.deliver(Change.deletion(update.key, update.revision), update)
        nursery.start_soon(keep, "task", "delivering the backlog", self._deliver_backlog)
        clean_up = partial(self._tasks.clean_up, progress.listed)
        nursery.start_soon(keep, "task", "cleaning up", clean_up)
        timeouts = self._tasks.timeouts.end_in_time
        nursery.start_soon(keep, "task", "timeouts of conditions", timeouts)

    async def _deliver_backlog(self) -> None:
        """Queue each state of the index that needs a report or a mark.

        It omits keys of which the watch delivered a state since the term started.
        """
        for number, key in enumerate(list(self._index)):
            if number % _PORTION == _PORTION - 1:
                await trio.lowlevel.checkpoint()
            # The watch delivers the key: it will again, or it did since the term started.
            if self._index.is_redelivery(key) or self._outbox.is_delivered(key):
                continue
            if (known := self._index.get(key)) is None:
                continue
            # The value is read when its turn comes; only then is its lease known.
            change = Change.unread(key, known.create_revision, known.revision)
            if self._outbox.must_handle(change, known):
                self._outbox.deliver(change, None)
        self._outbox.backlog_delivered()

    async def _open_term(self, term: Term) -> float:
        """Save that this process leads.

        Returns:
            The time, on trio's clock, until which calls of earlier leaders may still arrive.
        """
        revision, fence = term.leadership.create_revision, term.leadership.fence
        report = seldom(_log, "term_not_opened")
        before: Predecessor | None = None
        async for attempt in retrying(_BACKOFF, on=EtcdError, report=report):
            with attempt:
                before = await self._checkpoint.open_term(revision, term.ttl, fence)
        if before is None:
            return -math.inf
        if before.own:
            return self._outbox.reporter.calls.uncertain_until
        hold = (before.ttl or term.ttl) + LANDING
        _log.info("endings_held", seconds=hold)
        return term.began + hold

    async def _follow_checkpoint(self) -> None:
        """Forget the deletions that the leader has reported."""
        while True:
            try:
                self._index.forget_deletions(await self._checkpoint.load())
            except EtcdError as error:
                _log.debug("position_unreadable", error=str(error))
            await trio.sleep(self._save_every)

    async def _save_last(self, election: Election, progress: WatchProgress) -> None:
        """Save the checkpoint, and close the term if no call can still arrive.

        After a failure the successor handles more deletions again, or waits longer.
        """
        if not election.is_leader:
            return
        with trio.move_on_after(1), self._containment.unit("task", "saving the checkpoint"):
            try:
                revision, fence = self._done_up_to(progress), election.fence
                if self._outbox.close_if_settled():
                    await self._checkpoint.close_term(fence, revision)
                else:
                    await self._checkpoint.save(revision, fence)
            except EtcdError as error:
                _log.info("position_not_saved", error=str(error))

    def _to_save(self, progress: WatchProgress) -> Callable[[], int]:
        """A function that returns the checkpoint to save; 0 for no save now.

        After a change it is saved at once. Otherwise only the store's revision has increased, for
        example by the checkpoints of other shards: then ``save_idle`` has to pass first.
        """
        state: tuple[int, int | None] = (-1, None)
        due = -math.inf

        def revision() -> int:
            nonlocal state, due
            now, before = trio.current_time(), state
            state = progress.received(), self._index.oldest_deletion
            if state == before and now < due:
                return 0
            due = now + self._save_idle
            return self._done_up_to(progress)

        return revision

    def _done_up_to(self, progress: WatchProgress) -> int:
        """Every deletion up to this revision is reported.

        Puts do not count: the list with which a successor starts has their objects.
        """
        oldest = self._index.oldest_deletion
        handled = progress.done_up_to()
        return handled if oldest is None else min(handled, oldest - 1)
