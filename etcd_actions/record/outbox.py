"""The leader's queue of reports: report a state to the run service, then write the mark.

It is a queue of its own: a run service that hangs or rejects delays no subscriber. The states of an
action are reported in order, conflated, and repeated after a back-off without limit; only what the
run service rejects for good is set aside as a dead letter, and what cannot be decoded until its
next good write.

One process at a time has a working outbox, see :mod:`etcd_actions.etcd.election`. Its calls cannot
be fenced, so:

- Each call starts and ends while the leader's lease is surely alive.
- A terminal state that was accepted while a call of an older leader, or one of unknown outcome,
  could still land is reported again when none can, and only then marked. It waits
  apart, see :mod:`etcd_actions.record.deferred_reports`.
- A state from before the term is reported only if it still is the newest: another leader may have
  reported, and marked, a later one. The same holds for the deletion of an
  object that was created again since.
- After a terminal state was accepted nothing but a newer attempt, another incarnation or another
  terminal state is reported.

A run service of our own stores a terminal state in the transaction of the mark, so that neither is
ever there without the other.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import msgspec
import trio

from etcd_actions._internal.containment import Containment
from etcd_actions._internal.tracing import span
from etcd_actions.codecs import codec_of
from etcd_actions.errors import DecodeError, RunServiceRejected
from etcd_actions.etcd.api import KeyValue
from etcd_actions.etcd.term import Term
from etcd_actions.follow import Index, SetAside
from etcd_actions.follow.workqueue import WorkQueue, WorkQueueSettings, WorkQueueStatistics
from etcd_actions.model import (
    ACTION_TYPE_TRACE,
    ActionObject,
    ActionUpdate,
    Incarnation,
    Phase,
    Summary,
    build_action_update,
    mark_number,
)
from etcd_actions.record.deferred_reports import DeferredReports
from etcd_actions.record.deletions import Deletions
from etcd_actions.record.recorder import MarkResult, Recorder, TerminalState
from etcd_actions.record.reporter import BEFORE_RUNNING, Reporter
from etcd_actions.run_service.protocol import MarkCompanions
from etcd_actions.storage.store import Store
from etcd_actions.watch import Change

_NOT_TERMINAL = -1
_LONGEST_UID = 128
_BYTES_OF_OBJECTS = 256 * 1024
"""Bytes of queued values up to which their decoded objects are kept with them."""


class _Delivery(Change, frozen=True, gc=False):
    """A change to report; a deletion has the update to report.

    A deletion without one is none: it has dead letters about a deleted object reported again.
    """

    update: ActionUpdate | None = None
    read: bool = False
    """Whether its value was read in this term, when it was the newest."""
    action: ActionObject | None = None
    """The decoded value, if it is available."""

    def without_value(self) -> Change:
        """The same change with its value dropped."""
        return msgspec.structs.replace(super().without_value(), action=None)


class _Accepted(NamedTuple):
    """A terminal state that was accepted."""

    incarnation: Incarnation
    state: TerminalState
    companions: bool
    """Whether a part of it is still to be stored with the mark."""


class _Reported(msgspec.Struct, gc=False):
    """The last report about a key.

    Attributes:
        accepted: A terminal state that is still to be marked.
        started: When the call that was accepted started.
        ended: The incarnation and the attempts of the last terminal state that was accepted.
        mark: A number for the mark of the terminal state that was reported last; `_NOT_TERMINAL`
            where something else was, or may have been, None if nothing was in this term.
    """

    accepted: _Accepted | None = None
    started: float = -math.inf
    ended: tuple[Incarnation, int] | None = None
    mark: int | None = None


class Outbox:
    """See the module's text.

    Args:
        index: The facts of the keys, and the deletions to report.
        store: Reads values again.
        reporter: Calls the run service.
        recorder: Writes marks.
        deletions: Handles deletions.
        deferred: Keeps the reports that are repeated later.
        set_aside: Takes values that turn out to be undecodable.
        workers: How many actions are handled side by side.
        settings: Limits of the queue.
        containment: Counts unexpected failures.

    Attributes:
        reporter: See above.
    """

    def __init__(
        self,
        index: Index,
        store: Store,
        *,
        reporter: Reporter,
        recorder: Recorder,
        deletions: Deletions,
        deferred: DeferredReports,
        set_aside: SetAside,
        workers: int,
        settings: WorkQueueSettings,
        containment: Containment,
    ) -> None:
        self.reporter = reporter
        self._index = index
        self._store = store
        self._recorder = recorder
        self._deletions = deletions
        self._deferred = deferred
        self._set_aside = set_aside
        self._workers = workers
        self._settings = settings
        self._containment = containment
        self._queue: WorkQueue | None = None
        self._reported: dict[bytes, _Reported] = {}
        # Keys of the states that are delivered while the backlog is queued; else None.
        self._delivered: set[bytes] | None = None

    def statistics(self) -> WorkQueueStatistics | None:
        """What the queue has and has done; None while another process leads."""
        return None if self._queue is None else self._queue.statistics()

    @property
    def deferred(self) -> int:
        """Number of accepted terminal states that are reported again before their mark."""
        return len(self._deferred)

    @property
    def working(self) -> bool:
        """Whether it accepts deliveries."""
        return self._queue is not None

    @asynccontextmanager
    async def at_work(
        self, term: Term | None = None, *, hold_until: float = -math.inf
    ) -> AsyncIterator[None]:
        """Accept deliveries and process them; on leaving the queue is dropped.

        What is dropped is in etcd, unmarked, and the next leader finds it.

        Args:
            term: Calls are made only while its lease is surely alive; None for no limit.
            hold_until: Until when calls of other processes may still land, on trio's clock.
        """
        self.reporter.start(term, hold_until)
        self._deletions.start()
        self._forget_deleted()
        for reported in self._reported.values():
            # Other leaders may have reported since.
            reported.accepted = reported.mark = None
        queue = WorkQueue(
            self.notify_run_service,
            self._reread,
            self._settings,
            containment=self._containment,
            unit="delivery",
        )
        keep = self._containment.keep
        fence = None if term is None else term.leadership.fence
        dead_letters = self.reporter.dead_letters
        async with dead_letters.at_work(fence, self.redeliver), trio.open_nursery() as nursery:
            start = partial(
                nursery.start_soon, keep, "task", "a worker of the outbox", queue.worker
            )
            queue.start_workers(self._workers, start)
            nursery.start_soon(keep, "task", "retries of the outbox", queue.retry_failed)
            deferred = partial(self._deferred.run, queue)
            nursery.start_soon(keep, "task", "deferred reports", deferred)
            self._queue, self._delivered = queue, set()
            try:
                yield
            finally:
                self._queue = self._delivered = None
                self._deferred.clear()
                nursery.cancel_scope.cancel("the outbox does not work any more")

    async def wait_idle(self) -> None:
        """Return once nothing is left to be done now; deferred reports do not count."""
        if self._queue is not None:
            await self._queue.wait_idle()

    def close_if_settled(self) -> bool:
        """Make no more calls, if all is done and no call that was made can still land."""
        calls = self.reporter.calls
        busy = self._queue is not None and self._queue.has_work
        if busy or len(self._deferred) or trio.current_time() < calls.uncertain_until:
            return False
        calls.close()
        return True

    def wants(self, change: Change, summary: Summary) -> bool:
        """Whether there is anything to do for a state, or a deletion."""
        if self._queue is None:
            return False
        if change.is_delete or self.reporter.dead_letters.requests(change.key):
            return True
        if summary.recorded:
            # An object without finalizers whose deletion is requested is deleted here: a plain put
            # removed the last one, where an API server would have deleted the object.
            free = summary.deleting and not summary.held_by_others
            return (
                summary.held
                or free
                or self._recorder.needs_lease(change.kv.lease)
                or self._is_other_mark(change.key, summary.mark)
            )
        deletion_requested = summary.deleting and not summary.phase.is_terminal
        return (
            summary.stray or deletion_requested or self.reporter.is_reportable(summary.phase, False)
        )

    def _is_other_mark(self, key: bytes, mark: int) -> bool:
        """Whether a mark is about another state than the last reported one of a key.

        A writer that puts an older copy of an object back brings its mark with it. Flyte's
        own mark, a label alone, is valid for each object that has it.
        """
        reported = self._reported.get(key)
        last = None if reported is None else reported.mark
        return mark != 0 and last is not None and last != mark

    def deliver(
        self, change: Change, update: ActionUpdate | None, action: ActionObject | None = None
    ) -> None:
        """Queue a state, or a deletion with the update to report. Never waits.

        A few decoded objects are kept with their states; while many wait the bytes are enough.

        Args:
            change: What happened.
            update: The update of a deletion.
            action: The decoded object of a state, where it is available.
        """
        assert self._queue is not None
        if self._delivered is not None and not change.is_delete:
            self._delivered.add(change.key)
        if self._queue.pending_bytes > _BYTES_OF_OBJECTS:
            action = None
        self._queue.dispatch((_delivery(change, update, action=action),))

    def is_delivered(self, key: bytes) -> bool:
        """Whether a state of a key was delivered since the start, while the backlog is queued."""
        return self._delivered is not None and key in self._delivered

    def backlog_delivered(self) -> None:
        """All that was known at the start is queued."""
        self._delivered = None

    def _forget_deleted(self) -> None:
        """Forget the deletions that another leader handled."""
        kept = {update.key for update in self._index.deletions()}
        for key in list(self._reported):
            if key not in kept and self._index.revision_of(key) == 0:
                self.forget(key)

    def redeliver(self, key: bytes) -> None:
        """Queue the present state of a key, or a look for dead letters about a deleted object."""
        if self._queue is None:
            return
        known = self._index.get(key)
        if known is None:
            change: Change = _Delivery.deletion(key, 0)
        else:
            change = Change.unread(key, known.create_revision, known.revision)
        self._queue.dispatch((change,))

    def forget(self, key: bytes) -> None:
        """The key is deleted, and nothing is to be reported of it."""
        self.reporter.forget(key)
        self._reported.pop(key, None)
        self._deferred.pop(key)

    async def notify_run_service(self, delivery: Change) -> None:
        """Report to the run service until it accepts, then mark a terminal state.

        After an acceptance only the mark is repeated.
        """
        key = delivery.key
        update = delivery.update if isinstance(delivery, _Delivery) else None
        if update is not None:
            await self._handle_deletion(delivery, update)
            return
        try:
            if delivery.is_delete:
                await self._redeliver_deleted(key)
            elif (newest := await self._if_newest(delivery)) is not None:
                await self._handle(newest)
        except DecodeError as error:
            # A retry would cure nothing; the watch delivers the next value.
            known = self._index.get(key)
            is_newest = known is not None and known.revision == delivery.mod_revision
            if is_newest and key not in self._set_aside:
                self._set_aside.add(delivery, error)
            if (reported := self._reported.get(key)) is not None:
                reported.accepted = None
            reason = f"the object cannot be read: {error.reason}"
            await self.reporter.dead_letters.refuse_requests(key, reason)

    async def _if_newest(self, delivery: Change) -> Change | None:
        """A state; None for one from before the term that has a newer one.

        Another leader may have reported, and marked, that one. etcd is read only while the watch
        has yet to come to where the term began.
        """
        key, revision = delivery.key, delivery.mod_revision
        began = self.reporter.calls.term_revision
        was_read = isinstance(delivery, _Delivery) and delivery.read
        if was_read or revision >= began or self._index.is_newest(key, revision, began):
            return delivery
        return await self._store.newest(delivery)

    async def _reread(self, change: Change) -> Change | None:
        found = await self._store.newest(change)
        return None if found is None else _delivery(found, read=True)

    async def _handle(self, delivery: Change) -> None:
        key, value = delivery.key, delivery.value
        action = delivery.action if isinstance(delivery, _Delivery) else None
        if action is None:
            action = codec_of(value).decode(value, key=key, revision=delivery.mod_revision)
        update = build_action_update(
            action,
            key=key,
            revision=delivery.mod_revision,
            create_revision=delivery.create_revision,
        )
        seen = delivery.kv.plain()
        self._supersede_deferred(key)
        reported = self._reported.setdefault(key, _Reported())
        if requests := self.reporter.dead_letters.requests(key):
            # The record first, then the status, whichever of the two was rejected.
            self.reporter.introduce_again(key)
            reported.accepted = None
        state = action.state(delivery.create_revision)
        if state.recorded and not self._is_other_mark(key, state.mark):
            if requests:
                await self._report(update, action, value, requests)
                reported.mark = state.mark
            await self._recorder.maintain(seen)
            return
        if state.stray:
            # The watch delivers the state with the note.
            await self._recorder.disown(seen)
            return
        if not update.phase.is_terminal:
            if action.is_deleting and await self._deletions.on_requested(seen):
                return
            reported.accepted = None
            if not _has_ended(reported, update):
                await self._report(update, action, value, requests)
            return
        await self._record(delivery, update, action, reported, requests)

    async def _record(
        self,
        delivery: Change,
        update: ActionUpdate,
        action: ActionObject,
        reported: _Reported,
        requests: frozenset[str],
    ) -> None:
        """Report a terminal state, unless it was accepted already, then mark it."""
        key, value, seen = delivery.key, delivery.value, delivery.kv.plain()
        reporter = self.reporter
        companions = None
        if not requests:
            companions = await reporter.mark_companions(update, action)
        incarnation, state = update.incarnation, TerminalState.of(update)
        accepted = _Accepted(incarnation, state, companions is not None)
        until = reporter.uncertain_until(key)
        if reported.accepted != accepted or reported.started < until <= trio.current_time():
            reported.accepted, reported.started = None, trio.current_time()
            if not await self._report(update, action, value, requests, companions):
                return
            # It is kept while the object exists, so one of two equal ones is enough.
            incarnation = reporter.incarnation(update)
            reported.accepted = accepted._replace(incarnation=incarnation)
            reported.ended = incarnation, update.attempts
            reported.mark = mark_number(state.mark(delivery.create_revision))
        if reported.started < (until := reporter.uncertain_until(key)):
            if companions is not None:
                await companions.write()
            self._deferred.put(delivery.without_value(), until)
            return
        await reporter.dead_letters.carry(update, value)
        try:
            # Where no other run service got a call, this is the call.
            alone = companions is not None and companions.others is None
            with reporter.counted("status") if alone else nullcontext():
                result = await self.mark_terminal_status_recorded(seen, state, companions)
        except RunServiceRejected as error:
            reported.accepted = None
            await reporter.reject("status", update, value, error)
            return
        if result is MarkResult.DELETED:
            self._deletions.by_mark(incarnation)
        reported.accepted = None

    def _supersede_deferred(self, key: bytes) -> None:
        """A newer state of a key is handled: the deferred one is not reported again."""
        deferred = self._deferred.pop(key)
        if isinstance(deferred, _Delivery) and deferred.update is not None:
            self._deletions.supersede(deferred.update)

    async def mark_terminal_status_recorded(
        self, seen: KeyValue, state: TerminalState, companions: MarkCompanions | None = None
    ) -> MarkResult:
        """Label a terminal state that the run service accepted, by compare-and-swap.

        Raises:
            EtcdError: etcd did not do it now; it is repeated.
            RunServiceError: The data of the run service cannot be stored with the mark.
        """
        with span("mark", {"uid": state.uid[:_LONGEST_UID], "phase": state.phase.name}):
            return await self._recorder.mark(seen, state, companions)

    async def _report(
        self,
        update: ActionUpdate,
        action: ActionObject,
        value: bytes,
        requests: frozenset[str],
        companions: MarkCompanions | None = None,
    ) -> bool:
        """Report a state, and what the requested dead letters about its object keep."""
        key = update.key
        if (reported := self._reported.get(key)) is not None:
            reported.mark = _NOT_TERMINAL
        self._promote_parent(update)
        accepted = await self.reporter.report(update, action, value, companions)
        if requests:
            await self.reporter.dead_letters.settle(update, requests)
            # Dead letters about another action, that had the key before.
            await self.reporter.report_dead_letters(key, requests)
        return accepted

    def _promote_parent(self, child: ActionUpdate) -> None:
        """Have the parent reported as RUNNING, in its own turn, if it is not that far by itself.

        So it can never land after the parent's terminal state, and has the parent's own attempts.
        """
        reporter = self.reporter
        if not (child.parent and reporter.is_first(child)):
            return
        parent = reporter.parent_key(child)
        known = self._index.get(parent)
        if known is None or known.phase not in BEFORE_RUNNING:
            return
        # Another run's action may have the key.
        run = child.action_id
        if (known.project, known.domain, known.run) != (run.project, run.domain, run.run):
            return
        if reporter.is_reportable(Phase.RUNNING, False) and reporter.add_child(parent):
            self.redeliver(parent)

    async def _handle_deletion(self, delivery: Change, update: ActionUpdate) -> None:
        """Report a deletion, and forget the key."""
        key = update.key
        deferred = self._deferred.get(key)
        if deferred is not None and deferred.mod_revision != delivery.mod_revision:
            self._supersede_deferred(key)
        if not await self._deletions.report(delivery, update):
            return
        # A request made while the object existed has no other turn.
        await self._redeliver_deleted(key)
        self._deletions.done(update)
        self.forget(key)

    async def _redeliver_deleted(self, key: bytes) -> None:
        """Report again what the requested dead letters about a deleted object keep."""
        dead_letters = self.reporter.dead_letters
        requests = dead_letters.requests(key)
        if requests and not await dead_letters.exists(key):
            await self.reporter.report_dead_letters(key, requests)
            if self._deferred.get(key) is None:
                self.forget(key)


def _has_ended(reported: _Reported, update: ActionUpdate) -> bool:
    """Whether the terminal state of this attempt, or of a newer one, was accepted."""
    if update.action_type == ACTION_TYPE_TRACE or reported.ended is None:
        return False
    incarnation, attempts = reported.ended
    return incarnation == update.incarnation and update.attempts <= attempts


def _delivery(
    change: Change,
    update: ActionUpdate | None = None,
    *,
    read: bool = False,
    action: ActionObject | None = None,
) -> _Delivery:
    return _Delivery(
        change.kind,
        change.kv,
        value_dropped=change.value_dropped,
        update=update,
        read=read,
        action=action,
    )
