"""The watched view of shards: the table, the members, the owners, and the ready members."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

import trio

from etcd_actions.errors import DecodeError
from etcd_actions.shards.shard_keys import (
    MemberKey,
    OwnerKey,
    RangeKey,
    ReadyKey,
    ShardKeys,
    StoredMember,
    decode_member,
    decode_ready,
)
from etcd_actions.shards.shard_table import Shard, ShardTable, shard_in
from etcd_actions.storage.prefix_index import PrefixIndex
from etcd_actions.watch import Change

_Name = TypeVar("_Name")


@dataclass(frozen=True)
class ShardView:
    """The keys of all shards, as one process has received them. It may be old.

    Attributes:
        table: The shards.
        members: The live members, and since when each is one.
        owners: The name of each shard's owner; shards without one are missing.
        ready: The members whose watch of a shard has listed, by its id. A member that listed
            another range of the same id does not count.
        ownerless_since: Since when this process has received no owner of a shard, on trio's clock.
        undecodable: The keys that cannot be decoded, and why. They count as absent, and while
            one is a range the table has a :attr:`~etcd_actions.shards.ShardTable.problem`.
        executors: The members that run the actions of their shards.
    """

    table: ShardTable
    members: Mapping[str, datetime] = field(default_factory=dict)
    owners: Mapping[int, str] = field(default_factory=dict)
    ready: Mapping[int, frozenset[str]] = field(default_factory=dict)
    ownerless_since: Mapping[int, float] = field(default_factory=dict)
    undecodable: Mapping[bytes, str] = field(default_factory=dict)
    executors: frozenset[str] = frozenset()


class ShardIndex(PrefixIndex[object]):
    """The keys below ``<own>shards/<namespace or *>/``, from which the view is made.

    Args:
        keys: The keys.
        clock: Returns the present time; by default trio's.
    """

    def __init__(self, keys: ShardKeys, clock: Callable[[], float] = trio.current_time) -> None:
        super().__init__()
        self._keys = keys
        self._clock = clock
        self._shards: dict[int, Shard] = {}
        self._members: dict[str, StoredMember] = {}
        self._owners: dict[int, str] = {}
        # The revision of the range that a member listed, by shard and name.
        self._ready: dict[tuple[int, str], int] = {}
        self._ownerless: dict[int, float] = {}
        self._view: ShardView | None = None

    @property
    def advanced(self) -> trio.Event:
        """Set after the next changes of the keys, and once all have been read."""
        return self._replica.advanced

    def has(self, key: bytes) -> bool:
        """Whether a member's key, or that of a ready member, exists and can be decoded."""
        match self._keys.parse(key):
            case MemberKey(name):
                return name in self._members
            case ReadyKey(shard, name):
                return (shard, name) in self._ready
            case _:
                return False

    def view(self) -> ShardView:
        """The view of the keys that were delivered up to now."""
        if self._view is None:
            undecodable = self.undecodable()
            ranges = {
                key: reason
                for key, reason in undecodable.items()
                if key.startswith(self._keys.ranges)
            }
            table = ShardTable.of(self._keys.scope, self._shards.values(), undecodable=ranges)
            self._view = ShardView(
                table,
                {name: each.since for name, each in self._members.items()},
                dict(self._owners),
                {shard.id: self._ready_for(shard) for shard in table.shards},
                dict(self._ownerless),
                undecodable,
                frozenset(name for name, each in self._members.items() if each.executes),
            )
        return self._view

    def _ready_for(self, shard: Shard) -> frozenset[str]:
        return frozenset(
            name
            for (shard_id, name), revision in self._ready.items()
            if shard_id == shard.id and revision == shard.revision
        )

    def _decode(self, change: Change) -> object:
        key, value, revision = change.key, change.value, change.mod_revision
        parsed = self._keys.parse(key)
        if isinstance(parsed, MemberKey | ReadyKey) and not change.kv.lease:
            reason = "it has no lease, so it would outlive its process"
            raise DecodeError(reason, key=key, revision=revision)
        match parsed:
            case RangeKey():
                return shard_in(self._keys, change.kv)
            case OwnerKey():
                return value.decode(errors="replace")
            case MemberKey():
                return decode_member(value, key=key, revision=revision)
            case ReadyKey():
                return decode_ready(value, key=key, revision=revision).revision
            case _:
                return None

    def _put(self, key: bytes, record: object) -> None:
        try:
            parsed = self._keys.parse(key)
        except DecodeError:
            self._view = None
            return
        match parsed:
            case RangeKey(shard):
                _set(self._shards, shard, record)
            case OwnerKey(shard):
                _set(self._owners, shard, record)
            case MemberKey(name):
                _set(self._members, name, record)
            case ReadyKey(shard, name):
                _set(self._ready, (shard, name), record)
            case _:
                return
        if isinstance(parsed, RangeKey | OwnerKey):
            if parsed.shard in self._shards and parsed.shard not in self._owners:
                self._ownerless.setdefault(parsed.shard, self._clock())
            else:
                self._ownerless.pop(parsed.shard, None)
        self._view = None

    def _clear(self) -> None:
        self._shards.clear()
        self._members.clear()
        self._owners.clear()
        self._ready.clear()
        self._ownerless.clear()
        self._view = None


def _set(records: dict[_Name, Any], name: _Name, record: object) -> None:
    """Set a record; None removes it."""
    if record is None:
        records.pop(name, None)
    else:
        records[name] = record
