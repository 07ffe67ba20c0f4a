"""Creates actions: tasks, conditions, traces.

One transaction compares that the name is free, that the parent is the incarnation that was
read, and that no abort of it, or of what is above it, is under way. It does not compare the
parent's state, which changes all the time.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from etcd_actions.actions import conflicts, objects, validation
from etcd_actions.actions.abort import Aborter, Marker, read_marker
from etcd_actions.actions.recovery import Recovery
from etcd_actions.actions.rewrite import utc_now
from etcd_actions.actions.stored import StoredTaskAction, describe, missing, same_action, same_run
from etcd_actions.codecs import Codec, codec_of
from etcd_actions.errors import (
    Aborted,
    DecodeError,
    EtcdError,
    InvalidArgument,
    OutcomeUnknown,
    RequestTooLarge,
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
    ErrorState,
    Keyspace,
    Phase,
    TaskAction,
)
from etcd_actions.store import Store

if TYPE_CHECKING:
    from flyteidl2.actions.actions_service_pb2 import Action
    from flyteidl2.task.run_pb2 import RunSpec


class Enqueued(NamedTuple):
    """What came of an enqueue.

    Attributes:
        action: The object as it is stored.
        created: Whether this call wrote it; False where the same request had.
    """

    action: StoredTaskAction
    created: bool


class _Scene(NamedTuple):
    """What was read at one revision.

    Attributes:
        present: The action's own key.
        markers: The aborts of the run, of a root only its own.
        parent: The parent's key.
        beside: What is there of the keys that are to be created with it.
    """

    present: KeyValue | None
    markers: Sequence[KeyValue]
    parent: KeyValue | None
    beside: Sequence[KeyValue] = ()


class Enqueuer:
    """Creates the actions of one keyspace.

    Args:
        store: Where they are written.
        keys: Under which keys.
        codec: In which form.
        finalizer: Whether our finalizer holds tasks and conditions until they are recorded.
        clock: The time.
        new_uid: Makes the identity of an incarnation.
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
    ) -> None:
        self._store = store
        self._keys = keys
        self._codec = codec
        self._clock = clock
        self._new_uid = new_uid
        self._finalizer = finalizer
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
        request = objects.read_request(action, run_spec, trace_error)
        scene = await self._look(request, beside)
        uid = self._new_uid()
        tried = 0
        while True:
            built = self._build(request, scene, uid)
            if isinstance(built, StoredTaskAction):
                return Enqueued(built, created=built.metadata.uid == uid)
            if scene.beside:
                raise conflicts.beside(scene.beside[0].key, describe(request.action_id))
            await self._check_ancestors(request, scene)
            built = await self._recovery.apply(request, built)
            try:
                value = self._codec.encode(built)
            except ValueError as error:
                raise InvalidArgument(request.kind, f"it cannot be stored: {error}") from None
            validation.check_size(value, request.kind)
            if left := self._was_aborted(request, scene):
                if left == tried:
                    name = describe(request.action_id)
                    raise Aborted(f"an abort of {name} cannot be finished; the log has why")
                tried = left
                namespace = self._keys.namespace_of(request.action_id)
                await self._aborter.action_gone(request.action_id, namespace)
                scene = await self._look(request, beside)
                continue
            key = self._key(request)
            txn = Txn(
                self._guards(request, scene, beside),
                [Put(key, value), Get(KeyRange.of_key(key)), *beside],
                self._lookups(request, beside),
            )
            try:
                result = await self._store.txn(txn)
            except RequestTooLarge:
                raise InvalidArgument(
                    request.kind,
                    f"the object has {_bytes(value, beside)} bytes, more than this etcd takes "
                    "(--max-request-bytes): make it smaller",
                ) from None
            except OutcomeUnknown as lost:
                kv = await self._reread(key, lost)
                # A trace that was recorded again has the identity that it had before.
                anew = kv.value == value and kv.mod_revision > _revision(scene.present)
                if not anew and _uid(kv) != uid:
                    raise
                return Enqueued(StoredTaskAction.of(kv), created=True)
            if result.succeeded:
                (written,) = _range(result.responses[1]).kvs
                return Enqueued(StoredTaskAction.of(written), created=True)
            scene = _scene(result.responses, beside)

    async def _reread(self, key: bytes, lost: OutcomeUnknown) -> KeyValue:
        """The key whose write went unanswered; that error where there is nothing to see."""
        try:
            kv = await self._store.get(key)
        except EtcdError:
            raise lost from None
        if kv is None:
            raise lost
        return kv

    async def _look(self, request: objects.Request, beside: Sequence[Put]) -> _Scene:
        try:
            lookups = self._lookups(request, beside)
        except ValueError as error:
            raise InvalidArgument("action_id", str(error)) from None
        return _scene((await self._store.txn(Txn([], lookups))).responses, beside)

    def _key(self, request: objects.Request) -> bytes:
        if request.kind == ACTION_TYPE_TRACE:
            return self._keys.trace(request.action_id)
        return self._keys.task_action(request.action_id)

    def _lookups(self, request: objects.Request, beside: Sequence[Put]) -> list[Get]:
        lookups = [Get(KeyRange.of_key(self._key(request))), Get(self._aborts(request))]
        if not request.is_root:
            lookups.append(Get(KeyRange.of_key(self._keys.task_action(request.parent_id))))
        lookups += (Get(KeyRange.of_key(put.key)) for put in beside)
        return lookups

    def _aborts(self, request: objects.Request) -> KeyRange:
        """Where the aborts are that count."""
        if request.is_root:
            return KeyRange.of_key(self._keys.abort(request.action_id))
        *_, aborts = self._keys.of(request.action_id).run_prefixes(request.action_id.run)
        return KeyRange.of_prefix(aborts)

    def _guards(
        self, request: objects.Request, scene: _Scene, beside: Sequence[Put]
    ) -> list[Compare]:
        """What has to be as it was read."""
        key, (aborts, end) = self._key(request), self._aborts(request)
        # A marker may go, but none may come: over no key at all this is true.
        newest = max((marker.mod_revision for marker in scene.markers), default=0)
        guards = [
            Compare(key, CompareTarget.MOD_REVISION, CompareResult.EQUAL, _revision(scene.present)),
            Compare(aborts, CompareTarget.MOD_REVISION, CompareResult.LESS, newest + 1, end),
        ]
        if scene.parent is not None:
            guards.append(
                Compare(
                    scene.parent.key,
                    CompareTarget.CREATE_REVISION,
                    CompareResult.EQUAL,
                    scene.parent.create_revision,
                )
            )
        guards += (
            Compare(put.key, CompareTarget.CREATE_REVISION, CompareResult.EQUAL, 0)
            for put in beside
        )
        return guards

    def _build(
        self, request: objects.Request, scene: _Scene, uid: str
    ) -> TaskAction | StoredTaskAction:
        """The object to be written; or the stored one, where it is there already."""
        present = None
        one_namespace = self._keys.namespace is not None
        asked = conflicts.Asked(request.action_id, request.kind, one_namespace)
        if scene.present is not None:
            try:
                present = StoredTaskAction.of(scene.present)
            except DecodeError as error:
                raise conflicts.unreadable(scene.present, asked, error) from None
        if request.trace is not None:
            if present is not None and not _is_trace_of(present, request):
                raise conflicts.in_the_way(present, asked)
            built = objects.build_trace(
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
                digest is None and objects.same_action(present, request)
            ):
                return present
            raise conflicts.in_the_way(present, asked)
        else:
            built = objects.build(
                request,
                None if request.is_root else self._parent(request, scene),
                namespace=self._keys.namespace_of(request.action_id),
                now=self._clock(),
                new_uid=lambda: uid,
                finalizer=self._finalizer,
            )
        validation.check(built)
        return built

    def _parent(self, request: objects.Request, scene: _Scene) -> TaskAction:
        wanted = request.parent_id
        if scene.parent is None:
            raise Aborted(f"the parent is gone: {missing(wanted, self._keys)}")
        try:
            parent = StoredTaskAction.of(scene.parent)
        except DecodeError as error:
            raise Aborted(f"the parent cannot be read: {error}") from None
        if not same_action(parent.action_id, wanted):
            raise Aborted(
                f"the parent is gone: {wanted.object_name} is action {describe(parent.action_id)}"
            )
        if parent.is_deleting:
            raise Aborted(f"the parent, action {describe(wanted)}, is being deleted")
        if parent.phase is Phase.ABORTED:
            raise Aborted(f"the parent, action {describe(wanted)}, is aborted")
        return parent

    def _was_aborted(self, request: objects.Request, scene: _Scene) -> int:
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

    async def _check_ancestors(self, request: objects.Request, scene: _Scene) -> None:
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
                found = StoredTaskAction.of(kv)
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
        found = StoredTaskAction.of(kv)
    except DecodeError:
        return True
    return marker.is_about(found.create_revision, found.metadata.uid)


def _digest(action: TaskAction) -> str | None:
    return action.metadata.annotations.get(ANNOTATION_DIGEST)


def _uid(kv: KeyValue) -> str:
    try:
        return codec_of(kv.value).decode(kv.value).metadata.uid
    except DecodeError:
        return ""


def _is_trace_of(present: TaskAction, request: objects.Request) -> bool:
    return (
        present.spec.kind == ACTION_TYPE_TRACE
        and same_run(present.action_id, request.action_id)
        and present.action_id.name == request.action_id.name
    )
