"""Aborts an action and all below it: a state first, before anything is deleted.

An abort begins with one transaction, which writes the end of the action and creates a marker.
While the marker is there nothing can be enqueued below the action, at any depth: each enqueue
compares that. So the list of what is below can be made in peace, and an abort that was cut off
is finished by the process that finds the marker. It stays until the object of the action is gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
import structlog
import trio

from etcd_actions._internal.containment import Containment
from etcd_actions._internal.containment import describe as failure_text
from etcd_actions.actions.rewrite import utc_now
from etcd_actions.actions.stored_action import (
    StoredAction,
    check_identity,
    check_incarnation,
    describe,
    missing,
    same_action,
    same_run,
)
from etcd_actions.codecs import codec_of
from etcd_actions.errors import DecodeError, EtcdActionsError, EtcdError, InvalidArgument, NotFound
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Delete,
    Get,
    KeyRange,
    KeyValue,
    Operation,
    Put,
    RangeResult,
    Txn,
)
from etcd_actions.model import (
    ANNOTATION_ABORT_REASON,
    ANNOTATION_ABORTED_BY,
    DEFAULT_NAMESPACE,
    FINALIZER_RECORD,
    ActionId,
    Incarnation,
    Keyspace,
    Phase,
    canonical_name,
    object_key,
)
from etcd_actions.model.conditions import MAX_MESSAGE, rfc3339, write_phase
from etcd_actions.model.flyte_types import EnrichedIdentity
from etcd_actions.storage.store import Store

_MOST_ABORTED_BY = 4096
_SIDE_BY_SIDE = 256
"""Enough for full groups of the group commit, two of which are in flight."""
_TURN = 64
"""Values that are decoded before others have their turn."""

_log = structlog.get_logger(__name__)


class AbortResult(NamedTuple):
    """What an abort did.

    Attributes:
        aborted: The names of the actions that it ended, the action itself among them.
        ended: The phase in which the action was over before; None where it was not.
        recorded: Whether that was recorded already: then nothing at all was done.
    """

    aborted: tuple[str, ...]
    ended: Phase | None = None
    recorded: bool = False


class Marker(msgspec.Struct, frozen=True, rename="camel"):
    """What the key of an abort holds: enough to finish it."""

    uid: str
    project: str
    domain: str
    run: str
    name: str
    org: str
    reason: str
    aborted_by: str
    at: str
    create_revision: int = 0
    """Of the aborted object; 0 in the markers of versions that did not keep it."""

    @property
    def action_id(self) -> ActionId:
        """Which action is aborted."""
        return ActionId(self.project, self.domain, self.run, self.name, self.org)

    def is_about(self, create_revision: int, uid: str) -> bool:
        """Whether the object that has the action's key is the one that was aborted."""
        return uid == self.uid and self.create_revision in (0, create_revision)


