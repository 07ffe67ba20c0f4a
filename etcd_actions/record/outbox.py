"""The leader's queue of reports: report a state to the run service, then write the mark.

A run service that hangs or rejects delays no subscriber, because the queue is separate from theirs.
The states of an action are conflated and reported in order. A failed report is repeated after a
back-off, without limit. A report that the run service rejects for good becomes a dead letter. A
value that cannot be decoded is set aside until its next good write.

Only the leader has a working outbox, see :mod:`etcd_actions.etcd.election`. Its calls cannot be
fenced, so:

- Each call starts and ends while the leader's lease is surely alive.
- A call of an earlier leader, or a call of unknown outcome, may still arrive. A terminal state that
  was accepted before that time is reported again after it, and only then marked. See
  :mod:`etcd_actions.record.deferred_reports`.
- A state from before the term is reported only if it is still the newest of its key: another leader
  may have reported, and marked, a later one. The same holds for the deletion of an object that was
  created again.
- After the acceptance of a terminal state, only a newer attempt, another incarnation or another
  terminal state is reported.

Our own run service stores a terminal state in the transaction of the mark: see ``MarkCompanions``.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from time import perf_counter

import trio

from etcd_actions._internal.containment import Containment
from etcd_actions._internal.tracing import below, span
from etcd_actions.codecs import codec_of
from etcd_actions.errors import DecodeError, RunServiceRejected
from etcd_actions.etcd.api import KeyValue
from etcd_actions.etcd.term import Term
from etcd_actions.follow import Index, SetAside
from etcd_actions.follow.workqueue import WorkQueue, WorkQueueSettings, WorkQueueStatistics
from etcd_actions.model import (
    ANNOTATION_TRACEPARENT,
    ActionObject,
    ActionUpdate,
    Phase,
    Summary,
    build_action_update,
    mark_number,
)
from etcd_actions.record.deferred_reports import DeferredReports
from etcd_actions.record.deletions import Deletions
from etcd_actions.record.last_reports import NOT_TERMINAL, Accepted, LastReport, LastReports
from etcd_actions.record.queued_report import QueuedReport, untimed
from etcd_actions.record.recorder import MarkResult, Recorder, TerminalState
from etcd_actions.record.reporter import BEFORE_RUNNING, Reporter
from etcd_actions.run_service.protocol import MarkCompanions
from etcd_actions.storage.store import Store
from etcd_actions.watch import Change

# Characters of a uid in a span.
_LONGEST_UID = 128
# Bytes of queued values up to which their decoded objects are kept with them.
_BYTES_OF_OBJECTS = 256 * 1024


class Outbox:
    """Reports the states of the actions to the run service.

    Args:
        index: The facts of the keys, and the deletions to report.
        store: Reads values that were dropped.
        reporter: Calls the run service.
        recorder: Writes marks.
        deletions: Handles deletions.
        deferred: Keeps the reports that are repeated later.
        set_aside: Keeps values that cannot be decoded.
        workers: The most actions that are handled at a time.
        settings: Limits of the queue.
        containment: Counts unexpected failures.

    Attributes:
        reporter: The argument.
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
        self._reported = LastReports()
        # Keys of the states that the watch delivers while the backlog is queued; None afterwards.
        self._delivered: set[bytes] | None = None

    def statistics(self) -> WorkQueueStatistics | None:
        """The present counts of the queue; None while another process leads."""
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
        """Accept deliveries and process them, until the context is left.

        Then the queue is dropped. Its states are in etcd, unmarked, and the next leader finds them.

        Args:
            term: Calls are made only while its lease is surely alive; None for no limit.
            hold_until: The time until which calls of earlier leaders may still arrive, on trio's
                clock.
        """
        self.reporter.start(term, hold_until)
        self._deletions.start()
        self._forget_deleted()
        self._reported.start_term()
        queue = WorkQueue(
            self.notify_run_service,
            self._reread,
            self._settings,
            containment=self._containment,
            unit="delivery",
        )
        keep = self._containment.keep
        dead_letters = self.reporter.dead_letters
        async with dead_letters.at_work(self.redeliver), trio.open_nursery() as nursery:
            start = partial(
                nursery.start_soon, keep, "task", "a worker of the outbox", queue.worker
            )
            queue.start_workers(self._workers, start)
            nursery.start_soon(keep, "task", "retries of the outbox", queue.retry_failed)
            nursery.start_soon(keep, "task", "deferred reports", partial(self._deferred.run, queue))
            self._queue, self._delivered = queue, set()
            try:
                yield
            finally:
                self._queue = self._delivered = None
                self._deferred.clear()
                nursery.cancel_scope.cancel("the outbox does not work any more")

    async def wait_idle(self) -> None:
        """Return once the queue has no work; deferred reports do not count."""
        if self._queue is not None:
            await self._queue.wait_idle()

    async def pause(self) -> None:
        """Handle no more states, and return once none is being handled.

        The others stay unmarked in etcd, for the next leader. It cannot be undone in this term.
        """
        if self._queue is not None:
            await self._queue.pause()

    def close_if_settled(self) -> bool:
        """Make no more calls, if none is being made and no call can still arrive.

        Returns:
            Whether no call can arrive from now on.
        """
        calls = self.reporter.calls
        busy = self._queue is not None and self._queue.is_handling
        if busy or len(self._deferred) or trio.current_time() < calls.uncertain_until:
            return False
        calls.close()
        return True

    def must_handle(self, change: Change, summary: Summary) -> bool:
        """Whether a state, or a deletion, has to be reported, marked or released."""
        if self._queue is None:
            return False
        if change.is_delete or self.reporter.dead_letters.requests(change.key):
            return True
        if summary.recorded:
            # An API server deletes an object with the removal of its last finalizer. After a plain
            # put that removed it, the outbox deletes the object.
            return (
                summary.held
                or (summary.deleting and not summary.held_by_others)
                or self._recorder.needs_lease(change.kv.lease)
                or self._reported.is_other_mark(change.key, summary.mark)
            )
        deletion_requested = summary.deleting and not summary.phase.is_terminal
        return (
            summary.stray or deletion_requested or self.reporter.is_reportable(summary.phase, False)
        )

    def deliver(
        self, change: Change, update: ActionUpdate | None, action: ActionObject | None = None
    ) -> None:
        """Queue a state, or a deletion with the update to report. Never waits.

        A decoded object is kept with its state only while few bytes are queued.

        Args:
            change: The change.
            update: The update that reports a deletion; None for a state.
            action: The decoded object of a state, if it was decoded.
        """
        assert self._queue is not None
        if self._delivered is not None and not change.is_delete:
            self._delivered.add(change.key)
        if self._queue.pending_bytes > _BYTES_OF_OBJECTS:
            action = None
        report = QueuedReport.of(change, update, action=action, delivered=perf_counter())
        self._queue.dispatch((report,))

    def is_delivered(self, key: bytes) -> bool:
        """Whether the watch delivered a state of a key while the backlog was queued."""
        return self._delivered is not None and key in self._delivered

    def backlog_delivered(self) -> None:
        """Note that the backlog, the states from before the start, is queued."""
        self._delivered = None

    def _forget_deleted(self) -> None:
        """Forget the deletions that another leader handled."""
        kept = {update.key for update in self._index.deletions()}
        for key in list(self._reported):
            if key not in kept and self._index.revision_of(key) == 0:
                self.forget(key)

    def redeliver(self, key: bytes) -> None:
        """Queue the present state of a key, or the dead letters about a deleted object."""
        if self._queue is None:
            return
        known = self._index.get(key)
        if known is None:
            change: Change = QueuedReport.deletion(key, 0)
        else:
            change = Change.unread(key, known.create_revision, known.revision)
        self._queue.dispatch((change,))

    def forget(self, key: bytes) -> None:
        """Forget a key that is deleted and reported."""
        self.reporter.forget(key)
        self._reported.pop(key, None)
        self._deferred.pop(key)

    async def notify_run_service(self, delivery: Change) -> None:
        """Report to the run service until it accepts, then mark a terminal state.

        After an acceptance only the mark is repeated.
        """
        key = delivery.key
        update = delivery.update if isinstance(delivery, QueuedReport) else None
        if update is not None:
            await self._handle_deletion(delivery, update)
            self._note_lag(delivery)
            return
        try:
            if delivery.is_delete:
                await self._redeliver_deleted(key)
            elif (newest := await self._if_newest(delivery)) and await self._handle(newest):
                self._note_lag(delivery)
        except DecodeError as error:
            # A retry cures nothing: the watch delivers the next value.
            known = self._index.get(key)
            is_newest = known is not None and known.revision == delivery.mod_revision
            if is_newest and key not in self._set_aside:
                self._set_aside.add(delivery, error)
            if (reported := self._reported.get(key)) is not None:
                reported.accepted = None
            reason = f"the object cannot be read: {error.reason}"
            await self.reporter.dead_letters.refuse_requests(key, reason)

    async def _if_newest(self, delivery: Change) -> Change | None:
        """The state, unless it is from before the term and its key has a newer one.

        Another leader may have reported, and marked, the newer one. etcd is read only while the
        watch has not reached the revision at which the term started.
        """
        key, revision = delivery.key, delivery.mod_revision
        began = self.reporter.calls.term_revision
        was_read = isinstance(delivery, QueuedReport) and delivery.read
        if was_read or revision >= began or self._index.is_newest(key, revision, began):
            return delivery
        return await self._store.newest(delivery)

    async def _reread(self, change: Change) -> Change | None:
        found = await self._store.newest(change)
        if found is None:
            return None
        delivered = change.delivered if isinstance(change, QueuedReport) else 0.0
        return QueuedReport.of(found, read=True, delivered=delivered)

    def _note_lag(self, delivery: Change) -> None:
        if isinstance(delivery, QueuedReport) and delivery.delivered:
            self.reporter.counts.lag.observe(perf_counter() - delivery.delivered)

    async def _handle(self, delivery: Change) -> bool:
        """Handle a state; returns whether it was reported: a terminal one marked or deferred."""
        key, value = delivery.key, delivery.value
        action = delivery.action if isinstance(delivery, QueuedReport) else None
        if action is None:
            action = codec_of(value).decode(value, key=key, revision=delivery.mod_revision)
        with below(action.metadata.annotations.get(ANNOTATION_TRACEPARENT, "")):
            return await self._handle_object(delivery, action)

    async def _handle_object(self, delivery: Change, action: ActionObject) -> bool:
        """See :meth:`_handle`; its spans are below that which created the action."""
        key, value = delivery.key, delivery.value
        update = build_action_update(
            action,
            key=key,
            revision=delivery.mod_revision,
            create_revision=delivery.create_revision,
        )
        seen = delivery.kv.plain()
        self._supersede_deferred(key)
        reported = self._reported.of(key)
        if requests := self.reporter.dead_letters.requests(key):
            # Report the record first, then the status, whichever of the two was rejected.
            self.reporter.repeat_record(key)
            reported.accepted = None
        state = action.state(delivery.create_revision)
        if state.recorded and not self._reported.is_other_mark(key, state.mark):
            if requests:
                await self._report(update, action, value, requests)
                reported.mark = state.mark
            await self._recorder.release(seen)
            return False
        if state.stray:
            # The watch delivers the state again, with the note.
            await self._recorder.disown(seen)
            return False
        if not update.phase.is_terminal:
            if action.is_deleting and await self._deletions.on_requested(seen):
                return False
            reported.accepted = None
            if reported.has_ended(update):
                return False
            return await self._report(update, action, value, requests)
        return await self._record(delivery, update, action, reported, requests)

    async def _record(
        self,
        delivery: Change,
        update: ActionUpdate,
        action: ActionObject,
        reported: LastReport,
        requests: frozenset[str],
    ) -> bool:
        """Report a terminal state, unless it was accepted already, then mark it.

        Returns:
            Whether it was marked or deferred; False if it was rejected for good.
        """
        key, value, seen = delivery.key, delivery.value, delivery.kv.plain()
        reporter = self.reporter
        companions = None if requests else await reporter.mark_companions(update, action)
        incarnation, state = update.incarnation, TerminalState.of(update)
        accepted = Accepted(incarnation, state, companions is not None)
        until = reporter.uncertain_until(key)
        if reported.accepted != accepted or reported.started < until <= trio.current_time():
            reported.accepted, reported.started = None, trio.current_time()
            if not await self._report(update, action, value, requests, companions):
                return False
            # Keep the equal object that the reporter keeps: one for both.
            incarnation = reporter.incarnation(update)
            reported.accepted = accepted._replace(incarnation=incarnation)
            reported.ended = incarnation, update.attempts
            reported.mark = mark_number(state.mark(delivery.create_revision))
        if reported.started < (until := reporter.uncertain_until(key)):
            if companions is not None:
                await companions.write()
            self._deferred.put(untimed(delivery.without_value()), until)
            return True
        await reporter.dead_letters.carry(update, value)
        try:
            # If no other run service got a call, the transaction is the call.
            alone = companions is not None and companions.others is None
            with reporter.counted("status") if alone else nullcontext():
                result = await self.mark_terminal_status_recorded(seen, state, companions)
        except RunServiceRejected as error:
            reported.accepted = None
            await reporter.reject("status", update, value, error)
            return False
        if result is MarkResult.DELETED:
            self._deletions.note_deleted_by_mark(incarnation)
        reported.accepted = None
        return True

    def _supersede_deferred(self, key: bytes) -> None:
        """Drop the deferred state of a key, because a newer one is handled."""
        deferred = self._deferred.pop(key)
        if isinstance(deferred, QueuedReport) and deferred.update is not None:
            self._deletions.supersede(deferred.update)

    async def mark_terminal_status_recorded(
        self, seen: KeyValue, state: TerminalState, companions: MarkCompanions | None = None
    ) -> MarkResult:
        """Label a terminal state that the run service accepted, by compare-and-swap.

        Raises:
            EtcdError: The write failed; it has to be repeated.
            RunServiceError: The companions cannot be stored.
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
        """Report a state, and the reports of the requested dead letters about its object."""
        key = update.key
        if (reported := self._reported.get(key)) is not None:
            reported.mark = NOT_TERMINAL
        self._promote_parent(update)
        accepted = await self.reporter.report(update, action, value, companions)
        if requests:
            await self.reporter.dead_letters.settle(update, requests)
            # The rest are about another action that had the key before.
            await self.reporter.report_dead_letters(key, requests)
        return accepted

    def _promote_parent(self, child: ActionUpdate) -> None:
        """Queue a report of the parent as RUNNING, if its own phase is before that.

        The parent's own turn reports it: so the report comes before the parent's terminal state,
        and has the parent's attempts.
        """
        reporter = self.reporter
        if not (child.parent and reporter.is_first(child)):
            return
        parent = reporter.parent_key(child)
        known = self._index.get(parent)
        if known is None or known.phase not in BEFORE_RUNNING:
            return
        # An action of another run may have the key.
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
        # A dead letter that was requested while the object existed has no other turn.
        await self._redeliver_deleted(key)
        self._deletions.done(update)
        self.forget(key)

    async def _redeliver_deleted(self, key: bytes) -> None:
        """Repeat the reports of the requested dead letters about a deleted object."""
        dead_letters = self.reporter.dead_letters
        requests = dead_letters.requests(key)
        if requests and not await dead_letters.exists(key):
            await self.reporter.report_dead_letters(key, requests)
            if self._deferred.get(key) is None:
                self.forget(key)
