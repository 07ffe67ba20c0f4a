"""Removes one terminal run: its objects, histories and blobs, and at last its record.

The order makes an interrupted removal harmless. The root is deleted first, in one transaction with
as many of the other actions as fit. The transaction compares that nothing of the run was changed or
added since the read. From then on the run has expired, and only its record shows it. The record is
deleted last, so the next removal finds the rest.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Final, NamedTuple

import msgspec
import structlog
import trio
from msgspec.structs import astuple

from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.blobs import BlobError, BlobInfo, BlobStore
from etcd_actions.errors import DecodeError
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Delete,
    KeyRange,
    KeyValue,
    Txn,
)
from etcd_actions.model import FINALIZER_RECORD, ROOT_ACTION, ActionId, Keyspace, canonical_name
from etcd_actions.model.names import parse_key
from etcd_actions.runs.run_record import ActionHistory, RunRecord, decode_history
from etcd_actions.storage.store import Store

RunName = tuple[str, str, str]
"""Project, domain and name of a run."""

# etcd accepts 128 operations in a transaction, and as many compares.
_BATCH: Final = 100
# Reads of the objects in a row that concurrent writes made stale.
_MOST_TRIES: Final = 3
_SHARD: Final = re.compile(r"@?[a-z0-9]{2}/")
LEAST_AGE_OF_INPUTS: Final = 600.0
"""Seconds for which inputs stay at least: they are uploaded before the run that names them."""
PAUSE: Final = 0.005
"""Seconds between two transactions, so that a removal never occupies etcd alone."""

_log = structlog.get_logger(__name__)


class Removed(msgspec.Struct, frozen=True):
    """The numbers of removed parts.

    Attributes:
        records: Runs that were removed completely.
        histories: Histories of actions.
        objects: Actions and traces.
        blobs: Blobs.
        bytes: Bytes of keys and values in etcd.
    """

    records: int = 0
    histories: int = 0
    objects: int = 0
    blobs: int = 0
    bytes: int = 0

    def __add__(self, other: Removed) -> Removed:
        return Removed(*map(operator.add, astuple(self), astuple(other)))


class Needed(NamedTuple):
    """References to data of runs.

    Attributes:
        outputs: The runs whose outputs cached results or recovered runs refer to.
        inputs: The number of runs that have each URI of inputs.
    """

    outputs: Collection[RunName] = ()
    inputs: Mapping[str, int] = {}


class Removal(NamedTuple):
    """The result of the removal of a run.

    Attributes:
        removed: The removed parts.
        kept: Why a part stays, and so the record; empty if none does.
        blob_bytes: Bytes of the blobs, as far as they are known.
        has_failed: Whether it stays because a part cannot be decoded or deleted.
    """

    removed: Removed = Removed()
    kept: str = ""
    blob_bytes: int = 0
    has_failed: bool = False


class _Object(NamedTuple):
    """An action or a trace to delete."""

    key: bytes
    mod_revision: int
    size: int


class _Stays(NamedTuple):
    """Why an object stays, and so its run; see :class:`Removal`."""

    reason: str
    has_failed: bool = False


class _Run(NamedTuple):
    """All objects of a run, parents first.

    Attributes:
        objects: The objects.
        unchanged: Compares that hold while nothing was added or changed.
    """

    objects: list[_Object]
    unchanged: tuple[Compare, ...]


class RunRemover:
    """Removes runs; the module docstring has the order.

    Args:
        store: Reads and writes.
        keys: The keys of runs.
        objects: Whether to remove objects; False if an API server owns them.
        blobs: The store of the runs' data; None keeps the data.
    """

    def __init__(
        self, store: Store, keys: Keyspace, *, objects: bool, blobs: BlobStore | None
    ) -> None:
        self._store = store
        self._keys = keys
        self._objects = objects
        self._blobs = blobs

    async def remove(
        self,
        seen: KeyValue,
        record: RunRecord,
        needed: Needed,
        before: float,
        *,
        dry_run: bool = False,
    ) -> Removal:
        """Remove a run, except parts that are needed. Cancelled, some parts are removed.

        Args:
            seen: Its record as it was read; with ``mod_revision`` 0 there is none.
            record: The same, decoded.
            needed: References to data of runs.
            before: Seconds since 1970; blobs that were stored later stay.
            dry_run: Remove nothing, and return the parts that would be removed.

        Returns:
            The removed parts; the record stays if another part does.

        Raises:
            EtcdError: etcd failed; some parts may be removed.
        """
        removed = Removed()
        try:
            namespace, name = parse_key(self._keys.runs, seen.key)
            keys = self._keys.within(namespace)
            root = keys.task_action(ActionId("", "", name, ROOT_ACTION))
        except (DecodeError, ValueError) as error:
            return Removal(kept=f"its key cannot be decoded: {error}", has_failed=True)
        # Histories that were written later are those of a later run of the same name.
        until = seen.mod_revision or (await self._store.read(KeyRange.of_key(root)))[1]
        if self._objects:
            stays, removed = await self._remove_objects(seen, record, keys, root, dry_run=dry_run)
            if stays is not None:
                return Removal(removed, stays.reason, has_failed=stays.has_failed)
        fence = await self._root_is_terminal(root)
        if fence is None:
            return Removal(removed, "its root is not terminal, or cannot be decoded")
        run = (record.project, record.domain, record.name)
        # The record has their URI, so it stays as long as they do.
        is_needed = self._blobs is not None and run in needed.outputs
        kept, size, has_failed = "", 0, False
        histories = await self._histories(until, record, keys)
        if is_needed:
            kept = "its outputs are in use: by cached results, or as inputs of other runs"
        else:
            # Before the histories, which have the URIs of the outputs.
            places = self._places(record, histories)
            blobs, size, stays = await self._remove_blobs(
                record, places, needed, before, dry_run=dry_run
            )
            kept, has_failed = stays or _Stays("")
            removed += Removed(blobs=blobs)
        if not kept or is_needed:
            kvs = [kv for kv, _ in histories]
            if dry_run:
                removed += Removed(histories=len(kvs), bytes=sum(map(_size, kvs)))
            else:
                removed += await self._remove_histories(kvs)
        if kept:
            return Removal(removed, kept, size, has_failed)
        if dry_run:
            return Removal(removed + Removed(records=1, bytes=_size(seen)), "", size)
        task = self._keys.run_tasks + seen.key.removeprefix(self._keys.runs)
        deletes = [Delete(KeyRange.of_key(key)) for key in (seen.key, task)]
        if not (await self._store.txn(Txn([_unchanged(seen), fence], deletes))).succeeded:
            return Removal(removed, "its record or its root changed", size)
        return Removal(removed + Removed(records=1, bytes=_size(seen)), "", size)

    async def _remove_objects(
        self, seen: KeyValue, record: RunRecord, keys: Keyspace, root: bytes, *, dry_run: bool
    ) -> tuple[_Stays | None, Removed]:
        """Remove actions and traces; returns why one stays, and the removed parts."""
        removed = Removed()
        tries = 0
        while tries < _MOST_TRIES:
            tries += 1
            run = await self._read(record, keys, root)
            if isinstance(run, _Stays):
                return run, removed
            if dry_run:
                size = sum(each.size for each in run.objects)
                return None, Removed(objects=len(run.objects), bytes=size)
            if not run.objects:
                return None, removed
            record_unchanged = _unchanged(seen)
            for at in range(0, len(run.objects), _BATCH):
                batch = run.objects[at : at + _BATCH]
                compares = [record_unchanged, *run.unchanged]
                compares += [Compare.unchanged(each.key, each.mod_revision) for each in batch]
                deletes = [Delete(KeyRange.of_key(each.key)) for each in batch]
                if not (await self._store.txn(Txn(compares, deletes, ()))).succeeded:
                    # Added, changed, or deleted by the collector of orphans.
                    break
                removed += Removed(objects=len(batch), bytes=sum(each.size for each in batch))
                tries = 0
                await trio.sleep(PAUSE)
            else:
                return None, removed
        return _Stays("its actions change all the time"), removed

    async def _read(self, record: RunRecord, keys: Keyspace, root: bytes) -> _Run | _Stays:
        """The objects of a run; if one, and so all, must stay, the reason."""
        found: dict[bytes, tuple[_Object, str, str]] = {}
        unchanged: list[Compare] = []
        for prefix in keys.run_prefixes(record.name)[:2]:
            keyrange = KeyRange.of_prefix(prefix)
            newest = 0
            async with aclosing(self._store.each(keyrange)) as kvs:
                async for kv in kvs:
                    newest = max(newest, kv.mod_revision)
                    try:
                        action = StoredAction.of(kv)
                    except DecodeError:
                        # The object may belong to this run.
                        key = kv.key.decode(errors="backslashreplace")
                        return _Stays(f"{key} cannot be decoded", has_failed=True)
                    stored = action.action_id
                    if (stored.project, stored.domain, stored.run) != _name(record):
                        continue
                    if reason := _kept(action):
                        return _Stays(reason)
                    name = canonical_name(stored.run, stored.name)
                    parent = canonical_name(stored.run, action.parent)
                    found[kv.key] = _Object(kv.key, kv.mod_revision, _size(kv)), name, parent
            unchanged.append(
                Compare(
                    keyrange.start,
                    CompareTarget.MOD_REVISION,
                    CompareResult.LESS,
                    newest + 1,
                    keyrange.end,
                )
            )
        depths = _depths({name: parent for _, name, parent in found.values()})
        ordered = sorted(found.values(), key=lambda each: (each[0].key != root, depths[each[1]]))
        return _Run([each for each, _, _ in ordered], tuple(unchanged))

    async def _root_is_terminal(self, root: bytes) -> Compare | None:
        """A compare that the root is unchanged; None if it is not terminal."""
        kv = await self._store.get(root)
        if kv is not None:
            try:
                if not StoredAction.of(kv).is_terminal:
                    return None
            except DecodeError:
                return None  # The root may be running.
        return Compare.unchanged(root, 0 if kv is None else kv.mod_revision)

    async def _histories(
        self, until: int, record: RunRecord, keys: Keyspace
    ) -> list[tuple[KeyValue, ActionHistory]]:
        """The histories of a run's actions, without those of the run ``<run>-<more>``."""
        prefix = self._keys.histories + f"{keys.namespace}/{record.name}-".encode()
        found: list[tuple[KeyValue, ActionHistory]] = []
        async with aclosing(self._store.each(KeyRange.of_prefix(prefix))) as kvs:
            async for kv in kvs:
                try:
                    history = decode_history(kv.value)
                except DecodeError:
                    continue
                if history.create_revision > until:
                    continue
                if (history.project, history.domain, history.run) == _name(record):
                    found.append((kv, history))
        return found

    async def _remove_histories(self, kvs: Sequence[KeyValue]) -> Removed:
        removed = Removed()
        for at in range(0, len(kvs), _BATCH):
            batch = list(kvs[at : at + _BATCH])
            if not self._objects:
                batch = [kv for kv in batch if not await self._is_running(kv)]
            # If one of them was written since the read, delete each by itself.
            for part in ([batch], [[kv] for kv in batch]):
                done = [each for each in part if each and await self._delete_all(each)]
                removed += Removed(
                    histories=sum(map(len, done)),
                    bytes=sum(_size(kv) for kvs in done for kv in kvs),
                )
                if done:
                    break
            await trio.sleep(PAUSE)
        return removed

    async def _delete_all(self, kvs: Sequence[KeyValue]) -> bool:
        """Delete keys if all are unchanged."""
        deletes = [Delete(KeyRange.of_key(kv.key)) for kv in kvs]
        return (await self._store.txn(Txn([*map(_unchanged, kvs)], deletes, ()))).succeeded

    async def _is_running(self, history: KeyValue) -> bool:
        """Whether the action of a history is not terminal."""
        name = history.key[len(self._keys.histories) :]
        kv = await self._store.get(self._keys.prefix + name)
        if kv is None:
            return False
        try:
            return not StoredAction.of(kv).is_terminal
        except DecodeError:
            return True

    def _places(
        self, record: RunRecord, histories: Iterable[tuple[KeyValue, ActionHistory]]
    ) -> list[str]:
        """The prefixes of the store's keys that have outputs of this run only."""
        if self._blobs is None or not record.output_base:
            return []
        base = self._blobs.key_of(record.output_base.rstrip("/"))
        if base is None or tuple(base.split("/")[-3:]) != _name(record):
            return []
        places = {base}
        # In an object store, Flyte spreads outputs over the key space.
        for _, history in histories:
            for attempt in history.attempts:
                key = self._blobs.key_of(attempt.output_uri) if attempt.output_uri else None
                spread = None if key is None else _SHARD.match(key)
                if key is not None and spread and key[spread.end() :].startswith(f"{base}/"):
                    places.add(key)
        return sorted(places)

    async def _remove_blobs(
        self,
        record: RunRecord,
        places: Iterable[str],
        needed: Needed,
        before: float,
        *,
        dry_run: bool,
    ) -> tuple[int, int, _Stays | None]:
        """Remove outputs and inputs; returns their number and bytes, and why one stays."""
        if self._blobs is None:
            return 0, 0, None
        blobs, count, size = self._blobs, 0, 0
        stays: _Stays | None = None

        async def remove(info: BlobInfo, unless_after: float | None = None) -> None:
            nonlocal count, size
            if dry_run or await blobs.delete(info.key, unless_after=unless_after):
                count, size = count + 1, size + info.size

        try:
            for place in places:
                async with aclosing(blobs.below(place)) as found:
                    async for info in found:
                        if info.modified <= before:
                            await remove(info)
                        else:
                            stays = _Stays("outputs of it were stored just now")
            if needed.inputs.get(record.input_uri, 0) <= 1:
                inputs = await self._inputs(blobs, record)
                # A run with the same contents may be about to be created. The collector of uploads
                # finds young ones later.
                least = before - LEAST_AGE_OF_INPUTS
                if inputs is not None and inputs.modified <= least:
                    await remove(inputs, unless_after=least)
        except BlobError as error:
            _log.warning("blobs_not_collected", run=record.name, error=str(error))
            stays = _Stays(f"its files cannot be deleted: {error}", has_failed=True)
        return count, size, stays

    async def _inputs(self, blobs: BlobStore, record: RunRecord) -> BlobInfo | None:
        key = blobs.key_of(record.input_uri) if record.input_uri else None
        if key is None or not key.startswith(f"inputs/{record.project}/{record.domain}/"):
            return None
        return await blobs.stat(key)


def _name(record: RunRecord) -> RunName:
    return record.project, record.domain, record.name


def _size(kv: KeyValue) -> int:
    return len(kv.key) + len(kv.value)


def _unchanged(seen: KeyValue) -> Compare:
    return Compare.unchanged(seen.key, seen.mod_revision)


def _kept(action: StoredAction) -> str:
    """Why an action stays: it is not terminal or recorded, or has a finalizer that is not ours."""
    name = action.action_id.name
    if not action.is_terminal:
        return f"{name} is {action.phase.name}"
    if not action.is_recorded:
        return f"the end of {name} is not recorded yet: the leader reports it first"
    foreign = [each for each in action.metadata.finalizers if each != FINALIZER_RECORD]
    return f"{name} has the finalizer {foreign[0]}, whose owner removes it" if foreign else ""


def _depths(parents: Mapping[str, str]) -> dict[str, int]:
    """The depth of each action below the root; 0 without a stored parent."""
    depths: dict[str, int] = {}
    for name in parents:
        path: list[str] = []
        at = name
        while at in parents and at not in depths and at not in path:
            path.append(at)
            at = parents[at]
        depth = depths.get(at, -1)
        for each in reversed(path):
            depth += 1
            depths[each] = depth
    return depths
