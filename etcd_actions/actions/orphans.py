"""Collects what a deleted action leaves behind: its children and its traces.

Kubernetes has a garbage collector for that; on bare etcd nobody else does it. Each write
compares that the parent is absent, or another incarnation, and that the orphan is as it was
read. A deletion is a state first: what goes on is ended as ABORTED, what is not recorded yet
waits for that; the mark then deletes it. Its own children follow, since each deletion is
looked at in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import NamedTuple

import structlog

from etcd_actions.actions.abort import aborted_value, ask_for_deletion, encoded
from etcd_actions.actions.rewrite import utc_now
from etcd_actions.actions.stored import StoredTaskAction
from etcd_actions.codecs import codec_of
from etcd_actions.containment import Containment
from etcd_actions.errors import DecodeError, EtcdError
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Delete,
    KeyRange,
    KeyValue,
    Operation,
    Put,
    Txn,
)
from etcd_actions.model import FINALIZER_RECORD, KIND, ActionUpdate, Keyspace, TaskAction
from etcd_actions.store import Store

REASON = "the parent is gone"

_log = structlog.get_logger(__name__)


class _Owned(NamedTuple):
    """An object, and the parent that it names."""

    key: bytes
    owner_key: bytes
    owner_uid: str


class OrphanCollector:
    """Collects the orphans of one prefix, in all its namespaces."""

    def __init__(
        self,
        store: Store,
        keys: Keyspace,
        *,
        clock: Callable[[], datetime] = utc_now,
        containment: Containment | None = None,
    ) -> None:
        self._containment = containment or Containment()
        self._store = store
        self._keys = keys
        self._clock = clock

    async def owner_gone(self, deleted: ActionUpdate) -> None:
        """Collect the direct children, and the traces, of an action that was deleted.

        Raises:
            EtcdError: etcd did not do it all; it may be done again.
        """
        keys = Keyspace(self._keys.prefix, deleted.namespace)
        orphans: list[_Owned] = []
        for prefix in keys.run_prefixes(deleted.action_id.run)[:2]:
            kvs, _ = await self._store.read(KeyRange.of_prefix(prefix))
            owned = map(self._owned, kvs)
            orphans += [one for one in owned if one is not None and one.owner_uid == deleted.uid]
        await self._collect_all(orphans)

    async def sweep(self) -> None:
        """Collect all orphans that there are: what lost its parent while nobody watched.

        Raises:
            EtcdError: etcd did not do it all; it may be done again.
        """
        uids: dict[bytes, str] = {}
        owned: list[_Owned] = []
        for prefix in (self._keys.prefix, self._keys.traces):
            async for kv in self._store.each(KeyRange.of_prefix(prefix)):
                one = self._owned(kv, uids)
                if one is not None:
                    owned.append(one)
        orphans = [one for one in owned if uids.get(one.owner_key) != one.owner_uid]
        self._containment.retain("orphan", {_text(one) for one in orphans})
        await self._collect_all(orphans, parks=True)

    async def _collect_all(self, orphans: Iterable[_Owned], *, parks: bool = False) -> None:
        """Collect each by itself: one that cannot be changed holds up no other."""
        failure: EtcdError | None = None
        for one in orphans:
            key = _text(one)
            with self._containment.unit("orphan", key, parks=parks) as unit:
                try:
                    await self._collect(one)
                except DecodeError as error:
                    _log.error("orphan_not_collected", key=key, reason=str(error))
                except EtcdError as error:
                    _log.warning("orphan_not_collected", key=key, reason=str(error))
                    failure = error
            if unit.failed:
                failure = failure or EtcdError(f"the orphan {key} failed unexpectedly")
        if failure is not None:
            raise failure

    def _owned(self, kv: KeyValue, uids: dict[bytes, str] | None = None) -> _Owned | None:
        try:
            action = codec_of(kv.value).decode(kv.value, key=kv.key, revision=kv.mod_revision)
        except DecodeError as error:
            _log.debug("value_undecodable", reason=str(error))
            return None
        if uids is not None:
            uids[kv.key] = action.metadata.uid
        for owner in action.metadata.owner_references:
            if owner.kind == KIND and owner.uid:
                namespace = action.metadata.namespace or self._keys.namespace
                key = f"{namespace}/{owner.name}".encode(errors="replace")
                return _Owned(kv.key, self._keys.prefix + key, owner.uid)
        return None

    async def _collect(self, owned: _Owned) -> None:
        """Take one step with an orphan, unless its parent is there after all."""
        while True:
            kv = await self._store.get(owned.key)
            owner = await self._store.get(owned.owner_key)
            if kv is None or self._owned(kv) != owned:
                return
            if owner is not None and _uid(owner) in ("", owned.owner_uid):
                return
            revision = 0 if owner is None else owner.create_revision
            parent_gone = Compare(
                owned.owner_key, CompareTarget.CREATE_REVISION, CompareResult.EQUAL, revision
            )
            unchanged = Compare(
                kv.key, CompareTarget.MOD_REVISION, CompareResult.EQUAL, kv.mod_revision
            )
            action = StoredTaskAction.of(kv)
            write = self._step(kv, action)
            if write is None:
                return
            if (await self._store.txn(Txn([parent_gone, unchanged], [write]))).succeeded:
                if not action.is_terminal:
                    # Nothing alive is ended silently: its parent may just have expired.
                    _log.warning(
                        "orphan_aborted",
                        key=_text(owned),
                        parent=owned.owner_key.decode(errors="backslashreplace"),
                        parent_uid=owned.owner_uid,
                        phase=action.phase.name,
                    )
                return

    def _step(self, kv: KeyValue, action: TaskAction) -> Operation | None:
        """What is to be done with an orphan now; nothing where others have to act first."""
        if not action.is_terminal:
            value = aborted_value(kv, REASON, "", now=self._clock(), delete=True)
            return Put(kv.key, value, kv.lease)
        foreign = any(each != FINALIZER_RECORD for each in action.metadata.finalizers)
        if action.is_recorded and not foreign:
            return Delete(KeyRange.of_key(kv.key))
        tree = codec_of(kv.value).decode_tree(kv.value, key=kv.key, revision=kv.mod_revision)
        if not ask_for_deletion(tree, self._clock()):
            return None
        return Put(kv.key, encoded(kv, tree), kv.lease)


def _text(owned: _Owned) -> str:
    return owned.key.decode(errors="backslashreplace")


def _uid(kv: KeyValue) -> str:
    """The incarnation of an object; empty where it cannot be read, and may be any."""
    try:
        return codec_of(kv.value).decode(kv.value).metadata.uid
    except DecodeError:
        return ""
