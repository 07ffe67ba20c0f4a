"""Reads actions: one, those of a run, those below a parent.

A run's objects are one range of keys, which holds the objects of runs like ``<run>-x``, too,
and of runs of the same name in other projects: what is read is filtered by what it says it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

import structlog
import trio

from etcd_actions.actions.read_cache import ReadCache
from etcd_actions.actions.stored_action import StoredAction, check_identity, missing, same_run
from etcd_actions.errors import Compacted, DecodeError, NotFound
from etcd_actions.etcd.api import KeyRange, KeyValue
from etcd_actions.model import ActionId, ActionObject, Keyspace, canonical_name
from etcd_actions.storage.store import Store

_TURN: Final = 64
"""Values that are decoded before others have their turn."""

_log = structlog.get_logger(__name__)


class Listing(NamedTuple):
    """Actions in the order of their keys, all as they were at ``revision``."""

    actions: list[StoredAction]
    revision: int


class Lister:
    """Reads the actions of one keyspace.

    Args:
        store: Where they are.
        keys: Under which keys.
        cache: Gets the single objects that are read.
    """

    def __init__(self, store: Store, keys: Keyspace, cache: ReadCache | None = None) -> None:
        self._store = store
        self._keys = keys
        self._cache = ReadCache() if cache is None else cache

    async def get_task_action(self, action_id: ActionId) -> StoredAction:
        """One action as it is now; a trace is found by its name, too.

        Raises:
            NotFound: There is none, or the object of its name is another action's.
            DecodeError: Its value cannot be read.
            EtcdError: etcd could not be read.
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
                # Next to another run's task there may be the requested trace.
                others = others or error
            else:
                self._cache.put(kv)
                return found
        raise others or NotFound(missing(action_id, self._keys))

    async def list_run_actions(self, run: ActionId, *, traces: bool = False) -> Listing:
        """All tasks and conditions of a run, with its traces if requested.

        What cannot be decoded is logged and omitted.

        Args:
            run: Project, domain and run count; an organisation where both sides know it.
            traces: Whether to read the traces, too, at the same revision.

        Raises:
            EtcdError: etcd could not be read.
        """
        objects, trace_prefix, _ = self._keys.of(run).run_prefixes(run.run)
        prefixes = (objects, trace_prefix) if traces else (objects,)
        listing = await self._list(prefixes)
        mine = [action for action in listing.actions if same_run(action.action_id, run)]
        return Listing(mine, listing.revision)

    async def list_child_actions(self, parent: ActionId, *, traces: bool = False) -> Listing:
        """An action itself and its direct children, as Flyte's service gives them.

        Raises:
            EtcdError: etcd could not be read.
        """
        listing = await self.list_run_actions(parent, traces=traces)
        return Listing(
            [each for each in listing.actions if _is_below(each, parent)], listing.revision
        )

    async def list_child_traces(self, parent: ActionId) -> list[StoredAction]:
        """The traces directly below an action, whether or not that is there."""
        _, traces, _ = self._keys.of(parent).run_prefixes(parent.run)
        listing = await self._list((traces,))
        return [
            each
            for each in listing.actions
            if same_run(each.action_id, parent) and _is_below(each, parent)
        ]

    async def list_all(self) -> Listing:
        """All actions of the namespace, or of all there are, with their traces."""
        keys = self._keys
        return await self._list((keys.below(keys.prefix), keys.below(keys.traces)))

    async def revision(self) -> int:
        """The newest revision of the store."""
        return (await self._store.read(KeyRange.of_key(self._keys.prefix)))[1]

    async def _list(self, prefixes: Iterable[bytes]) -> Listing:
        """All below some prefixes, at one revision."""
        while True:
            revision = 0
            actions: list[StoredAction] = []
            try:
                for prefix in prefixes:
                    kvs, revision = await self._store.read(
                        KeyRange.of_prefix(prefix), revision=revision
                    )
                    actions += await readable(kvs)
            except Compacted:
                # A compaction between two pages: the newest state is as good.
                continue
            return Listing(actions, revision)


async def readable(kvs: Iterable[KeyValue]) -> list[StoredAction]:
    """Decode values; what cannot be is logged and omitted. Other tasks run in between."""
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
    """An action and its direct children, of those that are given."""
    return [
        each for each in actions if same_run(each.action_id, parent) and _is_below(each, parent)
    ]


def _is_below(action: ActionObject, parent: ActionId) -> bool:
    return canonical_name(parent.run, parent.name) in _names(action)


def _names(action: ActionObject) -> tuple[str, str]:
    """Of an action and of its parent, empty for a root."""
    spec = action.spec
    return (
        canonical_name(spec.run_name, spec.action_name),
        canonical_name(spec.run_name, spec.parent_action_name),
    )
