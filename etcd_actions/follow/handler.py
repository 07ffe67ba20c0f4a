"""Handles each change: decodes it, notes its facts, and queues it for each receiver.

Handling waits for nothing, so the task that reads the watch does it when a change arrives. Each
receiver has a queue of its own: each subscription, and the outbox.

A key whose handling fails unexpectedly is put off: its changes are handled again, in order, with a
back-off and without limit, by a :class:`~etcd_actions.follow.workqueue.WorkQueue` that is empty
otherwise. All other keys continue.

The public methods have the names of Flyte's Go class ``ActionsClient``. docs/architecture.md has a
table of all its methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import Final, Protocol

import structlog
import trio

from etcd_actions._internal.containment import Containment
from etcd_actions._internal.histogram import Histogram
from etcd_actions.actions.condition_timeouts import ConditionTimeouts
from etcd_actions.codecs import codec_of
from etcd_actions.errors import DecodeError
from etcd_actions.follow.index import Index
from etcd_actions.follow.key_channel import Reread
from etcd_actions.follow.set_aside import SetAside
from etcd_actions.follow.subscriptions import Subscriptions, deletion_of
from etcd_actions.follow.workqueue import WorkQueue, WorkQueueSettings, WorkQueueStatistics
from etcd_actions.model import (
    API_VERSION,
    ActionObject,
    ActionUpdate,
    Summary,
    build_action_update,
    summarize,
)
from etcd_actions.watch import Change
from etcd_actions.watch.change import conflated

_MOST_VERSIONS: Final = 100
"""Other versions of the API that are logged; each is logged once."""
_RECHECK: Final = 60.0
"""Seconds between two attempts to decode a value whose decoder failed unexpectedly."""

_log: Final = structlog.get_logger(__name__)


class ReportQueue(Protocol):
    """Receives the changes to report; see :class:`etcd_actions.record.outbox.Outbox`."""

    @property
    def working(self) -> bool:
        """Whether this process is the leader, and so has to report."""

    def must_handle(self, change: Change, summary: Summary) -> bool:
        """Whether a state, or a deletion, has to be reported, marked or released."""

    def deliver(
        self, change: Change, update: ActionUpdate | None, action: ActionObject | None = None
    ) -> None:
        """Queue a state, or a deletion with its update. Never waits.

        Args:
            change: The change.
            update: The update that reports a deletion; None for a state.
            action: The decoded object of a state, if it was decoded.
        """


class Handler:
    """The sink of the processor's reflector; see the module docstring.

    Args:
        index: Notes the facts of each change.
        subscriptions: Receive the updates.
        set_aside: Keeps the values that cannot be decoded.
        reports: Receives the changes to report; None in a process that only serves subscribers.
        timeouts: Notes the conditions that wait for a signal; None without ``reports``.
        reread: Reads a value that was dropped while its key was put off.
        settings: Limits of the queue of keys that were put off.
        containment: Counts unexpected failures.
    """

    def __init__(
        self,
        index: Index,
        subscriptions: Subscriptions,
        set_aside: SetAside,
        *,
        reports: ReportQueue | None,
        timeouts: ConditionTimeouts | None,
        reread: Reread,
        settings: WorkQueueSettings,
        containment: Containment,
    ) -> None:
        self._index = index
        self._subscriptions = subscriptions
        self._set_aside = set_aside
        self._reports = reports
        self._timeouts = timeouts
        self._containment = containment
        self._put_off = WorkQueue(self._retry, reread, settings, containment=containment)
        self._versions: set[str] = set()
        # Whether a receiver accepted the last state. The next one is mostly of the same kind.
        self._has_reader = True
        # Changes that the reflector delivered.
        self._taken = 0
        self._conflated = 0
        self._handled = 0
        self._turn_times = Histogram()

    def statistics(self) -> WorkQueueStatistics:
        """The present counts; pending changes are those of keys that were put off."""
        again = self._put_off.statistics()
        return replace(
            again,
            dispatched=self._taken,
            handled=self._handled + again.handled,
            conflated=self._conflated + again.conflated,
            turn_times=self._turn_times.read(),
        )

    @property
    def oldest_delete(self) -> int | None:
        """The lowest possible revision of the deletions that are put off; None without one."""
        return self._put_off.oldest_delete() if self._put_off.has_work else None

    @property
    def has_put_off(self) -> bool:
        """Whether a key is put off: the index may lack its last state."""
        return self._put_off.has_work

    async def wait_idle(self) -> None:
        """Return once no key is put off."""
        await self._put_off.wait_idle()

    async def retry(self) -> None:
        """Handle the keys that were put off, until cancelled."""
        keep = self._containment.keep
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep, "task", "a worker of the handlers", self._put_off.worker)
            retries = self._put_off.retry_failed
            nursery.start_soon(keep, "task", "retries of the handlers", retries)
            nursery.start_soon(keep, "task", "a second look", self._recheck)

    # The reflector's sink.

    def dispatch(self, changes: Sequence[Change], /) -> None:
        """Handle changes, in order. A key whose handling fails is put off. Never waits."""
        began = perf_counter()
        self._taken += len(changes)
        put_off = self._put_off
        for change in changes:
            if put_off.has_work and put_off.has_work_for(change.kv.key):
                # Behind the changes of its key that were put off.
                self._index.note(change)
                put_off.dispatch((change,))
                continue
            try:
                self.handle_watch_event(change)
            except BaseException as error:
                self._index.note(change)
                put_off.put_off(change, error)
            else:
                self._handled += 1
        self._turn_times.observe(perf_counter() - began)

    async def wait_list_capacity(self) -> None:
        """There is capacity: all that was read is handled."""

    async def wait_stream_capacity(self) -> None:
        """There is capacity: all that was read is handled."""

    def latest(self, changes: Sequence[Change]) -> Sequence[Change]:
        """The changes of a batch to dispatch: the last state of each key.

        States before a delete, and of another incarnation, are dispatched, too.
        """
        if len({change.key for change in changes}) == len(changes):
            return changes
        latest: list[Change] = []
        indexes: dict[bytes, int] = {}
        for change in changes:
            index = indexes.get(change.key)
            if index is not None and (merged := conflated(latest[index], change)) is not None:
                latest[index] = merged
                self._conflated += 1
            else:
                indexes[change.key] = len(latest)
                latest.append(change)
        self._taken += len(changes) - len(latest)
        return latest

    async def _retry(self, change: Change) -> None:
        try:
            self.handle_watch_event(change)
        except BaseException:
            self._index.note(self._put_off.newest_of(change.key) or change)
            raise
        if (newest := self._put_off.newest_of(change.key)) is not None:
            self._index.note(newest)

    async def _recheck(self) -> None:
        """Handle values again whose decoder failed unexpectedly, as for lack of memory."""
        while True:
            await trio.sleep(_RECHECK)
            for change in self._set_aside.doubtful():
                # If the key has work, its newer value is decoded anyway.
                if self._put_off.dispatch_if_idle(change):
                    self._set_aside.recheck(change.key)

    # The steps.

    def handle_watch_event(self, change: Change) -> None:
        """Decode a change, note its facts in the index, and deliver it.

        If a receiver accepted the last state, summary and object are decoded in one pass.
        Otherwise only the summary is decoded, and the object once a receiver accepts it: the
        receivers accept few states of a list. A value that cannot be decoded is counted, logged
        and set aside until the next good write of its key. If the decoder failed for another
        reason, it is called again each minute.
        """
        key = change.kv.key
        if not change.kv.version:
            self._handle_deletion(change)
            return
        try:
            summary, action, refusal = self._read(change)
        except BaseException as error:
            self._index.note(change)
            self._set_aside.add(change, error)
            return
        self._index.put(key, summary)
        if summary.condition and self._timeouts is not None:
            self._timeouts.note(key, summary)
        if summary.other_version:
            self._note_version(summary.other_version, change)
        self._set_aside.forget(key)
        if refusal is not None:
            # Its deletion can be reported, and nothing else.
            self._set_aside.add(change, refusal)
        self.handle_task_action_event(change, summary, action)

    def _read(self, change: Change) -> tuple[Summary, ActionObject | None, DecodeError | None]:
        """The facts of a state, and its object if a receiver accepted the last state.

        If only the facts can be decoded, the third is the error of the object.
        """
        kv, refusal = change.kv, None
        key, value, revision, created = kv.key, kv.value, kv.mod_revision, kv.create_revision
        codec = codec_of(value)
        if self._has_reader:
            try:
                action = codec.decode(value, key=key, revision=revision)
            except DecodeError as error:
                refusal = error
            else:
                return summarize(action, revision, created), action, None
        summary = codec.summarize(value, key=key, revision=revision, create_revision=created)
        return summary, None, refusal

    def _handle_deletion(self, change: Change) -> None:
        key = change.key
        known = self._index.get(key)
        self._set_aside.forget(key)
        if self._timeouts is not None:
            self._timeouts.forget(key)
        previous = self._previous(change)
        if known is None and previous is not None:
            known = summarize(previous, change.mod_revision)
        if known is not None:
            self.handle_task_action_event(change, known, previous)
        elif (shown := self._index.expected(key)) is not None:
            # It was created and deleted while the watch was interrupted.
            self.notify_subscribers(deletion_of(shown, change.mod_revision))
        # Last: if a step above fails, the retry needs the facts.
        self._index.remove(key)

    def handle_task_action_event(
        self, change: Change, summary: Summary, action: ActionObject | None = None
    ) -> None:
        """Notify subscribers, then queue the change for the outbox, if it has to be reported.

        Args:
            change: The change.
            summary: The facts of the state, or of the last state before a deletion.
            action: The object, if it was decoded; of a deletion the last one, if etcd sent it.
        """
        kv, reports = change.kv, self._reports
        deleted = not kv.version
        subscribed = self._subscriptions.has_reader_of(summary)
        queue = reports is not None and (deleted or reports.must_handle(change, summary))
        if not deleted:
            self._has_reader = subscribed or queue
            if self._has_reader and action is None and kv.key not in self._set_aside:
                action = self._object(change)
        update = None
        if deleted or (subscribed and action is not None):
            try:
                update = build_action_update(
                    action or summary,
                    key=kv.key,
                    revision=kv.mod_revision,
                    create_revision=summary.create_revision,
                    deleted=deleted,
                )
            except BaseException as error:
                if deleted:
                    raise
                self._set_aside.add(change, error)
                return
        if subscribed and update is not None:
            self.notify_subscribers(update)
        if not queue or reports is None:
            return
        if deleted and update is not None:
            # Every process keeps it until it is reported: each can become the leader.
            self._index.add_deletion(update, synthesised=change.synthesised)
        if reports.working:
            reports.deliver(change, update if deleted else None, None if deleted else action)

    def notify_subscribers(self, update: ActionUpdate) -> None:
        """Deliver an update to the subscriptions. Never waits."""
        self._subscriptions.notify(update)

    def _object(self, change: Change) -> ActionObject | None:
        """The object of a state whose facts were decoded; None if the object cannot be decoded."""
        try:
            kv = change.kv
            return codec_of(kv.value).decode(kv.value, key=kv.key, revision=kv.mod_revision)
        except BaseException as error:
            self._set_aside.add(change, error)
            return None

    def _previous(self, change: Change) -> ActionObject | None:
        """The object before a deletion; None if etcd did not send it, or it cannot be decoded."""
        if not (value := change.prev_value):
            return None
        try:
            return codec_of(value).decode(value, key=change.key)
        except BaseException as error:
            self._set_aside.add(change, error)
            return None

    def _note_version(self, version: str, change: Change) -> None:
        """Log once that objects are stored at another version of the API."""
        if version in self._versions or len(self._versions) >= _MOST_VERSIONS:
            return
        self._versions.add(version)
        with self._containment.unit("log_line", "stored_at_another_version"):
            _log.warning(
                "stored_at_another_version",
                version=version,
                known=API_VERSION,
                key=change.key.decode(errors="backslashreplace"),
                revision=change.mod_revision,
            )
