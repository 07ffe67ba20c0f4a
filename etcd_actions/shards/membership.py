"""The membership of a process: its keys on a lease, and the watched view of all shards.

The keys ``member/<name>`` and ``ready/<id>/<name>`` are written on one lease. A member is silent
when its process is stopped or has no connection. Its lease expires then, and the other members
plan without it. When etcd reports that the lease does not exist, another one replaces it, and the
same keys are written again, under the same name: the process continues as a member that joins. That
is safe, because no write depends on membership. Each write of an owner compares the owner's key,
which is on the lease of its election and was deleted with that.

A key that another client deleted, or detached from its lease, is written again, too, within a third
of the lease's time to live.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Final, NamedTuple

import structlog
import trio

from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.containment import Containment
from etcd_actions._internal.owned_tasks import owned_tasks
from etcd_actions._internal.retrying import retrying, seldom
from etcd_actions.errors import EtcdError, LeaseNotFound
from etcd_actions.etcd.api import Delete, Etcd, KeyRange, Operation, Put, Txn
from etcd_actions.etcd.session import Session, open_session
from etcd_actions.shards.shard_keys import (
    ShardKeys,
    check_member_name,
    encode_member,
    encode_ready,
    member_name,
)
from etcd_actions.shards.shard_table import Shard
from etcd_actions.shards.shard_view import ShardIndex, ShardView
from etcd_actions.storage.prefix_index import keep_index
from etcd_actions.watch import ReflectorSettings

_BACKOFF: Final = Backoff(initial=0.1, cap=5.0)

_CHECKS: Final = 3
"""How often the own keys are compared with the view within the lease's time to live."""
_AT_A_TIME: Final = 100
"""Keys in one transaction."""

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_membership(
    etcd: Etcd,
    keys: ShardKeys,
    *,
    name: str | None = None,
    ttl: int = 10,
    executes: bool = False,
    settings: ReflectorSettings | None = None,
    containment: Containment | None = None,
) -> AsyncIterator[Membership]:
    """Make this process a member that watches the shards, until the context is left.

    It does not wait for etcd: the keys are written, and the view is read, once etcd is available.
    Leaving the context revokes the lease, in at most two seconds. If etcd does not answer by then,
    the lease expires.

    Args:
        etcd: The connection; its request timeout should be at most half of ``ttl``.
        keys: The keys of the shards.
        name: The name of this process, which no other process has or had; by default
            :func:`~etcd_actions.shards.shard_keys.member_name` makes one.
        ttl: Seconds after which the other members plan without a silent one.
        executes: Whether this process runs the actions of its shards.
        settings: How the view is watched.
        containment: Counts unexpected failures; by default one of its own.

    Raises:
        ConfigError: The name cannot be part of a key.
    """
    name = member_name() if name is None else check_member_name(name)
    containment = containment or Containment()
    index = ShardIndex(keys)
    membership = Membership(etcd, keys, name, index, executes=executes)
    async with (
        keep_index(
            index, etcd, keys.prefix, name="shards", settings=settings, containment=containment
        ),
        owned_tasks("the membership") as nursery,
    ):
        run = partial(membership._run, ttl)
        nursery.start_soon(containment.keep, "task", "membership", run)
        yield membership
        nursery.cancel_scope.cancel("the membership is left")


class _Written(NamedTuple):
    """A key as it was written: value, lease, and when, on trio's clock."""

    value: bytes
    lease: int
    at: float


