"""Claims: keys on a process's lease that say which process runs an action.

A claim is created only while there is none and the action is the incarnation that was read. What
its owner reports compares it in the same transaction, so a process that lost its claims, because
its lease expired, can write nothing any more. The claims of a process that ends, or falls silent,
are free. So is a claim without a lease: another program wrote over it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple

import msgspec
import structlog
import trio

from etcd_actions._internal.containment import Containment
from etcd_actions._internal.retrying import seldom
from etcd_actions.errors import LeaseNotFound, OutcomeUnknown
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Delete,
    Etcd,
    Get,
    KeyRange,
    KeyValue,
    OperationResult,
    Put,
    RangeResult,
    Txn,
)
from etcd_actions.etcd.session import Session, open_session
from etcd_actions.model import ActionId, Incarnation, Keyspace
from etcd_actions.storage.store import Store

_log = structlog.get_logger(__name__)


class Claim(NamedTuple):
    """The right to run an action, and to report on it.

    Attributes:
        key: Its key.
        create_revision: Its ``create_revision``: a later claim under the same key is another one.
    """

    key: bytes
    create_revision: int

    @property
    def fence(self) -> Compare:
        """Holds in etcd while this claim lasts, and never again."""
        return Compare(
            self.key, CompareTarget.CREATE_REVISION, CompareResult.EQUAL, self.create_revision
        )


class Claimed(NamedTuple):
    """A claim that was created, or existed.

    Attributes:
        claim: The claim.
        object: The action's object at that moment; None if it does not exist, or was not read.
    """

    claim: Claim
    object: KeyValue | None = None


class _Stored(msgspec.Struct, frozen=True):
    """The value of a claim's key."""

    object: str
    """The incarnation that is claimed, as `Incarnation.path_component` names it."""
    owner: str


async def claimed_by(store: Store, keys: Keyspace, action_id: ActionId) -> str:
    """The owner of an action's claim, ``<host>/<process>``; empty for none that can be read.

    Raises:
        EtcdError: etcd could not be read.
    """
    kv = await store.get(keys.claim(action_id))
    if kv is None:
        return ""
    try:
        return msgspec.json.decode(kv.value, type=_Stored).owner
    except (msgspec.DecodeError, RecursionError, ValueError):
        return ""


def _first(responses: Sequence[OperationResult]) -> list[KeyValue | None]:
    """The key in each response; None for one that is no read, or has none."""
    return [
        each.kvs[0] if isinstance(each, RangeResult) and each.kvs else None for each in responses
    ]


@asynccontextmanager
async def open_claims(
    etcd: Etcd,
    store: Store,
    keys: Keyspace,
    *,
    ttl: int,
    containment: Containment | None = None,
) -> AsyncIterator[Claims]:
    """Create claims within the context; leaving it releases all of them.

    Args:
        etcd: The connection.
        store: Reads and writes them.
        keys: Their keys.
        ttl: Seconds after which the claims of a process that fell silent are free again.
        containment: Counts unexpected failures; by default one of its own.

    Raises:
        EtcdError: etcd granted no lease.
    """
    runner = partial((containment or Containment()).keep, "task", "renewing the claims")
    report = seldom(_log, "claims_not_renewed")
    async with open_session(etcd, ttl, replaces=True, report=report, runner=runner) as session:
        yield Claims(store, keys, session)


