"""Reads actions: one, all of a run, or the children of one.

The objects of a run are in one range of keys. That range also has the objects of runs whose name
begins with ``<run>-``, and of runs of the same name in other projects. So the objects are filtered
by the identity that they contain.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import structlog
import trio

from etcd_actions.actions.read_cache import ReadCache
from etcd_actions.actions.stored_action import StoredAction, check_identity, missing, same_run
from etcd_actions.errors import Compacted, DecodeError, NotFound
from etcd_actions.etcd.api import KeyRange, KeyValue
from etcd_actions.model import ActionId, ActionObject, Keyspace, RunId, canonical_name
from etcd_actions.storage.store import Store

_TURN: Final = 64
"""Values that are decoded before other tasks run."""

_log = structlog.get_logger(__name__)


class Listing(NamedTuple):
    """Actions in the order of their keys, all as they were at ``revision``."""

    actions: list[StoredAction]
    revision: int


class Lister:
    """Reads the actions of one keyspace.

    Args:
        store: Reads the keys.
        keys: The keyspace.
        cache: Receives the single objects that are read.
    """

    def __init__(self, store: Store, keys: Keyspace, cache: ReadCache | None = None) -> None:
        self._store = store
        self._keys = keys
        self._cache = ReadCache() if cache is None else cache

    async def get_task_action(self, action_id: ActionId) -> StoredAction:
        """One action, or a trace, in its present state.

        Raises:
            NotFound: There is no such action, or the object of its name is another action's.
            DecodeError: Its value cannot be decoded.
            EtcdError: The read failed.
        """
        others = None
        for key in (self._keys.task_action(action_id), self._keys.trace(action_id)):
            kv = await self._store.get(key)
            if kv is None:
                continue
            found = StoredAction.of(kv)
            try:
                check_identity(found, action_id)
            except NotFound as error:
                # The object of that name is of another run; the trace may be the requested one.
                others = others or error
            else:
                self._cache.put(kv)
                return found
        raise others or NotFound(missing(action_id, self._keys))

    async def list_run_actions(self, run: RunId, *, traces: bool = False) -> Listing:
        """All tasks and conditions of a run, with its traces if requested.

        A value that cannot be decoded is logged and omitted.

        Args:
            run: The run. Its organization counts if both sides have one.
            traces: Whether to read the traces, too, at the same revision.

        Raises:
            EtcdError: A read failed.
        """
        objects, trace_prefix, _ = self._keys.of(run).run_prefixes(run.run)
        prefixes = (objects, trace_prefix) if traces else (objects,)
        listing = await self.list_ranges([KeyRange.of_prefix(each) for each in prefixes])
        mine = [action for action in listing.actions if same_run(action.action_id, run)]
        return Listing(mine, listing.revision)

    async def list_child_actions(
        self, parent: ActionId | RunId, *, traces: bool = False
    ) -> Listing:
        """An action itself and its direct children, as Flyte's service returns them.

        The only child of a run is its root.

        Raises:
            EtcdError: A read failed.
        """
        run = parent if isinstance(parent, RunId) else parent.run_id
        listing = await self.list_run_actions(run, traces=traces)
        return Listing(
            [each for each in listing.actions if _is_below(each, parent)], listing.revision
        )

    async def list_child_traces(self, parent: ActionId) -> list[StoredAction]:
        """The traces that are children of an action; the action itself need not exist."""
        _, traces, _ = self._keys.of(parent).run_prefixes(parent.run)
        listing = await self.list_ranges([KeyRange.of_prefix(traces)])
        return [
            each
            for each in listing.actions
            if same_run(each.action_id, parent) and _is_below(each, parent)
        ]

    async def list_all(self) -> Listing:
        """All actions and traces of the namespace, or of all namespaces if there is a template."""
        keys = self._keys
        prefixes = keys.below(keys.prefix), keys.below(keys.traces)
        return await self.list_ranges([KeyRange.of_prefix(each) for each in prefixes])

    async def revision(self) -> int:
        """The newest revision of the store."""
        return (await self._store.read(KeyRange.of_key(self._keys.prefix)))[1]

    async def list_ranges(self, ranges: Sequence[KeyRange]) -> Listing:
        """The actions of all keys in some ranges, at one revision."""
        while True:
            revision = 0
            actions: list[StoredAction] = []
            try:
                for keys in ranges:
                    kvs, revision = await self._store.read(keys, revision=revision)
                    actions += await readable(kvs)
            except Compacted:
                # A compaction came between two pages: list the newest state.
                continue
            return Listing(actions, revision)


async def readable(kvs: Iterable[KeyValue]) -> list[StoredAction]:
    """Decode values, and log those that cannot be decoded. Other tasks run in between."""
    actions = []
    for number, kv in enumerate(kvs, 1):
        if not number % _TURN:
            await trio.lowlevel.checkpoint()
        try:
            actions.append(StoredAction.of(kv))
        except DecodeError as error:
            _log.error(
                "value_undecodable",
                key=kv.key.decode(errors="backslashreplace"),
                revision=kv.mod_revision,
                reason=error.reason,
            )
    return actions


def below(actions: Iterable[StoredAction], parent: ActionId) -> list[StoredAction]:
    """An action and its direct children, if they are among ``actions``."""
    return [
        each for each in actions if same_run(each.action_id, parent) and _is_below(each, parent)
    ]


def _is_below(action: ActionObject, parent: ActionId | RunId) -> bool:
    name = "" if isinstance(parent, RunId) else canonical_name(parent.run, parent.name)
    return name in _names(action)


def _names(action: ActionObject) -> tuple[str, str]:
    """The names of an action and of its parent; that of a root's parent is empty."""
    spec = action.spec
    return (
        canonical_name(spec.run_name, spec.action_name),
        canonical_name(spec.run_name, spec.parent_action_name),
    )
