"""Creates actions: tasks, conditions, traces.

One transaction compares that the name is free, that the parent is the incarnation that was
read, and that no abort of it, or of what is above it, is under way. It does not compare the
parent's state, which changes all the time.

As a rule nothing is read before: the first transaction guesses that the name is free, that no
abort is under way in the run, and that the parent is what this client saw of it last. A child
takes over labels and annotations, which may change, and an end or a deletion forbids it: so that
guess compares the parent's revision. Where it fails the same transaction reads all that counts,
and from then on only the parent's incarnation is compared. So one more transaction decides, and
a parent that never rests holds nobody up. Below one that moved, and in a run with an abort, the
next enqueue reads first.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

from etcd_actions.actions import conflicts, object_builder, validation
from etcd_actions.actions.abort import Aborter, Marker, read_marker
from etcd_actions.actions.parents import Parents
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
    Compare,
    CompareResult,
    CompareTarget,
    Get,
    KeyRange,
    KeyValue,
    OperationResult,
    Put,
    RangeResult,
    Txn,
)
from etcd_actions.model import (
    ACTION_TYPE_TRACE,
    ANNOTATION_DIGEST,
    ActionId,
    ActionObject,
    ErrorState,
    Keyspace,
)
from etcd_actions.model.flyte_types import Action, RunSpec
from etcd_actions.storage.store import Store


class Enqueued(NamedTuple):
    """What came of an enqueue.

    Attributes:
        action: The object as it is stored.
        created: Whether this call wrote it; False where the same request had.
    """

    action: StoredAction
    created: bool


class _Scene(NamedTuple):
    """What was read at one revision, or is guessed.

    Attributes:
        present: The action's own key.
        markers: The aborts of the run, of a root only its own.
        parent: The parent's key.
        beside: What is there of the keys that are to be created with it.
        guessed: Whether nothing was read: the parent is what was seen of it last.
    """

    present: KeyValue | None
    markers: Sequence[KeyValue]
    parent: KeyValue | None
    beside: Sequence[KeyValue] = ()
    guessed: bool = False


class _Asked(NamedTuple):
    """An enqueue under way.

    Attributes:
        request: What is asked for.
        key: Where the object goes.
        aborts: Where the aborts are that count.
        lookups: What decides: the key, the aborts, the parent, and the keys of ``beside``.
        beside: What is created with it.
        uid: The identity of what is created.
    """

    request: object_builder.Request
    key: bytes
    aborts: KeyRange
    lookups: Sequence[Get]
    beside: Sequence[Put]
    uid: str


class _Built(NamedTuple):
    """An object that is to be written, and its bytes."""

    action: ActionObject
    value: bytes


class Enqueuer:
    """Creates the actions of one keyspace.

    Args:
        store: Where they are written.
        keys: Under which keys.
        codec: In which form.
        finalizer: Whether our finalizer holds tasks and conditions until they are recorded.
        clock: The time.
        new_uid: Makes the identity of an incarnation.
        cache: The objects that were read or written last; by default an empty one.
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
        self._parents = Parents()
        self._recovery = Recovery(store, keys, clock=clock)
        self._aborter = Aborter(store, keys, finalizer=finalizer, clock=clock)

    async def enqueue(
        self,
        action: Action,
        run_spec: RunSpec | None = None,
        *,
        trace_error: ErrorState | None = None,
        beside: Sequence[Put] = (),
    ) -> Enqueued:
        """Create an action, see :meth:`etcd_actions.client.ActionsClient.enqueue`.

        In a run that recovers another, what succeeded there is created as an action that is over.
        Cancelled, it may have been created.

        Raises:
            InvalidArgument: A field is missing or has a value that cannot be stored.
            AlreadyExists: The action exists, and another request made it.
            NameTaken: Its key holds the object of another action, or an unreadable value.
            Aborted: The parent is gone, or an abort of it or above it is under way.
            OutcomeUnknown: It may have been created, and could not be read back.
            EtcdError: etcd did not do it.
        """
        request = object_builder.read_request(action, run_spec, trace_error)
        try:
            key, aborts = self._key(request), self._aborts(request)
            lookups = self._lookups(request, key, aborts, beside)
        except ValueError as error:
            raise InvalidArgument("action_id", str(error)) from None
        asked = _Asked(request, key, aborts, lookups, beside, self._new_uid())
        scene = self._guess(asked) or await self._look(asked)
        tried = 0
        while True:
            try:
                built = await self._build(asked, scene)
            except ActionError:
                if not scene.guessed:
                    raise
                scene = await self._look(asked)
                continue
            if isinstance(built, StoredAction):
                return Enqueued(built, created=built.metadata.uid == asked.uid)
            if left := self._was_aborted(request, scene):
                if left == tried:
                    name = describe(request.action_id)
                    raise Aborted(f"an abort of {name} cannot be finished; the log has why")
                tried = left
                namespace = self._keys.namespace_of(request.action_id)
                await self._aborter.action_gone(request.action_id, namespace)
                scene = await self._look(asked)
                continue
            written = await self._write(asked, scene, built)
            if isinstance(written, StoredAction):
                return Enqueued(written, created=True)
            scene = written

    async def _write(self, asked: _Asked, scene: _Scene, built: _Built) -> StoredAction | _Scene:
        """Write an object if all is as in the scene; gives what is there where it is not."""
        key, value = asked.key, built.value
        guards = self._guards(asked, scene)
        txn = Txn(guards, [Put(key, value), *asked.beside], asked.lookups)
        try:
            result = await self._store.txn(txn)
        except OutcomeUnknown as lost:
            self._forget()
            kv = await self._reread(key, lost)
            # A trace that was recorded again has the identity that it had before.
            anew = kv.value == value and kv.mod_revision > _revision(scene.present)
            if anew or _uid(kv) == asked.uid:
                return StoredAction.of(kv)
            if scene.guessed:
                # It was there before: by the same request, or another.
                return await self._look(asked)
            raise
        except Unavailable:
            self._forget()
            raise
        except EtcdError as error:
            if scene.guessed:
                # A request that was done before writes nothing, whatever etcd takes.
                return await self._look(asked)
            if not isinstance(error, RequestTooLarge):
                raise
            raise InvalidArgument(
                asked.request.kind,
                f"the object has {_bytes(value, asked.beside)} bytes, more than this etcd takes "
                "(--max-request-bytes): make it smaller",
            ) from None
        if not result.succeeded:
            found = _scene(result.responses, asked.beside)
            self._note_aborts(asked, found)
            if (
                scene.guessed
                and found.parent
                and _revision(scene.parent) != _revision(found.parent)
            ):
                self._parents.moved(found.parent)
            return found
        present = scene.present
        created = result.revision if present is None else present.create_revision
        version = 1 if present is None else present.version + 1
        kv = KeyValue(key, value, created, result.revision, version)
        self._cache.put(kv)
        return StoredAction.at(kv, built.action)

    def _forget(self) -> None:
        """Drop what was seen: after a lost connection etcd may be a restored store."""
        self._cache.clear()
        self._parents.clear()

    async def _reread(self, key: bytes, lost: OutcomeUnknown) -> KeyValue:
        """The key whose write went unanswered; that error where there is nothing to see."""
        try:
            kv = await self._store.get(key)
        except EtcdError:
            raise lost from None
        if kv is None:
            raise lost
        return kv

    def _guess(self, asked: _Asked) -> _Scene | None:
        """What is there if nothing changed; None where that cannot be told, or does not help."""
        request = asked.request
        if request.is_root:
            spec = request.run_spec
            # A run that recovers another reads there: only when it is sure to be made.
            recovers = spec is not None and spec.relation.relation_type
            return None if recovers else _Scene(None, (), None, guessed=True)
        key = self._keys.task_action(request.parent_id)
        kv = self._cache.get(key)
        restless = self._parents.is_restless(key)
        if kv is None or restless or self._parents.has_aborts(asked.aborts.start):
            return None
        try:
            parent = self._parents.read(kv)
        except DecodeError:
            return None
        return None if parent.inherited.recovers else _Scene(None, (), kv, guessed=True)

    async def _look(self, asked: _Asked) -> _Scene:
        try:
            result = await self._store.txn(Txn((), asked.lookups))
        except Unavailable:
            self._forget()
            raise
        scene = _scene(result.responses, asked.beside)
        if scene.parent is not None and self._parents.rests(scene.parent):
            self._cache.put(scene.parent)
        self._note_aborts(asked, scene)
        return scene

    def _note_aborts(self, asked: _Asked, scene: _Scene) -> None:
        if not asked.request.is_root:
            self._parents.note_aborts(asked.aborts.start, bool(scene.markers))

    def _key(self, request: object_builder.Request) -> bytes:
        if request.kind == ACTION_TYPE_TRACE:
            return self._keys.trace(request.action_id)
        return self._keys.task_action(request.action_id)

    def _lookups(
        self, request: object_builder.Request, key: bytes, aborts: KeyRange, beside: Sequence[Put]
    ) -> list[Get]:
        lookups = [Get(KeyRange.of_key(key)), Get(aborts)]
        if not request.is_root:
            lookups.append(Get(KeyRange.of_key(self._keys.task_action(request.parent_id))))
        lookups += (Get(KeyRange.of_key(put.key)) for put in beside)
        return lookups

    def _aborts(self, request: object_builder.Request) -> KeyRange:
        """Where the aborts are that count."""
        if request.is_root:
            return KeyRange.of_key(self._keys.abort(request.action_id))
        *_, aborts = self._keys.of(request.action_id).run_prefixes(request.action_id.run)
        return KeyRange.of_prefix(aborts)

    def _guards(self, asked: _Asked, scene: _Scene) -> list[Compare]:
        """What has to be as it was read, or guessed."""
        aborts, end = asked.aborts
        # A marker may go, but none may come: over no key at all this is true.
        newest = max((marker.mod_revision for marker in scene.markers), default=0)
        revision = _revision(scene.present)
        guards = [
            Compare(asked.key, CompareTarget.MOD_REVISION, CompareResult.EQUAL, revision),
            Compare(aborts, CompareTarget.MOD_REVISION, CompareResult.LESS, newest + 1, end),
        ]
        if (parent := scene.parent) is not None:
            target, revision = (
                (CompareTarget.MOD_REVISION, parent.mod_revision)
                if scene.guessed
                else (CompareTarget.CREATE_REVISION, parent.create_revision)
            )
            guards.append(Compare(parent.key, target, CompareResult.EQUAL, revision))
        guards += (
            Compare(put.key, CompareTarget.CREATE_REVISION, CompareResult.EQUAL, 0)
            for put in asked.beside
        )
        return guards

    async def _build(self, asked: _Asked, scene: _Scene) -> _Built | StoredAction:
        """The object to be written, and its bytes; or the stored one, where it is there already."""
        request = asked.request
        built = self._object(request, scene, asked.uid)
        if isinstance(built, StoredAction):
            return built
        if scene.beside:
            raise conflicts.beside(scene.beside[0].key, describe(request.action_id))
        await self._check_ancestors(request, scene)
        built = await self._recovery.apply(request, built)
        try:
            value = self._codec.encode(built)
        except ValueError as error:
            raise InvalidArgument(request.kind, f"it cannot be stored: {error}") from None
        validation.check_size(value, request.kind)
        return _Built(built, value)

    def _object(
        self, request: object_builder.Request, scene: _Scene, uid: str
    ) -> ActionObject | StoredAction:
        present = None
        one_namespace = self._keys.namespace is not None
        asked = conflicts.Asked(request.action_id, request.kind, one_namespace)
        if scene.present is not None:
            try:
                present = StoredAction.of(scene.present)
            except DecodeError as error:
                raise conflicts.unreadable(scene.present, asked, error) from None
        if request.trace is not None:
            if present is not None and not _is_trace_of(present, request):
                raise conflicts.in_the_way(present, asked)
            built = object_builder.build_trace(
                request,
                request.trace,
                self._parent(request, scene),
                present,
                namespace=self._keys.namespace_of(request.action_id),
                now=self._clock(),
                new_uid=lambda: uid,
            )
        elif present is not None:
            digest = _digest(present)
            # Flyte's service leaves none. A digest alone may have come along with a copy.
            is_it = same_action(present.action_id, request.action_id)
            if (is_it and digest == request.digest) or (
                digest is None and object_builder.same_action(present, request)
            ):
                return present
            raise conflicts.in_the_way(present, asked)
        else:
            built = object_builder.build(
                request,
                None if request.is_root else self._parent(request, scene),
                namespace=self._keys.namespace_of(request.action_id),
                now=self._clock(),
                new_uid=lambda: uid,
                finalizer=self._finalizer,
            )
        validation.check(built)
        return built

    def _parent(self, request: object_builder.Request, scene: _Scene) -> object_builder.Inherited:
        wanted = request.parent_id
        if scene.parent is None:
            raise Aborted(f"the parent is gone: {missing(wanted, self._keys)}")
        try:
            parent = self._parents.read(scene.parent)
        except DecodeError as error:
            raise Aborted(f"the parent cannot be read: {error}") from None
        if not same_action(parent.action_id, wanted):
            raise Aborted(
                f"the parent is gone: {wanted.object_name} is action {describe(parent.action_id)}"
            )
        if parent.refusal:
            raise Aborted(f"the parent, action {describe(wanted)}, {parent.refusal}")
        return parent.inherited

    def _was_aborted(self, request: object_builder.Request, scene: _Scene) -> int:
        """The revision of an abort of the action that had the name before, 0 without one.

        It is still to be finished: left there it would count for the new one.
        """
        if request.trace is not None:
            return 0
        own = self._keys.abort(request.action_id)
        found = next((marker for marker in scene.markers if marker.key == own), None)
        if found is not None and _marker(found) is None:
            raise Aborted(f"the mark of an abort cannot be read: delete {own!r}")
        return _revision(found)

    async def _check_ancestors(self, request: object_builder.Request, scene: _Scene) -> None:
        """Refuse what is below an action that is being aborted."""
        if request.is_root or not scene.markers:
            return
        markers = {marker.key: marker for marker in scene.markers}
        at, kv, seen = request.parent_id, scene.parent, set[str]()
        while at.object_name not in seen:
            seen.add(at.object_name)
            marker = markers.get(self._keys.abort(at))
            if marker is not None and _counts(marker, at, kv):
                above = "the parent" if len(seen) == 1 else "an action above it"
                raise Aborted(f"{above} is aborted: {describe(at)}")
            if kv is None:
                return
            try:
                found = StoredAction.of(kv)
            except DecodeError:
                return
            parent = found.parent
            if not parent or not same_action(found.action_id, at):
                return
            at = ActionId(at.project, at.domain, at.run, parent, at.org)
            kv = await self._store.get(self._keys.task_action(at))


