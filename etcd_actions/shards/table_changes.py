"""Changes of the table of shards: each is one transaction, with all that it depends on compared.

A shard has an owner only if its range is unchanged since the owner's process read it: the creation
of the owner's key compares that. A change of the table compares that the shards that it replaces
have no owner, or are the caller's, and deletes their ranges. So no process can write as the owner
of a replaced shard.

There are either shards, or a leader without shards. The table is created only while that leader's
key does not exist, and that key is created only while there is no range
(:attr:`~etcd_actions.shards.shard_keys.ShardKeys.no_table`). The checkpoint moves with each change:
every part of the scope has exactly one. A new shard starts at the lowest checkpoint of the shards
that it replaces, and with the longest of their open terms, so it misses no deletion, and repeats
terminal states as after any takeover.

Each function may be called again after an error: if the change was made, it returns the new table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final

import structlog

from etcd_actions.errors import ConfigError, FailedPrecondition, Unavailable
from etcd_actions.etcd.api import (
    Compare,
    Delete,
    Etcd,
    KeyRange,
    KeyValue,
    Operation,
    Put,
    RangeResult,
    Txn,
)
from etcd_actions.record.checkpoint import first_checkpoint, merged_checkpoint
from etcd_actions.shards.shard_keys import (
    ShardKeys,
    absent_below,
    encode_range,
    unchanged_below,
)
from etcd_actions.shards.shard_range import ShardRange, divided
from etcd_actions.shards.shard_table import Shard, ShardTable, read_table

MOST_REPLACED: Final = 25
"""The most shards that one change replaces, and the most that it creates in their place."""

_log = structlog.get_logger(__name__)


async def load_table(etcd: Etcd, keys: ShardKeys) -> ShardTable:
    """Read the table; it has no shards if there is none.

    Raises:
        EtcdError: The read failed.
    """
    found = await etcd.range(KeyRange.of_prefix(keys.ranges))
    return read_table(keys, found.kvs, found.revision)


async def create_table(etcd: Etcd, keys: ShardKeys, ranges: Sequence[ShardRange]) -> ShardTable:
    """Create the shards of a scope, unless there are some; then return these.

    The checkpoint of the leader without shards becomes that of each shard. Without it each starts
    at the present revision, so the first owner receives the deletions since, whenever it lists.
    After an error or a cancellation the table may have been created.

    Args:
        etcd: The connection.
        keys: The keys.
        ranges: The ranges of the shards; see
            :func:`~etcd_actions.shards.shard_range.initial_ranges`.

    Raises:
        Unavailable: There is a leader without shards, or an owner of an earlier shard. Call again
            when it has resigned.
        EtcdError: A request failed.
    """
    while True:
        found = await _read(etcd, keys)
        table = found.table
        if table.exists:
            return table
        single, leader = (
            await _read_key(etcd, keys.single_checkpoint),
            await _read_key(etcd, keys.single_election),
        )
        if leader is not None:
            raise Unavailable(
                f"there are no shards yet, and {_text(leader)} records without shards: restart it "
                "with --shards"
            )
        if found.owners:
            raise Unavailable(
                f"earlier shards still have owners: {found.names_of(found.owners)}: they resign "
                "when they have read that the shards were removed"
            )
        compares = [
            keys.no_table,
            absent_below(keys.owners),
            Compare.incarnation(keys.single_election, 0),
            Compare.unchanged(keys.single_checkpoint, 0 if single is None else single.mod_revision),
        ]
        changes: list[Operation] = [
            Put(keys.range(number), encode_range(range_)) for number, range_ in enumerate(ranges)
        ]
        checkpoint = found.first() if single is None else single.value
        changes += [Put(keys.checkpoint(number), checkpoint) for number in range(len(ranges))]
        # What a table that was removed by hand has left.
        left_over = KeyRange.of_prefix(keys.checkpoints)._replace(
            start=keys.checkpoint(len(ranges))
        )
        changes += [Delete(left_over), Delete(KeyRange.of_key(keys.single_checkpoint))]
        if (await etcd.txn(Txn(compares, changes))).succeeded:
            _log.info("shards_created", shards=len(ranges))


async def replace_shards(
    etcd: Etcd,
    keys: ShardKeys,
    old: Sequence[Shard],
    boundaries: Sequence[bytes],
    *,
    fences: Mapping[int, Compare] | None = None,
) -> ShardTable:
    """Replace adjacent shards by others with the same range: split one, merge several, or both.

    A caller that owns a shard has to drain it, save its checkpoint and close its term before. The
    shard's owner key is deleted in the same transaction, so no other process owns it in between.
    After an error or a cancellation the shards may have been replaced.

    Args:
        etcd: The connection.
        keys: The keys.
        old: The shards to replace, as they were read.
        boundaries: Between the new shards; none to merge all into one.
        fences: The compares of the owner keys of the shards that the caller owns, by id. All
            others must have no owner.

    Returns:
        The table with the new shards.

    Raises:
        ConfigError: The shards are not adjacent or too many, or a boundary is not usable.
        FailedPrecondition: Some of the shards do not exist any more, or have an owner, or the
            ranges do not divide the scope. Nothing was changed.
        EtcdError: A request failed.
    """
    fences = fences or {}
    old = sorted(old, key=lambda shard: shard.range)
    ranges = _new_ranges(old, boundaries)
    while True:
        found = await _read(etcd, keys)
        table = found.table
        if table.problem:
            raise FailedPrecondition(f"the shards cannot be changed: {table.problem}")
        if not set(old) <= set(table.shards):
            if set(ranges) <= {shard.range for shard in table.shards}:
                return table
            raise FailedPrecondition(
                f"the shards {_names(old)} were changed by another process: read them again"
            )
        compares = [unchanged_below(keys.ranges, table.revision)]
        changes: list[Operation] = []
        for shard in old:
            fence = fences.get(shard.id, Compare.incarnation(keys.owner(shard.id), 0))
            owner = found.owners.get(shard.id)
            if (owner.create_revision if owner else 0) != fence.operand:
                text = "has no owner any more" if owner is None else f"has the owner {_text(owner)}"
                raise FailedPrecondition(f"shard {shard} {text}: nothing was changed")
            checkpoint = found.checkpoints.get(shard.id)
            revision = 0 if checkpoint is None else checkpoint.mod_revision
            compares += [
                fence,
                keys.shard_unchanged(shard.id, shard.revision),
                Compare.unchanged(keys.checkpoint(shard.id), revision),
            ]
            changes += [
                Delete(KeyRange.of_key(keys.range(shard.id))),
                Delete(KeyRange.of_key(keys.checkpoint(shard.id))),
                Delete(KeyRange.of_key(keys.owner(shard.id))),
            ]
        checkpoint_value = found.merged([shard.id for shard in old])
        for number, range_ in enumerate(ranges, table.next_id):
            changes.append(Put(keys.range(number), encode_range(range_)))
            if checkpoint_value is not None:
                changes.append(Put(keys.checkpoint(number), checkpoint_value))
        if (await etcd.txn(Txn(compares, changes))).succeeded:
            new = f"{len(ranges)} from {table.next_id:04d} on"
            _log.info("shards_replaced", shards=_names(old), by=new)


async def remove_table(etcd: Etcd, keys: ShardKeys) -> None:
    """Remove all shards, so that one leader records again; nothing happens if there are none.

    Its checkpoint is the lowest one of the shards. After an error or a cancellation the shards may
    have been removed.

    Raises:
        FailedPrecondition: Some of the shards have an owner. Nothing was changed.
        EtcdError: A request failed.
    """
    while True:
        found = await _read(etcd, keys)
        if not found.ranges:
            return
        if found.owners:
            raise FailedPrecondition(
                f"the shards {found.names_of(found.owners)} have owners: stop all processes with "
                "--shards, and repeat"
            )
        single = await _read_key(etcd, keys.single_checkpoint)
        compares = [
            unchanged_below(keys.checkpoints, found.revision),
            absent_below(keys.owners),
            Compare.unchanged(keys.single_checkpoint, 0 if single is None else single.mod_revision),
        ]
        changes: list[Operation] = [
            Delete(KeyRange.of_prefix(each)) for each in (keys.ranges, keys.checkpoints, keys.ready)
        ]
        value = found.merged(found.checkpoints, single)
        if value is not None:
            changes.append(Put(keys.single_checkpoint, value))
        if (await etcd.txn(Txn(compares, changes))).succeeded:
            _log.info("shards_removed", shards=len(found.ranges))


class _StoredShards:
    """The stored keys of all shards, at one revision."""

    def __init__(self, keys: ShardKeys, result: RangeResult) -> None:
        self.revision = result.revision
        self.ranges = [kv for kv in result.kvs if kv.key.startswith(keys.ranges)]
        self.table = read_table(keys, self.ranges, result.revision)
        self.owners = _by_id(keys.owners, result.kvs)
        self.checkpoints = _by_id(keys.checkpoints, result.kvs)
        self._cluster_id = result.cluster_id

    def merged(self, shards: Iterable[int], *others: KeyValue | None) -> bytes | None:
        """The value of the checkpoint that replaces those of ``shards``; None if none has one."""
        kvs = [*(self.checkpoints.get(shard) for shard in shards), *others]
        return merged_checkpoint(
            [kv for kv in kvs if kv is not None], newest=self.revision, cluster_id=self._cluster_id
        )

    def first(self) -> bytes:
        """The checkpoint of a shard that no process has watched."""
        return first_checkpoint(self.revision, self._cluster_id)

    def names_of(self, shards: Mapping[int, KeyValue]) -> str:
        """The ids of shards with the names in the values of their keys, for messages."""
        return ", ".join(f"{shard:04d} ({_text(kv)})" for shard, kv in shards.items())


async def _read(etcd: Etcd, keys: ShardKeys) -> _StoredShards:
    return _StoredShards(keys, await etcd.range(KeyRange.of_prefix(keys.prefix)))


async def _read_key(etcd: Etcd, key: bytes) -> KeyValue | None:
    found = await etcd.range(KeyRange.of_key(key))
    return found.kvs[0] if found.kvs else None


def _by_id(prefix: bytes, kvs: Sequence[KeyValue]) -> dict[int, KeyValue]:
    below = (kv for kv in kvs if kv.key.startswith(prefix))
    return {int(number): kv for kv in below if (number := kv.key[len(prefix) :]).isdigit()}


def _new_ranges(old: Sequence[Shard], boundaries: Sequence[bytes]) -> list[ShardRange]:
    """The ranges between boundaries inside of adjacent shards.

    Raises:
        ConfigError: The shards are not adjacent or too many, or a boundary is not usable.
    """
    if not 1 <= len(old) <= MOST_REPLACED or len(boundaries) >= MOST_REPLACED:
        raise ConfigError(
            f"shards: {len(old)} cannot be replaced by {len(boundaries) + 1} in one change: give "
            f"1 to {MOST_REPLACED} of both"
        )
    for before, after in pairwise(old):
        if before.range.end != after.range.start:
            raise ConfigError(
                f"shards: {before} {before.range} and {after} {after.range} are not adjacent"
            )
    return divided(ShardRange(old[0].range.start, old[-1].range.end), boundaries)


def _names(shards: Sequence[Shard]) -> str:
    return ", ".join(map(str, shards))


def _text(kv: KeyValue) -> str:
    """The name in the value of an election's key; any client may have written it."""
    return kv.value[:200].decode(errors="backslashreplace")
