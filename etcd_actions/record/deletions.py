"""Handles an object that was deleted, or whose deletion was requested, for the leader."""

from __future__ import annotations

import trio

from etcd_actions.actions.abort import Aborter
from etcd_actions.actions.orphans import OrphanCollector
from etcd_actions.codecs import codec_of
from etcd_actions.errors import DecodeError
from etcd_actions.etcd.api import KeyValue
from etcd_actions.follow import Index
from etcd_actions.model import ActionUpdate, Incarnation, Keyspace, parse_key
from etcd_actions.record.deferred_reports import DeferredReports
from etcd_actions.record.queued_report import untimed
from etcd_actions.record.reporter import Reporter
from etcd_actions.storage.store import Store
from etcd_actions.watch import Change


class Deletions:
    """Reports deleted objects, and ends objects that are being deleted.

    Args:
        index: Has the deletions that are not reported yet.
        store: Reads objects.
        keys: The keyspace of the objects.
        aborter: Ends actions before they are deleted.
        orphans: Collects the children.
        reporter: Reports to the run service.
        deferred: Keeps the reports that are repeated later.
    """

    def __init__(
        self,
        index: Index,
        store: Store,
        keys: Keyspace,
        *,
        aborter: Aborter,
        orphans: OrphanCollector,
        reporter: Reporter,
        deferred: DeferredReports,
    ) -> None:
        self._index = index
        self._store = store
        self._keys = keys
        self._aborter = aborter
        self._orphans = orphans
        self._reporter = reporter
        self._deferred = deferred
        # Objects that the transaction of the mark deleted: their reports are complete.
        self._deleted_by_mark: set[Incarnation] = set()
        # Keys whose deletion is from before the term, and was reported in it.
        self._reported_late: set[bytes] = set()

    def start(self) -> None:
        """Start a term: other leaders may have reported deletions before it."""
        self._reported_late.clear()

    async def on_requested(self, seen: KeyValue) -> bool:
        """End an action whose deletion is requested, if only our finalizer remains.

        Returns:
            Whether the action was ended: then the watch delivers its terminal state.
        """
        return await self._aborter.on_deletion_requested(seen)

    def note_deleted_by_mark(self, incarnation: Incarnation) -> None:
        """Note that the transaction of the mark deleted an object."""
        self._deleted_by_mark.add(incarnation)

    def supersede(self, deferred: ActionUpdate) -> None:
        """Forget a deferred deletion, because a newer state of its key is handled."""
        self._deleted_by_mark.discard(deferred.incarnation)
        self._index.forget_deletion(deferred.key, deferred.revision)

    async def report(self, change: Change, update: ActionUpdate) -> bool:
        """Report a deletion if necessary, and handle the action's children and abort marker.

        Returns:
            Whether the deletion is done; False if its report is deferred.

        Raises:
            EtcdActionsError: A step failed; the same call has to be repeated.
        """
        key = update.key
        is_trace = key.startswith(self._keys.traces)
        needed = not is_trace and self._is_reportable(update)
        if needed and change.mod_revision < self._reporter.calls.term_revision:
            needed = not await self._is_replaced(update)
            if needed:
                self._reported_late.add(key)
        started = trio.current_time()
        accepted = needed and await self._reporter.report(update, None, None)
        await self._reporter.dead_letters.carry(update, None)
        if not is_trace and self._has_its_key(update):
            await self._orphans.on_owner_deleted(update)
            await self._aborter.on_action_deleted(update.action_id, update.namespace)
        if accepted and started < (until := self._reporter.uncertain_until(key)):
            self._deferred.put(untimed(change), until)
            return False
        return True

    def done(self, update: ActionUpdate) -> None:
        """Forget a deletion that is done."""
        self._deleted_by_mark.discard(update.incarnation)
        self._index.forget_deletion(update.key, update.revision)

    def _is_reportable(self, update: ActionUpdate) -> bool:
        reported = update.recorded or update.incarnation in self._deleted_by_mark
        # After a late report about an earlier object of the key, this one has to be the last.
        if reported and update.key not in self._reported_late:
            return False
        return self._reporter.is_reportable(update.phase, True)

    async def _is_replaced(self, deleted: ActionUpdate) -> bool:
        """Whether the action was created again: another leader may have reported the deletion."""
        kv = await self._store.get(deleted.key)
        if kv is None:
            return False
        try:
            action = codec_of(kv.value).decode(kv.value, key=kv.key, revision=kv.mod_revision)
        except DecodeError:
            return False
        return action.action_id == deleted.action_id

    def _has_its_key(self, update: ActionUpdate) -> bool:
        """Whether the object was below the key that it names; only then has it children."""
        try:
            _, name = parse_key(self._keys.prefix, update.key)
        except DecodeError:
            return False
        return name == update.action_id.object_name
