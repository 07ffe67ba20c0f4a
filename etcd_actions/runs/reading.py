"""Reads runs and actions: the object with the record of the run and the history.

Each part may be missing: a root of another client has no record, an expired run only its record.
A record or history that cannot be decoded counts as missing, and so does one of an earlier run of
the same name, until the leader has replaced it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, TypeVar

import structlog
from flyteidl2.task.run_pb2 import RunSpec
from flyteidl2.task.task_definition_pb2 import TaskSpec
from google.protobuf.message import DecodeError as BadMessage

from etcd_actions.actions.listing import readable
from etcd_actions.actions.stored_action import StoredAction, describe, same_action
from etcd_actions.client import ActionsClient
from etcd_actions.errors import DecodeError, InvalidArgument, NotFound
from etcd_actions.etcd.api import Get, KeyRange, KeyValue, Txn
from etcd_actions.etcd.paging import Rest, first_rest
from etcd_actions.model import ROOT_ACTION, ActionId, Keyspace, canonical_name
from etcd_actions.runs.progress import is_older
from etcd_actions.runs.run_record import ActionHistory, RunRecord, decode_history, decode_record
from etcd_actions.storage.store import Store, key_of

_log = structlog.get_logger(__name__)

_Part = TypeVar("_Part")

_MOST_AT_ONCE: Final = 50
_PART_BYTES: Final = 2 * 1024 * 1024
"""About the size of the parts in which a run is read."""


async def history_of_action(
    store: Store, keys: Keyspace, action_id: ActionId
) -> ActionHistory | None:
    """The history of an action; None if there is none, or it cannot be decoded.

    Raises:
        EtcdError: etcd could not be read.
    """
    try:
        kv = await store.get(keys.history(action_id))
        found = None if kv is None else decode_history(kv.value)
    except (DecodeError, ValueError):
        return None
    if found is None or (found.project, found.domain) != (action_id.project, action_id.domain):
        return None
    return found


class Found(NamedTuple):
    """An action, read at one revision.

    Attributes:
        action_id: Its identity, without the organisation.
        action: Its object; None if it has expired.
        record: The record of its run; None if another client enqueued the root.
        task: The complete specification of the task; only of a root with a record.
        history: The history of its attempts.
        revision: The store's revision of the read.
    """

    action_id: ActionId
    action: StoredAction | None
    record: RunRecord | None
    task: TaskSpec | None
    history: ActionHistory | None
    revision: int

    @property
    def run_spec(self) -> RunSpec | None:
        """The specification of the run; None if it is not known."""
        return None if self.record is None else run_spec_of(self.record)


class Actions(NamedTuple):
    """The actions of a run, with its record, at one revision."""

    actions: list[StoredAction]
    record: RunRecord | None
    revision: int


class Root(NamedTuple):
    """The root of a run and the record, at one revision; None for each that does not exist."""

    action: StoredAction | None
    record: RunRecord | None
    revision: int


class Unread(NamedTuple):
    """The keys of a run's actions that were not read: the rest of a range, and the next range."""

    rest: Rest
    traces: KeyRange | None


class Part(NamedTuple):
    """Some actions of a run in their present state, and the others; None after the last part."""

    actions: list[StoredAction]
    unread: Unread | None


