"""Collects the children and traces of deleted actions: orphans.

Kubernetes has a garbage collector for that; without Kubernetes this module does it. Each write
compares that the parent is absent, or another incarnation, and that the orphan is unchanged. An
orphan that is not terminal is first set to ABORTED, and the mark deletes it after it is recorded.
Its own children are collected after its deletion.

An orphan can name its parent by an owner reference with a uid: then the parent is that incarnation,
and Kubernetes' garbage collector would collect the orphan, too. Or it names the parent by
``spec.parentActionName`` only: ``kubectl delete --cascade=orphan`` removes the owner references. No
garbage collector collects such an orphan, so this module does it next to Kubernetes, too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import NamedTuple

import structlog
import trio

from etcd_actions._internal.containment import Containment
from etcd_actions.actions.aborted_object import aborted_value, encoded, set_deletion_timestamp
from etcd_actions.actions.rewrite import utc_now
from etcd_actions.actions.run_listings import Listed, Run, RunListings
from etcd_actions.actions.stored_action import StoredAction, same_run
from etcd_actions.codecs import codec_of
from etcd_actions.errors import DecodeError, EtcdError
from etcd_actions.etcd.api import (
    Compare,
    Delete,
    KeyRange,
    KeyValue,
    Operation,
    Put,
    Txn,
)
from etcd_actions.model import (
    FINALIZER_RECORD,
    KIND,
    ActionId,
    ActionObject,
    ActionUpdate,
    Keyspace,
    canonical_name,
    task_action_name,
)
from etcd_actions.storage.store import Store

REASON = "the parent is gone"

# Objects that are decoded before other tasks run: some milliseconds.
_AT_A_TIME = 200

_log = structlog.get_logger(__name__)


class _Owned(NamedTuple):
    """An object, and the parent that it names."""

    key: bytes
    owner_key: bytes
    owner_uid: str
    """Empty if it names the parent by ``spec.parentActionName`` only: any incarnation will do."""
    run: ActionId | None = None
    """The identity of the orphan, if there is no uid: its parent is of the same run."""

    def may_be(self, owner: Owner) -> bool:
        """Whether the object with the parent's key may be the parent; an undecodable one may be."""
        if owner is None:
            return True
        uid, action_id = owner
        if self.run is not None:
            return same_run(action_id, self.run)
        return not self.owner_uid or uid in ("", self.owner_uid)


Owner = tuple[str, ActionId] | None
"""Uid and identity of an object; None if it cannot be decoded."""


class _Ended:
    """Counts the actions that a collection ended, for the log."""

    def __init__(self) -> None:
        self.count = 0
        self.by_name = 0
        self.first = ""

    def add(self, owned: _Owned | None) -> None:
        if owned is None:
            return
        self.first = self.first or _text(owned)
        self.count += 1
        self.by_name += owned.run is not None

    def log(self) -> None:
        if self.count:
            _log.info(
                "orphans_ended",
                ended=self.count,
                without_owner_reference=self.by_name,
                first=self.first,
                reason=REASON,
            )


