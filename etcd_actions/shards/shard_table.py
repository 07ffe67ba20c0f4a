"""The table of shards: the ranges that exist, as they were read at one revision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import structlog

from etcd_actions.errors import DecodeError
from etcd_actions.etcd.api import KeyValue
from etcd_actions.shards.shard_keys import ShardKeys, decode_range
from etcd_actions.shards.shard_range import ShardRange, tiles

_log = structlog.get_logger(__name__)


class Shard(NamedTuple):
    """A shard: hashable, and equal to another one if nothing of it has changed.

    Attributes:
        id: Its number, which no other shard of the table has or had.
        range: The suffixes of its keys.
        revision: The ``mod_revision`` of the key of its range. The creation of its owner's key
            compares it: see :meth:`~etcd_actions.shards.shard_keys.ShardKeys.shard_unchanged`.
    """

    id: int
    range: ShardRange
    revision: int

    def __str__(self) -> str:
        return f"{self.id:04d}"


@dataclass(frozen=True)
class ShardTable:
    """All shards of a scope.

    Attributes:
        scope: The range that they divide.
        shards: The shards, by range.
        revision: The revision at which they were read; 0 if they were watched.
        undecodable: The keys of ranges that cannot be decoded, and why.
    """

    scope: ShardRange
    shards: tuple[Shard, ...]
    revision: int = 0
    undecodable: Mapping[bytes, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        scope: ShardRange,
        shards: Iterable[Shard],
        *,
        revision: int = 0,
        undecodable: Mapping[bytes, str] | None = None,
    ) -> ShardTable:
        """The table of some shards, in any order."""
        in_order = sorted(shards, key=lambda shard: (shard.range, shard.id))
        return cls(scope, tuple(in_order), revision, dict(undecodable or {}))

    @property
    def exists(self) -> bool:
        """Whether there are shards, or keys of such that cannot be decoded."""
        return bool(self.shards or self.undecodable)

    @property
    def problem(self) -> str:
        """Why the table cannot be used; empty if it can.

        It can be used if its ranges divide the scope. Nothing changes while it cannot: processes
        keep the shards that they own.
        """
        if self.undecodable:
            key, reason = min(self.undecodable.items())
            return f"{key.decode(errors='backslashreplace')} cannot be decoded: {reason}"
        if not self.shards:
            return "there are no shards"
        if not tiles((shard.range for shard in self.shards), self.scope):
            ranges = ", ".join(f"{shard} {shard.range}" for shard in self.shards)
            return f"the ranges of the shards do not divide {self.scope}: {ranges}"
        return ""

    @property
    def next_id(self) -> int:
        """An id that no shard of the table has or had.

        A change of the table replaces shards by newer ones with higher ids. So the newest shard
        that ever was still exists, or was replaced by shards of higher ids.
        """
        return max((shard.id for shard in self.shards), default=-1) + 1


def read_table(keys: ShardKeys, kvs: Iterable[KeyValue], revision: int) -> ShardTable:
    """The table in the keys below ``range/``. Those that cannot be decoded are logged."""
    shards: list[Shard] = []
    undecodable: dict[bytes, str] = {}
    for kv in kvs:
        try:
            shards.append(shard_in(keys, kv))
        except DecodeError as error:
            undecodable[kv.key] = str(error)
            key = kv.key.decode(errors="backslashreplace")
            _log.warning("shard_undecodable", key=key, revision=kv.mod_revision, error=str(error))
    return ShardTable.of(keys.scope, shards, revision=revision, undecodable=undecodable)


def shard_in(keys: ShardKeys, kv: KeyValue) -> Shard:
    """The shard of a key below ``range/``.

    Raises:
        DecodeError: It cannot be decoded.
    """
    parsed = keys.parse(kv.key)
    range_ = decode_range(kv.value, keys.scope, key=kv.key, revision=kv.mod_revision)
    return Shard(parsed.shard, range_, kv.mod_revision)  # type: ignore[union-attr]
