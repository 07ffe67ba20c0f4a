"""Creates actions: tasks, conditions, traces.

One transaction compares that the name is free, that the parent is the incarnation that was read,
and that there is no marker of an abort of the parent, or of an action above it. It does not compare
the parent's state, which changes often.

Usually nothing is read first. The first transaction guesses that the name is free, that the run has
no marker of an abort, and that the parent is the cached object. It compares the parent's revision,
because a child inherits labels and annotations, which may change, and because a terminal or deleted
parent gets no children. If a guess is wrong, the same transaction reads the name, the markers and
the parent, and the next one compares only the parent's incarnation. So one more transaction
decides, and a parent that changes often delays no child. Below a parent that changed, and in a run
with a marker, the next enqueue reads first.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

from etcd_actions.actions import conflicts, object_builder, validation
from etcd_actions.actions.abort import Aborter
from etcd_actions.actions.abort_marker import read_marker
from etcd_actions.actions.enqueue_snapshot import (
    Pending,
    Snapshot,
    check_ancestors,
    guards_of,
    revision_of,
    snapshot_of,
)
from etcd_actions.actions.parents import ParentCache
from etcd_actions.actions.read_cache import ReadCache
from etcd_actions.actions.recovery import Recovery
from etcd_actions.actions.rewrite import utc_now
from etcd_actions.actions.stored_action import (
    StoredAction,
    describe,
    missing,
    same_action,
    same_run,
)
from etcd_actions.codecs import Codec, codec_of
from etcd_actions.errors import (
    Aborted,
    ActionError,
    DecodeError,
    EtcdError,
    InvalidArgument,
    OutcomeUnknown,
    RequestTooLarge,
    Unavailable,
)
from etcd_actions.etcd.api import (
    KeyValue,
    Put,
    Txn,
)
from etcd_actions.model import (
    ACTION_TYPE_TRACE,
    ANNOTATION_DIGEST,
    ActionObject,
    ErrorState,
    Keyspace,
)
from etcd_actions.model.flyte_types import Action, RunSpec
from etcd_actions.storage.store import Store


class Enqueued(NamedTuple):
    """The result of an enqueue.

    Attributes:
        action: The stored object.
        created: Whether this call created it; False if the same request did so before.
    """

    action: StoredAction
    created: bool


class _NewObject(NamedTuple):
    """An object to write, and its bytes."""

    action: ActionObject
    value: bytes


class Enqueuer:
    """Creates the actions of one keyspace.

    Args:
        store: Reads and writes the keys.
        keys: The keyspace.
        codec: The stored form of new objects.
        finalizer: Whether tasks and conditions get our finalizer, until they are recorded.
        clock: Returns the present time.
        new_uid: Makes the uid of an object.
        cache: The objects that were read or written last; by default an empty cache.
    """

    def __init__(
        self,
        store: Store,
        keys: Keyspace,
        codec: Codec,
        *,
        finalizer: bool = True,
        clock: Callable[[], datetime] = utc_now,
        new_uid: Callable[[], str] = lambda: str(uuid.uuid4()),
        cache: ReadCache | None = None,
    ) -> None:
        self._store = store
        self._keys = keys
        self._codec = codec
        self._clock = clock
        self._new_uid = new_uid
        self._finalizer = finalizer
        self._cache = ReadCache() if cache is None else cache
        self._parents = ParentCache()
        self._recovery = Recovery(store, keys, clock=clock)
        self._aborter = Aborter(store, keys, finalizer=finalizer, clock=clock)

    async def enqueue(
        self,
        action: Action,
        run_spec: RunSpec | None = None,
        *,
        trace_error: ErrorState | None = None,
        companions: Sequence[Put] = (),
    ) -> Enqueued:
        """Create an action, see :meth:`etcd_actions.client.ActionsClient.enqueue`.

        In a run that recovers another one, an action that succeeded there is created as RECOVERED.
        After a cancellation the action may have been created.

        Raises:
            InvalidArgument: A field is missing or has a value that cannot be stored.
            AlreadyExists: Another request created the action.
            NameTaken: Its key has the object of another action, or an undecodable value.
            Aborted: The parent does not exist, or it or an action above it is aborted.
            OutcomeUnknown: It may have been created, and could not be read back.
            EtcdError: A request failed; the action was not created.
        """
        request = object_builder.read_request(action, run_spec, trace_error)
        try:
            pending = Pending.of(request, self._keys, companions, self._new_uid())
        except ValueError as error:
            raise InvalidArgument("action_id", str(error)) from None
        snapshot = self._guess(pending) or await self._read_snapshot(pending)
        tried = 0
        while True:
            try:
                built = await self._build(pending, snapshot)
            except ActionError:
                if not snapshot.guessed:
                    raise
                snapshot = await self._read_snapshot(pending)
                continue
            if isinstance(built, StoredAction):
                return Enqueued(built, created=built.metadata.uid == pending.uid)
            if left := self._was_aborted(request, snapshot):
                if left == tried:
                    name = describe(request.action_id)
                    raise Aborted(f"an abort of {name} cannot be finished; the log has why")
                tried = left
                namespace = self._keys.namespace_of(request.action_id)
                await self._aborter.on_action_deleted(request.action_id, namespace)
                snapshot = await self._read_snapshot(pending)
                continue
            written = await self._write(pending, snapshot, built)
            if isinstance(written, StoredAction):
                return Enqueued(written, created=True)
            snapshot = written

    async def _write(
        self, pending: Pending, snapshot: Snapshot, built: _NewObject
    ) -> StoredAction | Snapshot:
        """Write an object if the snapshot still holds; otherwise return the present snapshot."""
        key, value = pending.key, built.value
        guards = guards_of(pending, snapshot)
        txn = Txn(guards, [Put(key, value), *pending.companions], pending.lookups)
        try:
            result = await self._store.txn(txn)
        except OutcomeUnknown as lost:
            self._forget()
            kv = await self._reread(key, lost)
            # A trace that is recorded again keeps its uid.
            rewritten = kv.value == value and kv.mod_revision > revision_of(snapshot.present)
            if rewritten or _uid(kv) == pending.uid:
                return StoredAction.of(kv)
            if snapshot.guessed:
                # The object existed before, by the same request or another one.
                return await self._read_snapshot(pending)
            raise
        except Unavailable:
            self._forget()
            raise
        except EtcdError as error:
            if snapshot.guessed:
                # The same request may have been done before: then nothing has to be written.
                return await self._read_snapshot(pending)
            if not isinstance(error, RequestTooLarge):
                raise
            raise InvalidArgument(
                pending.request.kind,
                f"the object has {_bytes(value, pending.companions)} bytes, more than this etcd "
                "takes (--max-request-bytes): make it smaller",
            ) from None
        if not result.succeeded:
            found = snapshot_of(result.responses, pending.companions)
            self._note_aborts(pending, found)
            if (
                snapshot.guessed
                and found.parent
                and revision_of(snapshot.parent) != revision_of(found.parent)
            ):
                self._parents.moved(found.parent)
            return found
        present = snapshot.present
        created = result.revision if present is None else present.create_revision
        version = 1 if present is None else present.version + 1
        kv = KeyValue(key, value, created, result.revision, version)
        self._cache.put(kv)
        return StoredAction.at(kv, built.action)

    def _forget(self) -> None:
        """Clear the caches: after a lost connection etcd may be a restored store."""
        self._cache.clear()
        self._parents.clear()

    async def _reread(self, key: bytes, lost: OutcomeUnknown) -> KeyValue:
        """Read the key after a write without an answer; without a key, raise the error `lost`."""
        try:
            kv = await self._store.get(key)
        except EtcdError:
            raise lost from None
        if kv is None:
            raise lost
        return kv

    def _guess(self, pending: Pending) -> Snapshot | None:
        """Return a guessed snapshot from the caches; None if a read is necessary."""
        request = pending.request
        if request.is_root:
            spec = request.run_spec
            # A run that recovers another one is built only after it is certain that it is new.
            recovers = spec is not None and spec.relation.relation_type
            return None if recovers else Snapshot(None, (), None, guessed=True)
        key = self._keys.task_action(request.parent_id)
        kv = self._cache.get(key)
        restless = self._parents.is_restless(key)
        if kv is None or restless or self._parents.has_aborts(pending.aborts.start):
            return None
        try:
            parent = self._parents.read(kv)
        except DecodeError:
            return None
        return None if parent.inherited.recovers else Snapshot(None, (), kv, guessed=True)

    async def _read_snapshot(self, pending: Pending) -> Snapshot:
        try:
            result = await self._store.txn(Txn((), pending.lookups))
        except Unavailable:
            self._forget()
            raise
        snapshot = snapshot_of(result.responses, pending.companions)
        if snapshot.parent is not None and self._parents.rests(snapshot.parent):
            self._cache.put(snapshot.parent)
        self._note_aborts(pending, snapshot)
        return snapshot

    def _note_aborts(self, pending: Pending, snapshot: Snapshot) -> None:
        if not pending.request.is_root:
            self._parents.note_aborts(pending.aborts.start, bool(snapshot.markers))

    async def _build(self, pending: Pending, snapshot: Snapshot) -> _NewObject | StoredAction:
        """The object to write, and its bytes; or the stored object of the same request."""
        request = pending.request
        built = self._object(request, snapshot, pending.uid)
        if isinstance(built, StoredAction):
            return built
        if snapshot.companions:
            raise conflicts.companion_conflict(
                snapshot.companions[0].key, describe(request.action_id)
            )
        await check_ancestors(self._store, self._keys, request, snapshot)
        built = await self._recovery.apply(request, built)
        try:
            value = self._codec.encode(built)
        except ValueError as error:
            raise InvalidArgument(request.kind, f"it cannot be stored: {error}") from None
        validation.check_size(value, request.kind)
        return _NewObject(built, value)

    def _object(
        self, request: object_builder.Request, snapshot: Snapshot, uid: str
    ) -> ActionObject | StoredAction:
        present = None
        one_namespace = self._keys.namespace is not None
        pending = conflicts.Creation(request.action_id, request.kind, one_namespace)
        if snapshot.present is not None:
            try:
                present = StoredAction.of(snapshot.present)
            except DecodeError as error:
                raise conflicts.unreadable(snapshot.present, pending, error) from None
        if request.trace is not None:
            if present is not None and not _is_trace_of(present, request):
                raise conflicts.in_the_way(present, pending)
            built = object_builder.build_trace(
                request,
                request.trace,
                self._parent(request, snapshot),
                present,
                namespace=self._keys.namespace_of(request.action_id),
                now=self._clock(),
                new_uid=lambda: uid,
            )
        elif present is not None:
            digest = _digest(present)
            # Flyte's service stores no digest. A copy of an object has the digest of the other one.
            is_it = same_action(present.action_id, request.action_id)
            if (is_it and digest == request.digest) or (
                digest is None and object_builder.same_action(present, request)
            ):
                return present
            raise conflicts.in_the_way(present, pending)
        else:
            built = object_builder.build(
                request,
                None if request.is_root else self._parent(request, snapshot),
                namespace=self._keys.namespace_of(request.action_id),
                now=self._clock(),
                new_uid=lambda: uid,
                finalizer=self._finalizer,
            )
        validation.check(built)
        return built

    def _parent(
        self, request: object_builder.Request, snapshot: Snapshot
    ) -> object_builder.Inherited:
        requested = request.parent_id
        if snapshot.parent is None:
            raise Aborted(f"the parent is gone: {missing(requested, self._keys)}")
        try:
            parent = self._parents.read(snapshot.parent)
        except DecodeError as error:
            raise Aborted(f"the parent cannot be read: {error}") from None
        if not same_action(parent.action_id, requested):
            raise Aborted(
                f"the parent is gone: {requested.object_name} is action "
                f"{describe(parent.action_id)}"
            )
        if parent.refusal:
            raise Aborted(f"the parent, action {describe(requested)}, {parent.refusal}")
        return parent.inherited

    def _was_aborted(self, request: object_builder.Request, snapshot: Snapshot) -> int:
        """The revision of the marker of an earlier action of the same name; 0 without one.

        That abort has to be finished first: its marker would count for the new action.
        """
        if request.trace is not None:
            return 0
        own = self._keys.abort(request.action_id)
        found = next((marker for marker in snapshot.markers if marker.key == own), None)
        if found is not None and read_marker(found)[0] is None:
            raise Aborted(f"the mark of an abort cannot be read: delete {own!r}")
        return revision_of(found)


def _bytes(value: bytes, companions: Sequence[Put]) -> int:
    return len(value) + sum(len(put.value) for put in companions)


def _digest(action: ActionObject) -> str | None:
    return action.metadata.annotations.get(ANNOTATION_DIGEST)


def _uid(kv: KeyValue) -> str:
    try:
        return codec_of(kv.value).decode(kv.value).metadata.uid
    except DecodeError:
        return ""


def _is_trace_of(present: ActionObject, request: object_builder.Request) -> bool:
    return (
        present.spec.kind == ACTION_TYPE_TRACE
        and same_run(present.action_id, request.action_id)
        and present.action_id.name == request.action_id.name
    )
