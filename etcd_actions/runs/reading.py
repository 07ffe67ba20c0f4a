"""Reads runs and actions as people look at them: the object, and what else is kept of it.

A root that others enqueued has no record, and what has expired has nothing but its record: each
part may be missing. What cannot be read of the parts beside the object counts as missing; so does
what is about an earlier run of the same name, until the leader has replaced it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, TypeVar

import structlog
from flyteidl2.task.run_pb2 import RunSpec
from flyteidl2.task.task_definition_pb2 import TaskSpec
from google.protobuf.message import DecodeError as BadMessage

from etcd_actions.actions.stored_action import StoredAction, describe, same_action
from etcd_actions.client import ActionsClient
from etcd_actions.errors import DecodeError, InvalidArgument, NotFound
from etcd_actions.etcd.api import Get, KeyRange, KeyValue, RangeResult, Txn
from etcd_actions.model import ROOT_ACTION, ActionId, canonical_name
from etcd_actions.runs.progress import is_older
from etcd_actions.runs.run_record import ActionHistory, RunRecord, decode_history, decode_record

_log = structlog.get_logger(__name__)

_Part = TypeVar("_Part")

_MOST_AT_ONCE: Final = 50


class Found(NamedTuple):
    """What is kept of an action, all as it was at one revision.

    Attributes:
        action_id: Which action; without the organisation.
        action: Its object; None where it has expired.
        record: The record of its run; None where others enqueued the root.
        task: The whole specification of the task, of a root with a record.
        history: How its attempts went.
        revision: When.
    """

    action_id: ActionId
    action: StoredAction | None
    record: RunRecord | None
    task: TaskSpec | None
    history: ActionHistory | None
    revision: int

    @property
    def run_spec(self) -> RunSpec | None:
        """What holds for the run, as it was asked for; None where that is not known."""
        return None if self.record is None else run_spec_of(self.record)


class Actions(NamedTuple):
    """The actions of a run, with its record, at one revision."""

    actions: list[StoredAction]
    record: RunRecord | None
    revision: int


class RunReader:
    """Reads runs and actions.

    The organisation in an identifier never counts: it is a client's own name for the service.

    Args:
        client: Whose store and keys.
    """

    def __init__(self, client: ActionsClient) -> None:
        self._client = client
        self._keys = client.keys
        self._store = client.store

    async def run(self, run: ActionId) -> Found:
        """A run, by its root.

        Raises:
            NotFound: There is neither its root nor its record; or they are another project's.
        """
        return await self.action(ActionId(run.project, run.domain, run.run, ROOT_ACTION))

    async def action(self, wanted: ActionId) -> Found:
        """An action. Of a root that has expired there may be the record.

        Raises:
            NotFound: There is nothing of it, or it is another project's.
            DecodeError: Its object cannot be read.
            EtcdError: etcd could not be asked.
        """
        wanted = _checked(wanted)
        gets = [
            _get(self._keys.task_action(wanted)),
            _get(self._keys.trace(wanted)),
            _get(self._keys.run_record(wanted)),
            _get(self._keys.history(wanted)),
        ]
        is_root = canonical_name(wanted.run, wanted.name) == ROOT_ACTION
        gets.append(_get(self._keys.run_task(wanted)) if is_root else self._root(wanted))
        (stored, trace, record_kv, history_kv, last), revision = await self._read(gets)
        root = stored if is_root else last
        record = _record(record_kv, wanted, root)
        action = _own(stored, wanted) or _own(trace, wanted)
        if action is None and (record is None or not is_root):
            raise NotFound(f"there is no action {describe(wanted)}")
        task = None
        if record is not None and is_root and last is not None:
            task = _part(last.key, last.value, TaskSpec.FromString)
        history = None
        if history_kv is not None:
            history = _part(history_kv.key, history_kv.value, decode_history)
        return Found(wanted, action, record, task, history, revision)

    async def actions(self, run: ActionId) -> Actions:
        """All actions of a run, traces among them.

        Raises:
            NotFound: There is neither an action of it nor its record.
            EtcdError: etcd could not be asked.
        """
        run = _checked(ActionId(run.project, run.domain, run.run, ROOT_ACTION))
        listing = await self._client.list_run_actions(run, traces=True)
        record = await self.record(run)
        if not listing.actions and record is None:
            raise NotFound(f"there is no run {run.project}/{run.domain}/{run.run}")
        return Actions(listing.actions, record, listing.revision)

    async def record(self, run: ActionId) -> RunRecord | None:
        """The record of a run; None without one."""
        (kv, root), _ = await self._read([_get(self._keys.run_record(run)), self._root(run)])
        return _record(kv, run, root)

    async def present(self, keys: Iterable[bytes], run: ActionId) -> list[StoredAction]:
        """What is there of some actions of a run, by the keys of their objects."""
        wanted = list(keys)
        found: list[StoredAction] = []
        for at in range(0, len(wanted), _MOST_AT_ONCE):
            kvs, _ = await self._read([_get(key) for key in wanted[at : at + _MOST_AT_ONCE]])
            for kv in kvs:
                action = None if kv is None else _part(kv.key, kv, StoredAction.of)
                if action is not None and _is_of(action, run):
                    found.append(action)
        return found

    def _root(self, run: ActionId) -> Get:
        """Whether there is a root, and since when."""
        root = ActionId(run.project, run.domain, run.run, ROOT_ACTION)
        return Get(KeyRange.of_key(self._keys.task_action(root)), keys_only=True)

    async def _read(self, gets: Sequence[Get]) -> tuple[list[KeyValue | None], int]:
        result = await self._store.txn(Txn([], gets))
        found: list[KeyValue | None] = []
        for response in result.responses:
            assert isinstance(response, RangeResult)
            found.append(response.kvs[0] if response.kvs else None)
        return found, result.revision


def _get(key: bytes) -> Get:
    return Get(KeyRange.of_key(key))


def run_spec_of(record: RunRecord) -> RunSpec | None:
    """What holds for a run, as it was asked for; None where it is not known."""
    return _part(record.name.encode(), record.run_spec, RunSpec.FromString)


def _checked(wanted: ActionId) -> ActionId:
    """The same without the organisation.

    Raises:
        InvalidArgument: It is no name.
    """
    for field, text in (
        ("project", wanted.project),
        ("domain", wanted.domain),
        ("run", wanted.run),
        ("name", wanted.name),
    ):
        if not text or "/" in text:
            raise InvalidArgument(field, f"{text[:80]!r} is no name: give one, without a slash")
    return ActionId(wanted.project, wanted.domain, wanted.run, wanted.name)


def _own(kv: KeyValue | None, wanted: ActionId) -> StoredAction | None:
    """The action that is meant; another project's may have the same key."""
    if kv is None:
        return None
    action = StoredAction.of(kv)
    there = action.action_id
    anyone = ActionId(there.project, there.domain, there.run, there.name)
    return action if same_action(anyone, wanted) else None


def _is_of(action: StoredAction, run: ActionId) -> bool:
    there = action.action_id
    return (there.project, there.domain, there.run) == (run.project, run.domain, run.run)


def _record(kv: KeyValue | None, wanted: ActionId, root: KeyValue | None) -> RunRecord | None:
    """The record of a run, where it is that of the root which is there."""
    record = None if kv is None else _part(kv.key, kv.value, decode_record)
    if kv is None or record is None:
        return None
    if (record.project, record.domain) != (wanted.project, wanted.domain):
        return None
    if root is not None and is_older(record, kv.mod_revision, root.create_revision):
        return None
    return record


_Source = TypeVar("_Source")


def _part(key: bytes, source: _Source, read: Callable[[_Source], _Part]) -> _Part | None:
    try:
        return read(source)
    except (DecodeError, BadMessage) as error:
        _log.warning(
            "unreadable", key=key.decode(errors="backslashreplace")[:200], reason=str(error)
        )
        return None