class Aborter:
    """Aborts the actions of one keyspace.

    Args:
        store: Where they are.
        keys: Under which keys.
        finalizer: Whether what others hold is held by our finalizer, too, until it is recorded.
        clock: The time.
        containment: The boundaries of the process.
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

    async def abort_action(
        self,
        action_id: ActionId,
        reason: str = "",
        aborted_by: str | EnrichedIdentity = "",
        *,
        incarnation: Incarnation | None = None,
    ) -> AbortResult:
        """End an action and all below it as ABORTED.

        What is over keeps its own ending. Cancelled, it may have been done in part: run
        again, or found by the next elected process, it is finished.

        Args:
            action_id: Which action.
            reason: Why.
            aborted_by: Who wanted it.
            incarnation: Which object is meant; by default the one that is there.

        Raises:
            NotFound: There is no such action, and no abort of it to be finished; or it is another
                incarnation.
            InvalidArgument: The reason or the actor is too long.
            DecodeError: The action's object cannot be read.
            EtcdError: etcd did not do it all.
        """
        by = aborted_by if isinstance(aborted_by, str) else subject_of(aborted_by)
        _check_length("reason", reason, MAX_MESSAGE)
        _check_length("aborted_by", by, _MOST_ABORTED_BY)
        key, marker_key = self._keys.task_action(action_id), self._keys.abort(action_id)
        while True:
            target, marked = await self._read(key, marker_key)
            marker = None if marked is None else _marker(marked)
            if marker is not None and not same_action(marker.action_id, action_id):
                # Of another run, whose action had that key: its abort is not to be forgotten.
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
            compares = [_unchanged(target), _as_seen(marker_key, marked)]
            if not (await self._store.txn(Txn(compares, writes))).succeeded:
                continue
            below = await self._cascade(marker)
            if action.is_terminal:
                return AbortResult(below, action.phase)
            return AbortResult((found.name, *below))

    async def resume(self) -> None:
        """Finish the aborts that were cut off, and forget those whose action is gone.

        Each is a unit of its own: one that cannot be finished holds up no other. What fails
        because of stored values that cannot be read is logged, and left to the next time.

        Raises:
            EtcdError: etcd did not do it all.
        """
        kvs, _ = await self._store.read(KeyRange.of_prefix(self._keys.aborts))
        failure: EtcdError | None = None
        seen: set[str] = set()
        for kv in kvs:
            marker = _marker(kv)
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
        self._containment.retain("abort", seen)
        if failure is not None:
            raise failure

    async def _finish(self, key: bytes, marker: Marker) -> None:
        aborter = self._within(key, self._keys.aborts)
        if aborted := await aborter._cascade(marker):
            _log.info("abort_finished", action=describe(marker.action_id), aborted=len(aborted))
        await aborter._forget(marker)

    async def deletion_asked(self, kv: KeyValue) -> bool:
        """End an action that is to be deleted and that nobody but this package holds.

        Whoever deletes through an API server sets ``deletionTimestamp`` and leaves the rest
        to the finalizers. When ours is the last one, nobody else will end the action.

        Returns:
            Whether it was, or was about to be, ended; False where somebody else holds it.

        Raises:
            EtcdError: etcd did not do it.
        """
        action = StoredAction.of(kv)
        if any(each != FINALIZER_RECORD for each in action.metadata.finalizers):
            return False
        # Changed meanwhile it comes again, by the watch.
        await self._store.compare_and_put(kv, self._aborted(kv, "deleted", ""))
        return True

    async def action_gone(self, action_id: ActionId, namespace: str) -> None:
        """Forget the abort of an action whose object was deleted.

        An abort that cannot be finished, since stored values cannot be read, is logged and
        left to :meth:`resume`.

        Raises:
            EtcdError: etcd did not do it.
        """
        keys = self._keys.within(namespace)
        aborter = self._of(keys)
        marked = await self._store.get(keys.abort(action_id))
        marker = None if marked is None else _marker(marked)
        if marker is None or marked is None:
            return
        try:
            await aborter._cascade(marker)
        except DecodeError as error:
            key = marked.key.decode(errors="backslashreplace")
            _log.error("abort_not_finished", key=key, reason=str(error))
            return
        await aborter._forget(marker)

    async def _read(self, *keys: bytes) -> list[KeyValue | None]:
        """Several keys at one revision."""
        result = await self._store.txn(Txn([], [Get(KeyRange.of_key(key)) for key in keys]))
        found: list[KeyValue | None] = []
        for response in result.responses:
            assert isinstance(response, RangeResult)
            found.append(response.kvs[0] if response.kvs else None)
        return found

    async def _cascade(self, marker: Marker) -> tuple[str, ...]:
        """End all below an action, and the action itself where somebody revived it.

        Behind the marker nothing is enqueued there, so one list has it all. There is another one
        only where some key was made since, by whatever does not look at markers.
        """
        aborted: set[str] = set()
        prefix, *_ = self._keys.of(marker.action_id).run_prefixes(marker.run)
        keys = KeyRange.of_prefix(prefix)
        while True:
            kvs, revision = await self._store.read(keys)
            going_on = await _going_on(kvs, marker)
            if not going_on or (
                await self._end_all(going_on, marker, aborted)
                and await self._has_nothing_newer(keys, revision)
            ):
                return tuple(sorted(aborted))

    async def _end_all(
        self, going_on: Sequence[_GoingOn], marker: Marker, aborted: set[str]
    ) -> bool:
        """End some actions, and add their names to those aborted.

        Returns:
            Whether each of them is over; False where another object took the place of one.
        """
        left = iter(going_on)
        replaced: list[_GoingOn] = []
        failures: list[EtcdActionsError] = []

        async def worker() -> None:
            for one in left:
                try:
                    ended, applied = await self._end(one, marker)
                except EtcdActionsError as error:
                    failures.append(error)
                    continue
                if applied:
                    aborted.add(one.name)
                if not ended:
                    replaced.append(one)

        async with trio.open_nursery() as nursery:
            for _ in range(min(_SIDE_BY_SIDE, len(going_on))):
                nursery.start_soon(worker)
        if failures:
            # The others are ended: one that cannot be must not keep them.
            raise next((each for each in failures if isinstance(each, EtcdError)), failures[0])
        return not replaced

    async def _end(self, one: _GoingOn, marker: Marker) -> tuple[bool, bool]:
        """End an action, however often it changes meanwhile.

        Returns:
            Whether it is over, and whether it was ended here.
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
                # It would be found going on again and again.
                raise DecodeError("it cannot be ended", key=seen.key, revision=seen.mod_revision)
            try:
                action = StoredAction.of(current)
            except DecodeError:
                return False, False
            if action.metadata.uid != one.uid:
                return False, False
            if action.is_terminal:
                return True, False
            seen = current

    async def _has_nothing_newer(self, keys: KeyRange, revision: int) -> bool:
        """Whether no key of a range was made after a revision."""
        start, end = keys
        made = Compare(
            start, CompareTarget.CREATE_REVISION, CompareResult.LESS, revision + 1, range_end=end
        )
        return (await self._store.read_txn(Txn([made], []))).succeeded

    async def _forget(self, marker: Marker) -> None:
        """Delete a marker, if the action's object is gone."""
        action_id = marker.action_id
        absent = Compare(
            self._keys.task_action(action_id), CompareTarget.VERSION, CompareResult.EQUAL, 0
        )
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