class RunReader:
    """Reads runs and actions.

    The organisation in an identifier is ignored: it is a client's own name for the service.
    """

    def __init__(self, client: ActionsClient) -> None:
        self._client = client
        self._keys = client.keys
        self._store = client.store

    async def run(self, run: ActionId) -> Found:
        """A run, by its root; raises the errors of :meth:`action`."""
        return await self.action(ActionId(run.project, run.domain, run.run, ROOT_ACTION))

    async def action(self, action_id: ActionId) -> Found:
        """An action; a root that has expired may have its record.

        Raises:
            InvalidArgument: A part of the identity is not a valid name.
            NotFound: It does not exist, or is another project's.
            DecodeError: Its object cannot be decoded.
            EtcdError: etcd could not be read.
        """
        action_id = _checked(action_id)
        gets = [
            _get(self._keys.task_action(action_id)),
            _get(self._keys.trace(action_id)),
            _get(self._keys.run_record(action_id)),
            _get(self._keys.history(action_id)),
        ]
        is_root = canonical_name(action_id.run, action_id.name) == ROOT_ACTION
        gets.append(_get(self._keys.run_task(action_id)) if is_root else self._root(action_id))
        (stored, trace, record_kv, history_kv, last), revision = await self._read(gets)
        root = stored if is_root else last
        record = _record(record_kv, action_id, root)
        action = _own(stored, action_id) or _own(trace, action_id)
        if action is None and (record is None or not is_root):
            raise NotFound(f"there is no action {describe(action_id)}")
        task = None
        if record is not None and is_root and last is not None:
            task = _part(last.key, last.value, TaskSpec.FromString)
        history = None
        if history_kv is not None:
            history = _part(history_kv.key, history_kv.value, decode_history)
        return Found(action_id, action, record, task, history, revision)

    async def actions(self, run: ActionId) -> Actions:
        """All actions of a run, including traces.

        Raises:
            NotFound: It has neither an action nor a record.
            EtcdError: etcd could not be read.
        """
        run = _checked(ActionId(run.project, run.domain, run.run, ROOT_ACTION))
        listing = await self._client.list_run_actions(run.run_id, traces=True)
        record = await self.record(run)
        if not listing.actions and record is None:
            raise NotFound(f"there is no run {run.project}/{run.domain}/{run.run}")
        return Actions(listing.actions, record, listing.revision)

    async def root(self, run: ActionId) -> Root:
        """The root of a run, with the record; one that cannot be decoded counts as missing.

        Raises:
            InvalidArgument: A part of the identity is not a valid name.
            EtcdError: etcd could not be read.
        """
        root = _checked(ActionId(run.project, run.domain, run.run, ROOT_ACTION))
        gets = [_get(self._keys.task_action(root)), _get(self._keys.run_record(root))]
        (kv, record_kv), revision = await self._read(gets)
        action = None if kv is None else _part(kv.key, kv, StoredAction.of)
        if action is not None and not _is_of(action, root):
            action = None
        return Root(action, _record(record_kv, root, kv), revision)

    def unread(self, run: ActionId) -> Unread:
        """All actions of a run, including traces, for :meth:`part`."""
        objects, traces, _ = self._keys.of(run).run_prefixes(run.run)
        return Unread(first_rest(KeyRange.of_prefix(objects)), KeyRange.of_prefix(traces))

    async def part(self, run: ActionId, unread: Unread) -> Part:
        """The next actions of a run; the first parts are small, so that they arrive soon.

        Each part is read in its present state. So a change during the reads may be in a part, or
        not: its reader follows the changes since a time before the first part.

        Raises:
            EtcdError: etcd could not be read.
        """
        page, rest = await self._store.page(unread.rest, page_bytes=_PART_BYTES)
        actions = [each for each in await readable(page.kvs) if _is_of(each, run)]
        if rest is not None:
            return Part(actions, unread._replace(rest=rest))
        if unread.traces is not None:
            return Part(actions, Unread(first_rest(unread.traces), None))
        return Part(actions, None)

    async def record(self, run: ActionId) -> RunRecord | None:
        """The record of a run; None without one."""
        (kv, root), _ = await self._read([_get(self._keys.run_record(run)), self._root(run)])
        return _record(kv, run, root)

    async def present(self, keys: Iterable[bytes], run: ActionId) -> list[StoredAction]:
        """The actions of a run that exist among some keys of objects."""
        object_keys = list(keys)
        found: list[StoredAction] = []
        for at in range(0, len(object_keys), _MOST_AT_ONCE):
            kvs, _ = await self._read([_get(key) for key in object_keys[at : at + _MOST_AT_ONCE]])
            for kv in kvs:
                action = None if kv is None else _part(kv.key, kv, StoredAction.of)
                if action is not None and _is_of(action, run):
                    found.append(action)
        return found

    def _root(self, run: ActionId) -> Get:
        """A read of the root's revisions."""
        root = ActionId(run.project, run.domain, run.run, ROOT_ACTION)
        return Get(KeyRange.of_key(self._keys.task_action(root)), keys_only=True)

    async def _read(self, gets: Sequence[Get]) -> tuple[list[KeyValue | None], int]:
        result = await self._store.txn(Txn([], gets))
        return [key_of(response) for response in result.responses], result.revision


def _get(key: bytes) -> Get:
    return Get(KeyRange.of_key(key))


def run_spec_of(record: RunRecord) -> RunSpec | None:
    """The specification of a run; None if it is not known."""
    return _part(record.name.encode(), record.run_spec, RunSpec.FromString)


def _checked(action_id: ActionId) -> ActionId:
    """The identity without the organisation; raises InvalidArgument for an invalid part."""
    for field in ("project", "domain", "run", "name"):
        text: str = getattr(action_id, field)
        if not text or "/" in text:
            raise InvalidArgument(
                field, f"{text[:80]!r} is not a valid name: give one, without a slash"
            )
    return ActionId(action_id.project, action_id.domain, action_id.run, action_id.name)


def _own(kv: KeyValue | None, action_id: ActionId) -> StoredAction | None:
    """The action, unless the key belongs to another project's."""
    if kv is None:
        return None
    action = StoredAction.of(kv)
    stored = action.action_id
    without_org = ActionId(stored.project, stored.domain, stored.run, stored.name)
    return action if same_action(without_org, action_id) else None


def _is_of(action: StoredAction, run: ActionId) -> bool:
    stored = action.action_id
    return (stored.project, stored.domain, stored.run) == (run.project, run.domain, run.run)


def _record(kv: KeyValue | None, action_id: ActionId, root: KeyValue | None) -> RunRecord | None:
    """The record of a run, unless it is of an earlier run than the root."""
    record = None if kv is None else _part(kv.key, kv.value, decode_record)
    if kv is None or record is None:
        return None
    if (record.project, record.domain) != (action_id.project, action_id.domain):
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
