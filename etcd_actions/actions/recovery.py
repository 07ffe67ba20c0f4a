"""Recovery: creates actions as RECOVERED that succeeded in another run.

The SDK makes an action's name of its parent's name, its task and its inputs. So two actions of the
same name, of the recovered run and of the new one, are the same call. The root has an annotation
with the source runs, which all actions below inherit. An action that succeeded in a source run is
created with the phase RECOVERED, and with the outputs of the earlier one.

The source runs have an order: the recovered run, then the run that this one recovered, and so on.
The first one that has the action decides. Each has a list of the actions that have to run again:
they are taken neither from it nor from the runs after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog

from etcd_actions._internal.untrusted_files import UnusableFile, in_thread, is_regular, local_path
from etcd_actions.actions.listing import Lister, Listing
from etcd_actions.actions.rewrite import utc_now
from etcd_actions.actions.stored_action import StoredAction, same_action
from etcd_actions.codecs import json
from etcd_actions.errors import DecodeError, InvalidArgument
from etcd_actions.etcd.api import KeyValue
from etcd_actions.model import (
    ACTION_TYPE_TASK,
    ANNOTATION_RECOVERED_FROM,
    ANNOTATION_RECOVERED_OUTPUTS,
    ANNOTATION_RECOVERS,
    ROOT_ACTION,
    SUCCESSES,
    ActionId,
    ActionObject,
    ActionUpdate,
    Keyspace,
    Phase,
    build_action_update,
    canonical_name,
)
from etcd_actions.model import flyte as conversions
from etcd_actions.model.conditions import write_phase
from etcd_actions.storage.store import Store

if TYPE_CHECKING:
    from etcd_actions.actions.object_builder import Request

RELATED_TO: Final = "run_spec.relation.related_to"
FORCED: Final = "run_spec.recover.force_rerun_actions"
MOST_SOURCES: Final = 16
"""The most source runs; the oldest are omitted."""
MOST_BYTES: Final = 32 * 1024
"""The most bytes of the annotation, which each action of the run has."""

_RECOVER: Final = 2
"""Flyte's ``RELATION_TYPE_RECOVER``."""
_OUTPUTS: Final = "outputs.pb"
_FILES_WITHIN: Final = 5.0

_log = structlog.get_logger(__name__)


class Source(msgspec.Struct, frozen=True, array_like=True):
    """A source run.

    Attributes:
        run: Its name; project and domain are those of the new run.
        again: The actions that are taken neither from it nor from the runs after it.
    """

    run: str
    again: tuple[str, ...] = ()


_sources: Final = msgspec.json.Decoder(tuple[Source, ...])