class Membership:
    """A member and its view; :func:`open_membership` makes it.

    Attributes:
        name: The name of this member.
    """

    def __init__(
        self, etcd: Etcd, keys: ShardKeys, name: str, index: ShardIndex, *, executes: bool = False
    ) -> None:
        self.name: str = name
        self._etcd = etcd
        self._keys = keys
        self._index = index
        # This member's keys: with the values that they should have, and as they were written.
        member = encode_member(datetime.now(UTC), executes=executes)
        self._own: dict[bytes, bytes] = {keys.member(name): member}
        self._written: dict[bytes, _Written] = {}
        # The version of `_own`, which counts its changes, and the last version that etcd has.
        self._version = 1
        self._written_version = 0
        self._changed = trio.Event()
        self._wrote = trio.Event()

    @property
    def view(self) -> ShardView | None:
        """The present view; None until all keys have been read.

        It is the same object until it changes.
        """
        return self._index.view() if self._index.is_loaded else None

    async def ready(self, patience: float = 10.0) -> ShardView:
        """The view, once all keys have been read.

        Args:
            patience: Seconds.

        Raises:
            EtcdError: etcd refused the read, or it took longer.
        """
        await self._index.ready(patience)
        return self._index.view()

    async def wait_changed(self, seen: ShardView | None) -> None:
        """Return once the view differs from ``seen``, which is a result of :attr:`view`."""
        await trio.lowlevel.checkpoint()
        while self.view is seen:
            await self._index.advanced.wait()

    def set_ready(self, shard: Shard) -> None:
        """Report that this member's watch of a shard has listed; a background task writes it."""
        self._set(self._keys.ready_member(shard.id, self.name), encode_ready(shard.revision))

    def clear_ready(self, shard: Shard) -> None:
        """Withdraw the report of :meth:`set_ready`; a background task deletes its key."""
        key = self._keys.ready_member(shard.id, self.name)
        if self._own.get(key) == encode_ready(shard.revision):
            self._set(key, None)

    async def leave(self) -> None:
        """Delete the key of this member, so that others become the targets of its shards.

        It returns once etcd has deleted it: call it with a timeout. After a cancellation the
        background task still tries, until the context is left, which revokes the lease.
        """
        self._set(self._keys.member(self.name), None)
        due = self._version
        while self._written_version < due:
            await self._wrote.wait()

    def _set(self, key: bytes, value: bytes | None) -> None:
        if self._own.get(key) == value:
            return
        if value is None:
            del self._own[key]
        else:
            self._own[key] = value
        self._version += 1
        self._changed.set()

    async def _run(self, ttl: int) -> None:
        """Keep a lease, and the own keys on it; retries failures of etcd without limit."""
        report = seldom(_log, "membership_failed")
        async for attempt in retrying(_BACKOFF, on=EtcdError, report=report):
            with attempt:
                async with open_session(self._etcd, ttl, replaces=True) as session:
                    await self._keep_keys(session)

    async def _keep_keys(self, session: Session) -> None:
        report = seldom(_log, "member_not_written")
        while True:
            self._changed, over = trio.Event(), session.over
            async for attempt in retrying(_BACKOFF, on=EtcdError, report=report):
                with attempt:
                    await self._write(session)
            with trio.move_on_after(session.lease.ttl / _CHECKS):
                await _first_of(self._changed, over)

    async def _write(self, session: Session) -> None:
        """Put and delete this member's keys until etcd has those of ``_own``."""
        due, lease, now = self._version, session.lease, trio.current_time()
        for key, written in list(self._written.items()):
            lost = now - written.at > lease.ttl / _CHECKS and not self._index.has(key)
            if written.lease != lease.id or (self._index.is_loaded and lost):
                del self._written[key]
        changes: list[Operation] = [
            Put(key, value, lease.id)
            for key, value in self._own.items()
            if key not in self._written or self._written[key].value != value
        ]
        changes += [Delete(KeyRange.of_key(key)) for key in self._written if key not in self._own]
        for start in range(0, len(changes), _AT_A_TIME):
            part = changes[start : start + _AT_A_TIME]
            puts = [each for each in part if isinstance(each, Put)]
            # Without an answer a key may exist: it is written again, or deleted.
            self._written.update((put.key, _Written(b"", lease.id, now)) for put in puts)
            try:
                await self._etcd.txn(Txn((), part))
            except LeaseNotFound:
                await session.replace(lease.id)
                return
            self._written.update((put.key, _Written(put.value, lease.id, now)) for put in puts)
            for each in part:
                if isinstance(each, Delete):
                    self._written.pop(each.keys.start, None)
        self._written_version = max(self._written_version, due)
        self._wrote.set()
        self._wrote = trio.Event()


async def _first_of(*events: trio.Event) -> None:
    """Return once one of the events is set."""

    async def wait(event: trio.Event) -> None:
        await event.wait()
        nursery.cancel_scope.cancel("an event is set")

    async with trio.open_nursery() as nursery:
        for event in events:
            nursery.start_soon(wait, event)
