"""Aborts an action and all actions below it: writes the phase ABORTED, and deletes nothing.

An abort starts with one transaction, which writes the phase of the action and creates a marker. The
transaction of each enqueue compares that there is no marker of an action above. So while the marker
exists no action can be enqueued below, at any depth, and one list has all descendants. The next
leader finishes an abort that was interrupted. The marker is deleted after the action's object.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec
import structlog
import trio

from etcd_actions._internal.containment import Containment
from etcd_actions.actions.abort_marker import Marker, logged_marker
from etcd_actions.actions.abort_tree import RunningObject, all_below, was_aborted
from etcd_actions.actions.aborted_object import aborted_value, subject_of
from etcd_actions.actions.rewrite import utc_now
from etcd_actions.actions.stored_action import (
    StoredAction,
    check_identity,
    check_incarnation,
    describe,
    missing,
    same_action,
)
from etcd_actions.errors import DecodeError, EtcdActionsError, EtcdError, InvalidArgument, NotFound
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Delete,
    KeyRange,
    KeyValue,
    Operation,
    Put,
    Txn,
)
from etcd_actions.model import (
    FINALIZER_RECORD,
    ActionId,
    Incarnation,
    Keyspace,
    Phase,
)
from etcd_actions.model.conditions import MAX_MESSAGE, rfc3339
from etcd_actions.model.flyte_types import EnrichedIdentity
from etcd_actions.storage.store import Store

_MOST_ABORTED_BY = 4096
_SIDE_BY_SIDE = 256
"""Actions that are ended at a time: enough for two full groups of the group commit."""

_log = structlog.get_logger(__name__)


class AbortResult(NamedTuple):
    """The result of an abort.

    Attributes:
        aborted: The names of the actions that it ended, the action itself among them, and those
            that the leader ended for it at the same time.
        ended: The terminal phase that the action had before; None if it had none.
        recorded: Whether that phase was recorded already: then nothing was done.
    """

    aborted: tuple[str, ...]
    ended: Phase | None = None
    recorded: bool = False


class Aborter:
    """Aborts the actions of one keyspace.

    Args:
        store: Reads and writes the keys.
        keys: The keyspace.
        finalizer: Whether an object with another finalizer gets ours, too, until it is recorded.
        clock: Returns the present time.
        containment: Counts unexpected failures.
    """

    def __init__(
        self,
        store: Store,
        keys: Keyspace,
        *,
        finalizer: bool = True,
        clock: Callable[[], datetime] = utc_now,
        containment: Containment | None = None,
    ) -> None:
        self._finalizer = finalizer
        self._containment = containment or Containment()
        self._store = store
        self._keys = keys
        self._clock = clock
        # The keys of the markers of the last call of resume().
        self._resumed: set[str] = set()

    async def abort_action(
        self,
        action_id: ActionId,
        reason: str = "",
        aborted_by: str | EnrichedIdentity = "",
        *,
        incarnation: Incarnation | None = None,
    ) -> AbortResult:
        """End an action and all actions below it as ABORTED.

        A terminal action keeps its phase. After a cancellation the abort may be partly done: the
        same call, or the next leader, finishes it.

        Args:
            action_id: The action.
            reason: The reason, for people.
            aborted_by: The subject that requested it.
            incarnation: Abort only this object; by default the one that exists.

        Raises:
            NotFound: There is no such action, and no abort of it to finish; or it is another
                incarnation.
            InvalidArgument: The reason or the subject is too long.
            DecodeError: The object of the action cannot be decoded.
            EtcdError: A request failed; the same call finishes the abort.
        """
        by = aborted_by if isinstance(aborted_by, str) else subject_of(aborted_by)
        _check_length("reason", reason, MAX_MESSAGE)
        _check_length("aborted_by", by, _MOST_ABORTED_BY)
        key, marker_key = self._keys.task_action(action_id), self._keys.abort(action_id)
        while True:
            target, marked = await self._store.get_all(key, marker_key)
            marker = None if marked is None else logged_marker(marked)
            if marker is not None and not same_action(marker.action_id, action_id):
                # The marker is of another run's action that had the key: finish that abort.
                await self._cascade(marker)
                marker = None
            if target is None:
                if marker is None:
                    raise NotFound(missing(action_id, self._keys))
                aborted = await self._cascade(marker)
                await self._forget(marker)
                return AbortResult(aborted)
            action = StoredAction.of(target)
            check_identity(action, action_id)
            if incarnation is not None:
                check_incarnation(action, incarnation)
            about = (action.create_revision, action.metadata.uid)
            if marker is not None and marker.is_about(*about):
                ended = action.phase if action.is_terminal else None
                return AbortResult(await self._cascade(marker), ended)
            if action.is_terminal and action.is_recorded:
                return AbortResult((), action.phase, recorded=True)
            found = action.action_id
            marker = Marker(
                action.metadata.uid,
                found.project,
                found.domain,
                found.run,
                found.name,
                found.org or action_id.org,
                reason,
                by,
                rfc3339(self._clock()),
                action.create_revision,
            )
            writes: list[Operation] = [Put(marker_key, msgspec.json.encode(marker))]
            if not action.is_terminal:
                writes.append(Put(key, self._aborted(target, reason, by), target.lease))
            compares = [_is_unchanged_since(key, target), _is_unchanged_since(marker_key, marked)]
            result = await self._store.txn(Txn(compares, writes))
            if not result.succeeded:
                continue
            below = await self._cascade(marker, result.revision)
            if action.is_terminal:
                return AbortResult(below, action.phase)
            return AbortResult((found.name, *below))

    async def resume(self, markers: KeyRange | None = None) -> None:
        """Finish interrupted aborts, and delete the markers of deleted actions.

        Each abort is a unit of its own: a failed one delays no other. An abort with values that
        cannot be decoded is logged, and retried by the next call.

        Args:
            markers: The range of the markers; by default all.

        Raises:
            EtcdError: A request failed.
        """
        kvs, _ = await self._store.read(markers or KeyRange.of_prefix(self._keys.aborts))
        failure: EtcdError | None = None
        seen: set[str] = set()
        for kv in kvs:
            marker = logged_marker(kv)
            if marker is None:
                continue
            key = kv.key.decode(errors="backslashreplace")
            seen.add(key)
            with self._containment.unit("abort", key, parks=True) as unit:
                try:
                    await self._finish(kv.key, marker)
                except DecodeError as error:
                    _log.error("abort_not_finished", key=key, reason=str(error))
                except EtcdError as error:
                    _log.warning("abort_not_finished", key=key, reason=str(error))
                    failure = error
            if unit.failed:
                failure = failure or EtcdError(f"the abort {key} failed unexpectedly")
        before, self._resumed = self._resumed, seen
        self._containment.forget_all("abort", before - seen)
        if failure is not None:
            raise failure

    def stop(self) -> None:
        """Forget the failures: another process finishes aborts from now on."""
        self._containment.forget_all("abort", self._resumed)
        self._resumed.clear()

    async def _finish(self, key: bytes, marker: Marker) -> None:
        aborter = self._within(key, self._keys.aborts)
        if aborted := await aborter._cascade(marker):
            _log.info("abort_finished", action=describe(marker.action_id), aborted=len(aborted))
        await aborter._forget(marker)

    async def on_deletion_requested(self, kv: KeyValue) -> bool:
        """End an action whose deletion was requested, if only our finalizer remains.

        An API server sets ``deletionTimestamp`` and waits until the owners of the finalizers have
        removed them. If there is another finalizer, its owner ends the action.

        Returns:
            Whether the action was ended here, or has changed since.

        Raises:
            EtcdError: The write failed.
        """
        action = StoredAction.of(kv)
        if any(each != FINALIZER_RECORD for each in action.metadata.finalizers):
            return False
        # If the object has changed, the watch delivers it again.
        await self._store.compare_and_put(kv, self._aborted(kv, "deleted", ""))
        return True

    async def on_action_deleted(self, action_id: ActionId, namespace: str) -> None:
        """Finish the abort of an action whose object was deleted, and delete its marker.

        An abort with values that cannot be decoded is logged; :meth:`resume` retries it.

        Raises:
            EtcdError: A request failed.
        """
        keys = self._keys.within(namespace)
        aborter = self._of(keys)
        marked = await self._store.get(keys.abort(action_id))
        marker = None if marked is None else logged_marker(marked)
        if marker is None or marked is None:
            return
        try:
            await aborter._cascade(marker)
        except DecodeError as error:
            key = marked.key.decode(errors="backslashreplace")
            _log.error("abort_not_finished", key=key, reason=str(error))
            return
        await aborter._forget(marker)

    async def _cascade(self, marker: Marker, since: int | None = None) -> tuple[str, ...]:
        """End all actions below an aborted one, and the action itself if it runs again.

        The marker prevents an enqueue there, so one list has all descendants. It lists again only
        if a key of the run was created since the list, by a writer that does not compare markers.

        Args:
            marker: The marker of the abort.
            since: The revision of the abort's transaction, to count the actions that the leader
                ended at the same time; None to count only those of this call.

        Returns:
            The names of the ended actions, sorted.
        """
        aborted: set[str] = set()
        prefix, *_ = self._keys.of(marker.action_id).run_prefixes(marker.run)
        keys = KeyRange.of_prefix(prefix)
        while True:
            kvs, revision = await self._store.read(keys)
            below = await all_below(kvs, marker, since)
            aborted.update(below.aborted)
            if not below.running or (
                await self._end_all(below.running, marker, aborted, since)
                and await self._has_nothing_newer(keys, revision)
            ):
                return tuple(sorted(aborted))

    async def _end_all(
        self,
        running: Sequence[RunningObject],
        marker: Marker,
        aborted: set[str],
        since: int | None = None,
    ) -> bool:
        """End some actions, and add the names of those that it ended to ``aborted``.

        Returns:
            Whether each of them is terminal; False if another object has the key of one.
        """
        left = iter(running)
        replaced: list[RunningObject] = []
        failures: list[EtcdActionsError] = []

        async def worker() -> None:
            for one in left:
                try:
                    ended, applied = await self._end(one, marker, since)
                except EtcdActionsError as error:
                    failures.append(error)
                    continue
                if applied:
                    aborted.add(one.name)
                if not ended:
                    replaced.append(one)

        async with trio.open_nursery() as nursery:
            for _ in range(min(_SIDE_BY_SIDE, len(running))):
                nursery.start_soon(worker)
        if failures:
            # All others are ended first: one failure must not prevent that.
            raise next((each for each in failures if isinstance(each, EtcdError)), failures[0])
        return not replaced

    async def _end(
        self, one: RunningObject, marker: Marker, since: int | None
    ) -> tuple[bool, bool]:
        """End an action, and retry while it changes.

        Returns:
            Whether it is terminal, and whether this abort ended it: in this process, or in another
            one after the revision ``since``.
        """
        seen = one.kv
        while True:
            value = self._aborted(seen, marker.reason, marker.aborted_by)
            applied, current = await self._store.compare_and_put(seen, value)
            if applied:
                return True, True
            if current is None or current.create_revision != seen.create_revision:
                return False, False
            if current.mod_revision == seen.mod_revision:
                # The write failed though the object is unchanged: a retry would not end.
                raise DecodeError("it cannot be ended", key=seen.key, revision=seen.mod_revision)
            try:
                action = StoredAction.of(current)
            except DecodeError:
                return False, False
            if action.metadata.uid != one.uid:
                return False, False
            if action.is_terminal:
                return True, since is not None and was_aborted(action, marker.at)
            seen = current

    async def _has_nothing_newer(self, keys: KeyRange, revision: int) -> bool:
        """Whether no key of a range was created after a revision."""
        start, end = keys
        made = Compare(
            start, CompareTarget.CREATE_REVISION, CompareResult.LESS, revision + 1, range_end=end
        )
        return (await self._store.read_txn(Txn([made], []))).succeeded

    async def _forget(self, marker: Marker) -> None:
        """Delete a marker, if the action's object does not exist."""
        action_id = marker.action_id
        absent = Compare.incarnation(self._keys.task_action(action_id), 0)
        delete = Delete(KeyRange.of_key(self._keys.abort(action_id)))
        await self._store.txn(Txn([absent], [delete]))

    def _within(self, key: bytes, prefix: bytes) -> Aborter:
        """An aborter for the namespace of a key."""
        namespace = key[len(prefix) :].partition(b"/")[0].decode(errors="replace")
        return self._of(self._keys.within(namespace))

    def _of(self, keys: Keyspace) -> Aborter:
        return Aborter(
            self._store,
            keys,
            finalizer=self._finalizer,
            clock=self._clock,
            containment=self._containment,
        )

    def _aborted(self, kv: KeyValue, reason: str, by: str) -> bytes:
        return aborted_value(kv, reason, by, now=self._clock(), finalizer=self._finalizer)


def _is_unchanged_since(key: bytes, kv: KeyValue | None) -> Compare:
    return Compare.unchanged(key, 0 if kv is None else kv.mod_revision)


def _check_length(field: str, text: str, most: int) -> None:
    if len(text) > most:
        raise InvalidArgument(field, f"it has {len(text)} characters: give at most {most}")
