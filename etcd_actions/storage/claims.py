"""Claims: keys attached to a process's lease. The process with the claim runs the action.

A claim is created only if there is none, and the action is the incarnation that was read. The
transaction of each report of the owner compares the claim. So a process that lost its claims,
because its lease expired, can write no report. The claims of a process that ended, or is silent,
are free. So is a claim without a lease, which another program has overwritten.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final, NamedTuple

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
    Put,
    Txn,
)
from etcd_actions.etcd.session import Session, open_session
from etcd_actions.model import ActionId, Incarnation, Keyspace
from etcd_actions.storage.store import Store, key_of

LONGEST_TTL: Final = 3600
"""Seconds: a service grants workers no claims that outlive their owner for longer."""

_log = structlog.get_logger(__name__)


class Claim(NamedTuple):
    """The right to run an action, and to report on it.

    Attributes:
        key: The key of the claim.
        create_revision: The key's ``create_revision``; a later claim of the same key has another.
    """

    key: bytes
    create_revision: int

    @property
    def fence(self) -> Compare:
        """A compare that holds in etcd while this claim exists, and never again."""
        return Compare.incarnation(self.key, self.create_revision)


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
    """The claimed incarnation, as ``Incarnation.path_component``."""
    owner: str


async def claimed_by(store: Store, keys: Keyspace, action_id: ActionId) -> str:
    """The owner of an action's claim, ``<host>/<process>``; empty if there is none.

    Raises:
        EtcdError: The read failed.
    """
    kv = await store.get(keys.claim(action_id))
    if kv is None:
        return ""
    try:
        return msgspec.json.decode(kv.value, type=_Stored).owner
    except (msgspec.DecodeError, RecursionError, ValueError):
        return ""


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
        store: Reads and writes the claims.
        keys: The keyspace of the claims.
        ttl: Seconds after which the claims of a silent process are free again.
        containment: Counts unexpected failures; by default one of its own.

    Raises:
        EtcdError: etcd granted no lease.
    """
    runner = partial((containment or Containment()).keep, "task", "renewing the claims")
    report = seldom(_log, "claims_not_renewed")
    async with open_session(etcd, ttl, replaces=True, report=report, runner=runner) as session:
        yield Claims(store, keys, session)


class Claims:
    """The claims of one process; :func:`open_claims` makes it."""

    def __init__(self, store: Store, keys: Keyspace, session: Session) -> None:
        self._store = store
        self._keys = keys
        self._session = session
        self._owner = f"{socket.gethostname()}/{os.getpid()}"

    @property
    def lost(self) -> trio.Event:
        """Set when all present claims are lost; later claims have another event."""
        return self._session.over

    @property
    def deadline(self) -> float:
        """The time, on trio's clock, until which the claims surely exist; renewals move it."""
        return self._session.deadline

    @property
    def are_sure(self) -> bool:
        """Whether the claims surely exist at this moment."""
        return self._session.is_sure

    async def claim(self, action_id: ActionId, incarnation: Incarnation) -> Claim | None:
        """Claim an action; None if another process has it, or the incarnation is another one.

        If this process has the claim already, it is returned. Its claim of an earlier incarnation
        is released first. After a cancellation the claim may exist: the next call returns it, or it
        ends with the process.

        Args:
            action_id: The action.
            incarnation: The incarnation of its object, as it was read.

        Raises:
            EtcdError: A request failed; the claim may exist.
        """
        claimed = await self.claim_and_read(action_id, incarnation)
        return None if claimed is None else claimed.claim

    async def claim_and_read(self, action_id: ActionId, incarnation: Incarnation) -> Claimed | None:
        """Claim an action as :meth:`claim` does, and read its object, in one transaction."""
        key, object_key = self._keys.claim(action_id), self._keys.task_action(action_id)
        revision = incarnation.create_revision
        same = Compare.incarnation(object_key, revision)
        return await self._claim(
            key,
            incarnation.path_component,
            [same],
            [Get(KeyRange.of_key(object_key))],
            replace=True,
        )

    async def reserve(self, key: bytes, subject: str) -> Claim | None:
        """Claim a key that is not an action's, with the same lease; None if it has another owner.

        Args:
            key: The key.
            subject: The owner within this process, such as an incarnation. If the subject has the
                claim already, it is returned; if another one has it, None.

        Raises:
            EtcdError: A request failed; the claim may exist.
        """
        claimed = await self._claim(key, subject, [], [], replace=False)
        return None if claimed is None else claimed.claim

    async def unreserve(self, key: bytes, subject: str) -> None:
        """Release a key that :meth:`reserve` may have claimed; the claim of another owner stays.

        Raises:
            EtcdError: A request failed; the claim may still exist.
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
            free = Compare.incarnation(key, 0)
            put, present = Put(key, value, lease), Get(KeyRange.of_key(key))
            try:
                result = await self._store.txn(Txn([free, *also], [put, *reads], [present, *reads]))
            except LeaseNotFound:
                await self._session.replace(lease)
                continue
            except OutcomeUnknown:
                read = await self._store.txn(Txn((), (present, *reads)))
                found, *objects = map(key_of, read.responses)
                if found is None or found.lease != lease or found.value != value:
                    raise
                return Claimed(Claim(key, found.create_revision), *objects)
            found, *objects = map(key_of, result.responses)
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
        """Release a claim, unless it is lost already.

        Raises:
            EtcdError: The request failed; the claim may exist until the process ends.
        """
        # A service deletes for a worker only what has a lease of the worker.
        own = _has_lease(claim.key, self._session.lease.id)
        await self._store.txn(Txn([claim.fence, own], [Delete(KeyRange.of_key(claim.key))]))

    async def taken(self) -> set[str]:
        """The objects that any process has claimed, as ``<namespace>/<name>``.

        Raises:
            EtcdError: The read failed.
        """
        claims = self._keys.claims
        kvs, _ = await self._store.read(KeyRange.of_prefix(self._keys.below(claims)))
        return {kv.key[len(claims) :].decode(errors="replace") for kv in kvs if kv.lease}

    async def reserved(self, prefix: bytes) -> dict[bytes, str]:
        """The subjects of the keys below a prefix that processes have reserved, by the key.

        Raises:
            EtcdError: The read failed.
        """
        kvs, _ = await self._store.read(KeyRange.of_prefix(prefix))
        found: dict[bytes, str] = {}
        for kv in kvs:
            with suppress(msgspec.DecodeError, RecursionError, ValueError):
                if kv.lease:
                    found[kv.key] = msgspec.json.decode(kv.value, type=_Stored).object
        return found

    async def _delete(self, found: KeyValue) -> None:
        """Delete a claim without a lease, which would never expire, if it is unchanged.

        It is not overwritten, because the fence of its former owner would hold again.
        """
        unchanged = Compare.unchanged(found.key, found.mod_revision)
        delete = Delete(KeyRange.of_key(found.key))
        result = await self._store.txn(Txn([unchanged, _has_lease(found.key, 0)], [delete]))
        key = found.key.decode(errors="backslashreplace")
        _log.warning("claim_without_lease", key=key, deleted=result.succeeded)


def _has_lease(key: bytes, lease: int) -> Compare:
    return Compare(key, CompareTarget.LEASE, CompareResult.EQUAL, lease)