def sources_of(action: ActionObject) -> tuple[Source, ...]:
    """The source runs of an action; none if it has no annotation, or an undecodable one."""
    text = action.metadata.annotations.get(ANNOTATION_RECOVERS, "")
    if not text:
        return ()
    try:
        return _sources.decode(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        _log.warning("recovery_unreadable", run=action.spec.run_name, reason=str(error))
        return ()


class Recovery:
    """Recovers the actions of one keyspace.

    Args:
        store: Reads the keys.
        keys: The keyspace.
        clock: Returns the present time.
    """

    def __init__(
        self, store: Store, keys: Keyspace, *, clock: Callable[[], datetime] = utc_now
    ) -> None:
        self._store = store
        self._keys = keys
        self._clock = clock
        self._lister = Lister(store, keys)

    async def apply(self, request: Request, built: ActionObject) -> ActionObject:
        """The object to create: the built one, or with the result of the action in a source run.

        A root gets the annotation with the source runs; it is never recovered itself.

        Raises:
            InvalidArgument: This run cannot recover the requested one.
            EtcdError: A read failed.
        """
        if request.trace is not None:
            return built
        if request.is_root:
            return await self._note(request, built)
        if not (sources := sources_of(built)):
            return built
        found = await self._find(built, sources)
        if found is None or not await _is_complete(found):
            return built
        return self._taken_over(built, found)

    async def traces(self, parent: ActionId, listing: Listing) -> list[ActionUpdate]:
        """The traces of the same action in the source runs, as if they were the action's own.

        They are not written: the SDK replays a trace of a snapshot, and does not record it again.

        Args:
            parent: The action.
            listing: The action with its children and traces.
        """
        own = next((each for each in listing.actions if same_action(each.action_id, parent)), None)
        if own is None or not (sources := sources_of(own)):
            return []
        seen = {each.spec.action_name for each in listing.actions}
        updates = []
        for source in sources:
            seen.update(source.again)
            for trace in await self._lister.list_child_traces(_in_run(own.action_id, source.run)):
                name = trace.spec.action_name
                if name in seen:
                    continue
                seen.add(name)
                if trace.phase in SUCCESSES and await _is_file(trace.output_uri):
                    updates.append(self._trace(own, trace, listing.revision))
        return updates

    def _trace(self, parent: ActionObject, trace: StoredAction, revision: int) -> ActionUpdate:
        of = parent.action_id
        action_id = ActionId(of.project, of.domain, of.run, trace.spec.action_name, of.org)
        update = build_action_update(trace, key=self._keys.trace(action_id), revision=revision)
        return msgspec.structs.replace(
            update,
            name=action_id.object_name,
            action_id=action_id,
            phase=Phase.RECOVERED,
            uid="",
        )

    async def _note(self, request: Request, built: ActionObject) -> ActionObject:
        """A root with the annotation of the source runs."""
        spec = request.run_spec
        if spec is None or request.kind != ACTION_TYPE_TASK:
            return built
        if spec.relation.relation_type != _RECOVER:
            return built
        source = source_of(request.action_id, spec.relation.related_to)
        first = Source(source.run, tuple(dict.fromkeys(spec.recover.force_rerun_actions)))
        sources = [first]
        kv = await self._store.get(self._keys.task_action(source))
        if (root := _read(kv, source)) is not None:
            sources += (each for each in sources_of(root) if each.run != source.run)
        note = msgspec.json.encode(sources[:MOST_SOURCES]).decode()
        while len(note.encode()) > MOST_BYTES and len(sources) > 1:
            sources.pop()
            note = msgspec.json.encode(sources[:MOST_SOURCES]).decode()
        if len(note.encode()) > MOST_BYTES:
            raise InvalidArgument(
                FORCED, f"its names have more than {MOST_BYTES} bytes: run all of it again"
            )
        return _annotated(built, {ANNOTATION_RECOVERS: note})

    async def _find(self, built: ActionObject, sources: Sequence[Source]) -> StoredAction | None:
        """The successful action of a source run; None if the action has to run."""
        requested = [_in_run(built.action_id, source.run) for source in sources]
        kvs = await self._store.get_all(*(self._keys.task_action(each) for each in requested))
        for source, action_id, kv in zip(sources, requested, kvs, strict=True):
            if built.spec.action_name in source.again:
                return None
            found = _read(kv, action_id)
            if found is not None:
                return found if _may_be(found, built) else None
        return None

    def _taken_over(self, built: ActionObject, found: StoredAction) -> ActionObject:
        noted = {ANNOTATION_RECOVERED_FROM: found.spec.run_name}
        if not built.spec.is_condition and found.output_uri:
            noted[ANNOTATION_RECOVERED_OUTPUTS] = found.output_uri
        tree = json.decode_tree(json.encode(_annotated(built, noted)))
        del tree["metadata"]["annotations"][ANNOTATION_RECOVERS]
        if built.spec.is_condition:
            signal = found.status
            fields = {
                "signalValue": signal.signal_value,
                "signalledBy": signal.signalled_by,
                "signalledAt": signal.signalled_at,
            }
            tree["status"] = {field: text for field, text in fields.items() if text}
        write_phase(tree, Phase.RECOVERED, now=self._clock(), attempts=1)
        return json.decode(json.encode_tree(tree))


def source_of(run: ActionId, related_to: Any) -> ActionId:
    """The root of the run that a new run recovers.

    Args:
        run: The new run.
        related_to: Flyte's identifier; an empty project or domain is that of the new run.

    Raises:
        InvalidArgument: The new run cannot recover it.
    """
    name = related_to.name
    if not name or "/" in name:
        raise InvalidArgument(f"{RELATED_TO}.name", f"{name[:80]!r} is not a valid name of a run")
    for part in ("project", "domain"):
        there, here = getattr(related_to, part), getattr(run, part)
        if there not in ("", here):
            raise InvalidArgument(
                f"{RELATED_TO}.{part}", f"{there[:80]!r}: a run recovers one of its own, {here!r}"
            )
    if name == run.run:
        raise InvalidArgument(f"{RELATED_TO}.name", "a run does not recover itself")
    return ActionId(run.project, run.domain, name, ROOT_ACTION)


def _in_run(action_id: ActionId, run: str) -> ActionId:
    """The action of the same name in another run of the project and domain."""
    name = canonical_name(action_id.run, action_id.name)
    return ActionId(action_id.project, action_id.domain, run, name)


def _read(kv: KeyValue | None, requested: ActionId) -> StoredAction | None:
    """The requested action; None if it is missing, undecodable or another action."""
    if kv is None:
        return None
    try:
        found = StoredAction.of(kv)
    except DecodeError as error:
        _log.warning(
            "recovery_unreadable", run=requested.run, action=requested.name, reason=error.reason
        )
        return None
    return found if same_action(found.action_id, requested) else None


def _may_be(found: StoredAction, built: ActionObject) -> bool:
    """Whether the result of ``found`` can be that of ``built``."""
    if found.phase not in SUCCESSES or found.spec.kind != built.spec.kind:
        return False
    if not built.spec.is_condition:
        return True
    try:
        there, here = conversions.condition_action(found), conversions.condition_action(built)
        value = conversions.signal_value(found)
    except DecodeError:
        return False
    if there is None or here is None or value is None:
        return False
    return bool(there.type == here.type)


async def _is_complete(found: StoredAction) -> bool:
    """Whether the outputs exist, if they are on this machine."""
    if found.spec.is_condition:
        return True
    try:
        template = conversions.task_template(found)
    except DecodeError:
        return False
    if template is None or not template.interface.outputs.variables:
        return True
    uri = found.output_uri
    return bool(uri) and await _is_file(f"{uri.rstrip('/')}/{_OUTPUTS}")


async def _is_file(uri: str) -> bool:
    """Whether a file exists; one on another machine counts as existing."""
    path: Path | None = local_path(uri)
    if path is None:
        return bool(uri)
    try:
        return await in_thread(_FILES_WITHIN, path, is_regular, path)
    except (OSError, UnusableFile, ValueError) as error:
        _log.warning("recovery_outputs_unusable", path=str(path), reason=str(error))
        return False


def _annotated(action: ActionObject, noted: dict[str, str]) -> ActionObject:
    annotations = {**action.metadata.annotations, **noted}
    metadata = msgspec.structs.replace(action.metadata, annotations=annotations)
    return msgspec.structs.replace(action, metadata=metadata)