class OrphanCollector:
    """Collects the orphans of one prefix, in all its namespaces.

    Args:
        store: Reads and writes the keys.
        keys: The keyspace.
        unowned_only: Whether to collect only orphans that have no owner reference and are not
            terminal: Kubernetes' garbage collector collects the others.
        finalizer: Whether aborted orphans get our finalizer, until they are recorded.
        clock: Returns the present time.
        containment: Counts unexpected failures.
    """

    def __init__(
        self,
        store: Store,
        keys: Keyspace,
        *,
        unowned_only: bool = False,
        finalizer: bool = True,
        clock: Callable[[], datetime] = utc_now,
        containment: Containment | None = None,
    ) -> None:
        self._unowned_only = unowned_only
        self._finalizer = finalizer
        self._containment = containment or Containment()
        self._store = store
        self._keys = keys
        self._clock = clock
        self._listings = RunListings(self._list)
        # The orphans of the last sweep.
        self._swept: set[str] = set()

    async def on_owner_deleted(self, deleted: ActionUpdate) -> None:
        """Collect the direct children, and the traces, of an action that was deleted.

        Raises:
            EtcdError: A request failed; the call has to be repeated.
        """
        run = Run(deleted.namespace, deleted.action_id.run)
        owned = await self._listings.owned(run, deleted.key, deleted.revision)
        orphans = [one for one in owned if one.run is not None or one.owner_uid == deleted.uid]
        await self._collect_all(orphans)

    async def _list(self, run: Run) -> Listed[_Owned]:
        """The objects and traces of a run, by the key of the parent that each names."""
        keys = self._keys.within(run.namespace)
        by_owner: defaultdict[bytes, list[_Owned]] = defaultdict(list)
        revision = 0
        for prefix in keys.run_prefixes(run.name)[:2]:
            kvs, read_at = await self._store.read(KeyRange.of_prefix(prefix))
            # The first revision counts: a later change may be in the second range only.
            revision = revision or read_at
            for number, kv in enumerate(kvs):
                if number % _AT_A_TIME == 0:
                    await trio.lowlevel.checkpoint()
                one = self._owned(kv)
                if one is not None:
                    by_owner[one.owner_key].append(one)
        return Listed(revision, by_owner)

    async def sweep(self, ranges: Sequence[KeyRange] = ()) -> None:
        """Collect all orphans, also those whose parent was deleted while no process watched.

        Args:
            ranges: The ranges of objects and traces, with complete runs; by default all keys.

        Raises:
            EtcdError: A request failed; the call has to be repeated.
        """
        found: dict[bytes, Owner] = {}
        owned: list[_Owned] = []
        everything = map(KeyRange.of_prefix, (self._keys.prefix, self._keys.traces))
        for keys in ranges or everything:
            async with aclosing(self._store.each(keys)) as kvs:
                async for kv in kvs:
                    one = self._owned(kv, found)
                    if one is not None:
                        owned.append(one)
        orphans = [
            one
            for one in owned
            if one.owner_key not in found or not one.may_be(found[one.owner_key])
        ]
        before, self._swept = self._swept, {_text(one) for one in orphans}
        self._containment.forget_all("orphan", before - self._swept)
        await self._collect_all(orphans, parks=True)

    def stop(self) -> None:
        """Forget the failures: another process sweeps from now on."""
        self._containment.forget_all("orphan", self._swept)
        self._swept.clear()

    async def _collect_all(self, orphans: Iterable[_Owned], *, parks: bool = False) -> None:
        """Collect each orphan as a unit of its own: a failed one delays no other."""
        failure: EtcdError | None = None
        ended = _Ended()
        for one in orphans:
            key = _text(one)
            with self._containment.unit("orphan", key, parks=parks) as unit:
                try:
                    ended.add(await self._collect(one))
                except DecodeError as error:
                    _log.error("orphan_not_collected", key=key, reason=str(error))
                except EtcdError as error:
                    _log.warning("orphan_not_collected", key=key, reason=str(error))
                    failure = error
            if unit.failed:
                failure = failure or EtcdError(f"the orphan {key} failed unexpectedly")
        ended.log()
        if failure is not None:
            raise failure

    def _owned(self, kv: KeyValue, found: dict[bytes, Owner] | None = None) -> _Owned | None:
        """The object with the parent that it names; None if this collector must not collect it."""
        try:
            action = codec_of(kv.value).decode(kv.value, key=kv.key, revision=kv.mod_revision)
        except DecodeError as error:
            _log.debug("value_undecodable", reason=str(error))
            if found is not None:
                found[kv.key] = None
            return None
        if found is not None:
            found[kv.key] = (action.metadata.uid, action.action_id)
        # The namespace of the key counts: the one in the object may be wrong.
        namespace = _namespace(kv.key)
        for owner in action.metadata.owner_references:
            if owner.kind != KIND:
                continue
            if owner.uid or not action.parent:
                if self._unowned_only and owner.uid:
                    return None
                return _Owned(kv.key, self._key(namespace, owner.name), owner.uid)
        action_id, parent = action.action_id, action.parent
        run = action_id.run
        if not parent or canonical_name(run, parent) == canonical_name(run, action_id.name):
            # A root may name itself.
            return None
        return _Owned(kv.key, self._key(namespace, task_action_name(run, parent)), "", action_id)

    def _key(self, namespace: str, name: str) -> bytes:
        return self._keys.prefix + f"{namespace}/{name}".encode(errors="replace")

    async def _collect(self, owned: _Owned) -> _Owned | None:
        """Do the next step of an orphan's collection, unless its parent exists.

        Returns:
            The orphan, if the step ended it.
        """
        while True:
            kv = await self._store.get(owned.key)
            # Kubernetes may have removed its owner reference in the meantime.
            now = None if kv is None else self._owned(kv)
            if kv is None or now is None:
                return None
            owner = await self._store.get(now.owner_key)
            if owner is not None and now.may_be(_owner(owner)):
                return None
            revision = 0 if owner is None else owner.create_revision
            parent_gone = Compare.incarnation(now.owner_key, revision)
            unchanged = Compare.unchanged(kv.key, kv.mod_revision)
            action = StoredAction.of(kv)
            write = self._step(kv, action)
            if write is None:
                return None
            if (await self._store.txn(Txn([parent_gone, unchanged], [write]))).succeeded:
                if action.is_terminal:
                    return None
                # Log each abort of a running action: its parent may have expired.
                _log.warning(
                    "orphan_aborted",
                    key=_text(now),
                    parent=now.owner_key.decode(errors="backslashreplace"),
                    parent_uid=now.owner_uid,
                    phase=action.phase.name,
                )
                return now

    def _step(self, kv: KeyValue, action: ActionObject) -> Operation | None:
        """The next write for an orphan; None if the owner of another finalizer has to act first."""
        if not action.is_terminal:
            value = aborted_value(
                kv, REASON, "", now=self._clock(), delete=True, finalizer=self._finalizer
            )
            return Put(kv.key, value, kv.lease)
        if self._unowned_only:
            # Its parent was deleted with --cascade=orphan: a terminal child is kept.
            return None
        foreign = any(each != FINALIZER_RECORD for each in action.metadata.finalizers)
        if action.is_recorded and not foreign:
            return Delete(KeyRange.of_key(kv.key))
        tree = codec_of(kv.value).decode_tree(kv.value, key=kv.key, revision=kv.mod_revision)
        if not set_deletion_timestamp(tree, self._clock(), finalizer=self._finalizer):
            return None
        return Put(kv.key, encoded(kv, tree), kv.lease)


def _namespace(key: bytes) -> str:
    """The namespace of an object, by its key."""
    return ["", *key.decode(errors="replace").rsplit("/", 2)][-2]


def _text(owned: _Owned) -> str:
    return owned.key.decode(errors="backslashreplace")


def _owner(kv: KeyValue) -> Owner:
    """Uid and identity of an object; None if it cannot be decoded."""
    try:
        action = codec_of(kv.value).decode(kv.value)
    except DecodeError:
        return None
    return action.metadata.uid, action.action_id