def _scene(responses: Sequence[OperationResult], beside: Sequence[Put]) -> _Scene:
    found = [_range(each).kvs for each in responses]
    own, others = found[: len(found) - len(beside)], found[len(found) - len(beside) :]
    present, markers, parent = [*own, []][:3]
    return _Scene(
        present[0] if present else None,
        markers,
        parent[0] if parent else None,
        [kv for kvs in others for kv in kvs],
    )


def _bytes(value: bytes, beside: Sequence[Put]) -> int:
    return len(value) + sum(len(put.value) for put in beside)


def _range(response: OperationResult) -> RangeResult:
    assert isinstance(response, RangeResult)
    return response


def _revision(kv: KeyValue | None) -> int:
    return 0 if kv is None else kv.mod_revision


def _marker(kv: KeyValue) -> Marker | None:
    return read_marker(kv)[0]


def _counts(marked: KeyValue, action_id: ActionId, kv: KeyValue | None) -> bool:
    """Whether a marker is of this action, and of the incarnation that is there, if one is."""
    marker = _marker(marked)
    if marker is None:
        return True
    if not same_run(marker.action_id, action_id):
        return False
    if kv is None:
        return True
    try:
        found = StoredAction.of(kv)
    except DecodeError:
        return True
    return marker.is_about(found.create_revision, found.metadata.uid)


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