def aborted_value(
    kv: KeyValue,
    reason: str,
    by: str,
    *,
    now: datetime,
    delete: bool = False,
    finalizer: bool = True,
) -> bytes:
    """The value of an object, with the action ended as ABORTED.

    Where somebody else holds the object its deletion is asked for, as an API server does, so
    that he acts.

    Args:
        kv: The object as it is.
        reason: Why.
        by: Who wanted it.
        now: The time.
        delete: Ask for its deletion in any case.
        finalizer: Whether our finalizer is to hold what is to be deleted.

    Raises:
        DecodeError: The value cannot be read.
    """
    codec = codec_of(kv.value)
    tree = codec.decode_tree(kv.value, key=kv.key, revision=kv.mod_revision)
    write_phase(tree, Phase.ABORTED, now=now, message=reason)
    annotations = tree["metadata"].get("annotations") or {}
    tree["metadata"]["annotations"] = annotations
    if reason:
        annotations[ANNOTATION_ABORT_REASON] = reason
    if by:
        annotations[ANNOTATION_ABORTED_BY] = by
    if not annotations:
        del tree["metadata"]["annotations"]
    finalizers = tree["metadata"].get("finalizers") or []
    if delete or any(each != FINALIZER_RECORD for each in finalizers):
        ask_for_deletion(tree, now, finalizer=finalizer)
    return encoded(kv, tree)


def encoded(kv: KeyValue, tree: dict[str, Any]) -> bytes:
    """A tree in the form that the object has, after a change of neither spec nor managedFields.

    Raises:
        DecodeError: The object cannot be written so: it would be too large, say.
    """
    unchanged = (tree.get("spec"), tree["metadata"].get("managedFields"))
    try:
        return codec_of(kv.value).encode_tree(tree, unchanged=unchanged)
    except (TypeError, ValueError) as error:
        reason = f"it cannot be changed: {error}"
        raise DecodeError(reason, key=kv.key, revision=kv.mod_revision) from None


def ask_for_deletion(tree: dict[str, Any], now: datetime, *, finalizer: bool = True) -> bool:
    """Say in an object's tree that it is to be deleted; held by us until it is recorded.

    Without our finalizer nobody may hold it: an API server deletes it then with its next change,
    recorded or not.
    """
    metadata = tree["metadata"]
    if metadata.get("deletionTimestamp"):
        return False
    finalizers = metadata.get("finalizers") or []
    if finalizer and FINALIZER_RECORD not in finalizers:
        metadata["finalizers"] = [*finalizers, FINALIZER_RECORD]
    metadata["deletionTimestamp"] = rfc3339(now)
    metadata["deletionGracePeriodSeconds"] = 0
    metadata["generation"] = (metadata.get("generation") or 0) + 1
    return True