class Claims:
    """The claims of one process; made by :func:`open_claims`."""

    def __init__(self, store: Store, keys: Keyspace, session: Session) -> None:
        self._store = store
        self._keys = keys
        self._session = session
        self._owner = f"{socket.gethostname()}/{os.getpid()}"

    @property
    def lost(self) -> trio.Event:
        """Set when all claims that exist now are lost; later ones have another event."""
        return self._session.over

    async def claim(self, action_id: ActionId, incarnation: Incarnation) -> Claim | None:
        """Claim an action; None if another process has it, or the incarnation is another one.

        A claim that this process has already is returned; one of an earlier incarnation is
        released first. Cancelled, the claim may have been created: the next call returns it, or it
        ends with the process.

        Args:
            action_id: The action.
            incarnation: Its object, as it was read.

        Raises:
            EtcdError: etcd did not do it, or maybe did.
        """
        claimed = await self.claim_and_read(action_id, incarnation)
        return None if claimed is None else claimed.claim

    async def claim_and_read(self, action_id: ActionId, incarnation: Incarnation) -> Claimed | None:
        """Claim an action as `claim` does, and read its object, in one transaction."""
        key, object_key = self._keys.claim(action_id), self._keys.task_action(action_id)
        revision = incarnation.create_revision
        same = Compare(object_key, CompareTarget.CREATE_REVISION, CompareResult.EQUAL, revision)
        return await self._claim(
            key,
            incarnation.path_component,
            [same],
            [Get(KeyRange.of_key(object_key))],
            replace=True,
        )

    async def reserve(self, key: bytes, subject: str) -> Claim | None:
        """Claim a key that others wait for, on the same lease; None if another has it.

        Args:
            key: The key.
            subject: The owner within this process, such as an incarnation. For the same subject the
                existing claim is returned, for another one None.

        Raises:
            EtcdError: etcd did not do it, or maybe did.
        """
        claimed = await self._claim(key, subject, [], [], replace=False)
        return None if claimed is None else claimed.claim

    async def unreserve(self, key: bytes, subject: str) -> None:
        """Release a key that `reserve` may have claimed; that of another owner is left alone.

        Raises:
            EtcdError: etcd did not do it, or maybe did.
        """
        found = await self._store.get(key)
        value = msgspec.json.encode(_Stored(subject, self._owner))
        if found is not None and found.lease == self._session.lease.id and found.value == value:
            await self.release(Claim(key, found.create_revision))

    async def _claim(
        self, key: bytes, subject: str, also: list[Compare], reads: list[Get], *, replace: bool
    ) -> Claimed | None:
        value = msgspec.json.encode(_Stored(subject, self._owner))
        while True:
            lease = self._session.lease.id
            free = Compare(key, CompareTarget.CREATE_REVISION, CompareResult.EQUAL, 0)
            put, present = Put(key, value, lease), Get(KeyRange.of_key(key))
            try:
                result = await self._store.txn(Txn([free, *also], [put, *reads], [present, *reads]))
            except LeaseNotFound:
                await self._session.replace(lease)
                continue
            except OutcomeUnknown:
                found, *objects = _first(
                    (await self._store.txn(Txn((), (present, *reads)))).responses
                )
                if found is None or found.lease != lease or found.value != value:
                    raise
                return Claimed(Claim(key, found.create_revision), *objects)
            found, *objects = _first(result.responses)
            if result.succeeded:
                return Claimed(Claim(key, result.revision), *objects)
            if found is not None and not found.lease:
                await self._delete(found)
                continue
            if found is None or found.lease != lease:
                return None
            claim = Claim(key, found.create_revision)
            if found.value == value:
                return Claimed(claim, *objects)
            if not replace:
                return None
            await self.release(claim)

    async def release(self, claim: Claim) -> None:
        """Release a claim; one that is lost already is left alone.

        Raises:
            EtcdError: etcd did not do it, or maybe did: it ends with the process.
        """
        await self._store.txn(Txn([claim.fence], [Delete(KeyRange.of_key(claim.key))]))

    async def taken(self) -> set[str]:
        """The objects that any process has claimed, as ``<namespace>/<name>``.

        Raises:
            EtcdError: etcd could not be read.
        """
        claims = self._keys.claims
        kvs, _ = await self._store.read(KeyRange.of_prefix(self._keys.below(claims)))
        return {kv.key[len(claims) :].decode(errors="replace") for kv in kvs if kv.lease}

    async def _delete(self, found: KeyValue) -> None:
        """Delete a claim that would never expire, if it is unchanged.

        It is not replaced in place: the fence of its former owner would still hold.
        """
        unchanged = Compare(
            found.key, CompareTarget.MOD_REVISION, CompareResult.EQUAL, found.mod_revision
        )
        delete = Delete(KeyRange.of_key(found.key))
        result = await self._store.txn(Txn([unchanged], [delete]))
        key = found.key.decode(errors="backslashreplace")
        _log.warning("claim_without_lease", key=key, deleted=result.succeeded)
