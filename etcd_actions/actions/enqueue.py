"""Creates actions: tasks, conditions, traces.

One transaction compares that the name is free, that the parent is the incarnation that was
read, and that no abort of it, or of what is above it, is under way. It does not compare the
parent's state, which changes all the time.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from etcd_actions.actions import objects, validation
from etcd_actions.actions.rewrite import utc_now
from etcd_actions.actions.stored import StoredTaskAction, describe, same_run
from etcd_actions.codecs import Codec, codec_of
from etcd_actions.errors import (
    Aborted,
    AlreadyExists,
    DecodeError,
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
    """What was read at one revision: the action's own key, its parent's, the run's aborts."""

    present: KeyValue | None
    parent: KeyValue | None
    markers: tuple[KeyValue, ...]


class Enqueuer:
    """Creates the actions of one keyspace.

    Args:
        store: Where they are written.
        keys: Under which keys.
        codec: In which form.
        clock: The time.
        new_uid: Makes the identity of an incarnation.
    """

    def __init__(
        self,
        store: Store,
        keys: Keyspace,
        codec: Codec,
        *,
        clock: Callable[[], datetime] = utc_now,
        new_uid: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        self._store = store
        self._keys = keys
        self._codec = codec
        self._clock = clock
        self._new_uid = new_uid

    async def enqueue(
        self,
        action: Action,
        run_spec: RunSpec | None = None,
        *,
        trace_error: ErrorState | None = None,
    ) -> Enqueued:
        """Create an action, see :meth:`etcd_actions.client.ActionsClient.enqueue`.

        Cancelled, it may have been created.

        Raises:
            InvalidArgument: A field is missing or has a value that cannot be stored.
            AlreadyExists: Another action has that name.
            Aborted: The parent is gone, or an abort of it or above it is under way.
            OutcomeUnknown: It may have been created, and could not be read back.
            EtcdError: etcd did not do it.
        """
        request = objects.read_request(action, run_spec)
        scene = await self._look(request)
        uid = self._new_uid()
        while True:
            built = self._build(request, scene, trace_error, uid)
            if isinstance(built, StoredTaskAction):
                return Enqueued(built, created=False)
            await self._check_ancestors(request, scene)
            value = self._codec.encode(built)
            validation.check_size(value, request.kind)
            compares, key = self._guards(request, scene), self._key(request)
            lookups = self._lookups(request)
            try:
                result = await self._store.txn(
                    Txn(compares, [Put(key, value), Get(KeyRange.of_key(key))], lookups)
                )
            except RequestTooLarge:
                raise InvalidArgument(
                    request.kind,
                    f"the object has {len(value)} bytes, more than this etcd takes "
                    "(--max-request-bytes): make it smaller",
                ) from None
            except OutcomeUnknown:
                # If it was written it is found as such: by its digest, or again with its uid.
                scene = await self._look(request)
                if scene.present is None or _uid(scene.present) != uid:
                    raise
                return Enqueued(StoredTaskAction.of(scene.present), created=True)
            if result.succeeded:
                (written,) = _range(result.responses[1]).kvs
                return Enqueued(StoredTaskAction.of(written), created=True)
            scene = _scene(result.responses)

    async def _look(self, request: objects.Request) -> _Scene:
        try:
            lookups = self._lookups(request)
        except ValueError as error:
            raise InvalidArgument("action_id", str(error)) from None
        return _scene((await self._store.txn(Txn([], lookups))).responses)

    def _key(self, request: objects.Request) -> bytes:
        if request.kind == ACTION_TYPE_TRACE:
            return self._keys.trace(request.action_id)
        return self._keys.task_action(request.action_id)

    def _lookups(self, request: objects.Request) -> list[Get]:
        lookups = [Get(KeyRange.of_key(self._key(request)))]
        if not request.is_root:
            *_, aborts = self._keys.run_prefixes(request.action_id.run)
            lookups.append(Get(KeyRange.of_key(self._keys.task_action(request.parent_id))))
            lookups.append(Get(KeyRange.of_prefix(aborts)))
        return lookups

    def _guards(self, request: objects.Request, scene: _Scene) -> list[Compare]:
        """What has to be as it was read."""
        revision = 0
        if request.kind == ACTION_TYPE_TRACE and scene.present is not None:
            revision = scene.present.mod_revision
        guards = [
            Compare(self._key(request), CompareTarget.MOD_REVISION, CompareResult.EQUAL, revision)
        ]
        if scene.parent is not None:
            *_, aborts = self._keys.run_prefixes(request.action_id.run)
            newest = max((marker.mod_revision for marker in scene.markers), default=0)
            guards.append(
                Compare(
                    scene.parent.key,
                    CompareTarget.CREATE_REVISION,
                    CompareResult.EQUAL,
                    scene.parent.create_revision,
                )
            )
            markers = KeyRange.of_prefix(aborts)
            guards.append(
                Compare(
                    markers.start,
                    CompareTarget.MOD_REVISION,
                    CompareResult.LESS,
                    newest + 1,
                    markers.end,
                )
            )
        return guards

    def _build(
        self,
        request: objects.Request,
        scene: _Scene,
        trace_error: ErrorState | None,
        uid: str,
    ) -> TaskAction | StoredTaskAction:
        """The object to be written; or the stored one, where it is there already."""
        is_trace = request.kind == ACTION_TYPE_TRACE
        present = None if scene.present is None else _decoded(scene.present, request)
        if present is not None and not is_trace:
            digest = present.metadata.annotations.get(ANNOTATION_DIGEST)
            if digest == request.digest and present.action_id == request.action_id:
                return present
            if digest is not None:
                raise AlreadyExists(_what_is_there(present, request))
        parent = self._parent(request, scene) if present is None or is_trace else None
        namespace, now = self._keys.namespace, self._clock()
        if is_trace:
            assert parent is not None
            if present is not None and not _is_trace_of(present, request):
                raise AlreadyExists(_what_is_there(present, request))
            built = objects.build_trace(
                request,
                parent,
                present,
                trace_error,
                namespace=namespace,
                now=now,
                new_uid=lambda: uid,
            )
        else:
            built = objects.build(
                request, parent, namespace=namespace, now=now, new_uid=lambda: uid
            )
        if present is not None and not is_trace:
            # Written by Flyte: it says nothing of the request, so the object has to tell.
            if objects.same_action(present, built) and same_run(
                present.action_id, request.action_id
            ):
                return present
            raise AlreadyExists(_what_is_there(present, request))
        validation.check(built)
        return built

    def _parent(self, request: objects.Request, scene: _Scene) -> TaskAction | None:
        if request.is_root:
            return None
        wanted = request.parent_id
        if scene.parent is None:
            raise Aborted(f"the parent is gone: there is no action {describe(wanted)}")
        parent = _decoded(scene.parent, request)
        if not same_run(parent.action_id, wanted):
            raise Aborted(
                f"the parent is gone: {wanted.object_name} is action {describe(parent.action_id)}"
            )
        if parent.is_deleting:
            raise Aborted(f"the parent, action {describe(wanted)}, is being deleted")
        if parent.phase is Phase.ABORTED:
            raise Aborted(f"the parent, action {describe(wanted)}, is aborted")
        return parent

    async def _check_ancestors(self, request: objects.Request, scene: _Scene) -> None:
        """Refuse what is below an action that is being aborted."""
        if not scene.markers:
            return
        aborted = {marker.key for marker in scene.markers}
        at, seen = request.parent_id, set[str]()
        while at.object_name not in seen:
            seen.add(at.object_name)
            if self._keys.abort(at) in aborted:
                above = "the parent" if len(seen) == 1 else "an action above it"
                raise Aborted(f"{above} is aborted: {describe(at)}")
            kv = await self._store.get(self._keys.task_action(at))
            if kv is None:
                return
            try:
                parent = StoredTaskAction.of(kv).parent
            except DecodeError:
                return
            if not parent:
                return
            at = ActionId(at.project, at.domain, at.run, parent, at.org)


def _scene(responses: object) -> _Scene:
    assert isinstance(responses, list)
    kvs = [_range(response).kvs for response in responses]
    first = [each[0] if each else None for each in kvs[:2]]
    return _Scene(
        first[0], first[1] if len(first) > 1 else None, tuple(kvs[2]) if len(kvs) > 2 else ()
    )


def _range(response: object) -> RangeResult:
    assert isinstance(response, RangeResult)
    return response


def _decoded(kv: KeyValue, request: objects.Request) -> StoredTaskAction:
    try:
        return StoredTaskAction.of(kv)
    except DecodeError as error:
        if kv.key.endswith(b"/" + request.action_id.object_name.encode()):
            raise AlreadyExists(f"there is something that cannot be read: {error}") from None
        raise Aborted(f"the parent cannot be read: {error}") from None


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


def _what_is_there(present: TaskAction, request: objects.Request) -> str:
    there = present.action_id
    org = f"{there.org}/" if there.org else ""
    below = f", below {present.parent}" if present.parent else ""
    return (
        f"{request.action_id.object_name} exists and is another one: {present.spec.kind} "
        f"{there.name} of run {org}{there.project}/{there.domain}/{there.run}{below}, in phase "
        f"{present.phase.name}"
    )