def subject_of(identity: EnrichedIdentity) -> str:
    """Who it is: the user, else the application."""
    subject: str = identity.user.id.subject or identity.application.id.subject
    return subject


class _GoingOn(NamedTuple):
    """An object of an action that is to be ended."""

    kv: KeyValue
    name: str
    uid: str


class _Below(NamedTuple):
    """An object of a run, and what it is below."""

    kv: KeyValue
    uid: str
    is_over: bool
    parent: str
    parent_uid: str


async def _going_on(kvs: Iterable[KeyValue], marker: Marker) -> list[_GoingOn]:
    """What of a run is the aborted action or below it, and not over.

    Others have their turn in between.
    """
    found: dict[str, _Below] = {}
    children: dict[str, list[str]] = {}
    for number, kv in enumerate(kvs, 1):
        if not number % _TURN:
            await trio.lowlevel.checkpoint()
        try:
            action = StoredAction.of(kv)
        except DecodeError as error:
            key = kv.key.decode(errors="backslashreplace")
            _log.error("value_undecodable", key=key, reason=error.reason)
            continue
        action_id = action.action_id
        if not same_run(action_id, marker.action_id):
            continue
        name = canonical_name(action_id.run, action_id.name)
        parent = canonical_name(action_id.run, action.parent)
        owners = action.metadata.owner_references
        found[name] = _Below(
            kv, action.metadata.uid, action.is_terminal, parent, owners[0].uid if owners else ""
        )
        if parent:
            children.setdefault(parent, []).append(name)
    top = canonical_name(marker.run, marker.name)
    waiting = [(top, marker.uid)]
    seen: set[str] = set()
    going_on = []
    while waiting:
        name, uid = waiting.pop()
        one = found.get(name)
        if name in seen or (name != top and one is None):
            continue
        seen.add(name)
        # Made again since, an action is another one, and so is what is below it.
        meant, until = one is not None and one.uid == uid, math.inf
        if name == top and one is not None and one.uid == uid:
            meant = marker.is_about(one.kv.create_revision, uid)
            # Both may have one uid: what came later is below the later one.
            until = math.inf if meant else one.kv.create_revision
        if one is not None and meant and not one.is_over:
            going_on.append(_GoingOn(one.kv, name, one.uid))
        for child in children.get(name, ()):
            below = found[child]
            if below.parent_uid in ("", uid) and below.kv.create_revision < until:
                waiting.append((child, below.uid))
    return going_on


def _marker(kv: KeyValue) -> Marker | None:
    marker, reason = read_marker(kv)
    if reason:
        key = kv.key.decode(errors="backslashreplace")
        _log.error("abort_marker_undecodable", key=key, reason=reason)
    return marker


def read_marker(kv: KeyValue) -> tuple[Marker | None, str]:
    """A stored marker; or why it is none, whatever somebody has stored there."""
    try:
        marker = msgspec.json.decode(kv.value, type=Marker)
        name = marker.action_id.object_name
        # Names that make no key are no action's.
        object_key(b"", DEFAULT_NAMESPACE, name)
    except Exception as error:
        return None, failure_text(error)
    if kv.key.rpartition(b"/")[2] != name.encode():
        return None, f"it is about another action: {name}"[:200]
    return marker, ""


def _unchanged(kv: KeyValue) -> Compare:
    return Compare(kv.key, CompareTarget.MOD_REVISION, CompareResult.EQUAL, kv.mod_revision)


def _as_seen(key: bytes, kv: KeyValue | None) -> Compare:
    revision = 0 if kv is None else kv.mod_revision
    return Compare(key, CompareTarget.MOD_REVISION, CompareResult.EQUAL, revision)


def _check_length(field: str, text: str, most: int) -> None:
    if len(text) > most:
        raise InvalidArgument(field, f"it has {len(text)} characters: give at most {most}")
