"""The shards as etcd has them at one revision, for commands: no process has to watch them."""

from __future__ import annotations

from contextlib import suppress
from typing import Final, NamedTuple

from etcd_actions.errors import DecodeError
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.model import Keyspace
from etcd_actions.record.checkpoint import revision_in
from etcd_actions.shards.plan import ShardState, shard_states
from etcd_actions.shards.shard_keys import CheckpointKey, ShardKeys
from etcd_actions.shards.shard_view import ShardIndex, ShardView
from etcd_actions.watch import Change, ChangeKind

# A snapshot has no times: how long a shard is without an owner is not known.
_NO_TIME: Final = 0.0
# Stands for all namespaces in the keys of shards.
_ALL: Final = b"*"


class ShardReport(NamedTuple):
    """One shard.

    Attributes:
        state: Its range, owner and target.
        actions: Number of its objects in etcd.
        checkpoint: The revision up to which each deletion was reported; 0 for none.
        problem: The problem; empty for none.
    """

    state: ShardState
    actions: int
    checkpoint: int
    problem: str


class ShardsSnapshot(NamedTuple):
    """All shards, and the members.

    Attributes:
        view: The table, the members, the owners and the ready members.
        shards: The shards, by range.
        leader: The name of the leader without shards; empty for none.
        revision: The revision at which they were read.
    """

    view: ShardView
    shards: list[ShardReport]
    leader: str
    revision: int


async def shard_scopes(etcd: Etcd, keyspace: Keyspace, only: str | None = None) -> list[str | None]:
    """The namespaces that have shards; None for those of all namespaces together.

    Args:
        etcd: The connection.
        keyspace: The keyspace of the prefix.
        only: The only namespace; None for any. The shards of all namespaces have its runs, too.

    Raises:
        EtcdError: The read failed.
    """
    found = await etcd.range(KeyRange.of_prefix(keyspace.shards), keys_only=True)
    scopes = {kv.key[len(keyspace.shards) :].partition(b"/")[0] for kv in found.kvs}
    selected = scopes if only is None else scopes & {only.encode(), _ALL}
    return [None if each == _ALL else each.decode(errors="replace") for each in sorted(selected)]


async def read_shards(etcd: Etcd, keyspace: Keyspace, namespace: str | None) -> ShardsSnapshot:
    """Read the shards of a namespace, or of all, and count their objects.

    Raises:
        EtcdError: A read failed.
    """
    keys = ShardKeys(keyspace, namespace)
    index = ShardIndex(keys, lambda: _NO_TIME)
    found = await etcd.range(KeyRange.of_prefix(keys.prefix))
    checkpoints: dict[int, int] = {}
    for kv in found.kvs:
        # The view lists the keys that cannot be decoded.
        with suppress(DecodeError):
            index.take(Change(ChangeKind.ADDED, kv.plain()))
            parsed = keys.parse(kv.key)
            if isinstance(parsed, CheckpointKey):
                checkpoints[parsed.shard] = revision_in(
                    kv, newest=found.revision, cluster_id=found.cluster_id
                )
    view = index.view()
    shards = []
    for state in shard_states(view, now=_NO_TIME, ttl=1.0):
        objects = state.shard.range.keys(keyspace.prefix)
        count = await etcd.range(objects, count_only=True)
        problem = state.problem
        if not state.owner and not problem:
            problem = "no owner"
        checkpoint = checkpoints.get(state.shard.id, 0)
        shards.append(ShardReport(state, count.total, checkpoint, problem))
    single = await etcd.range(KeyRange.of_key(keys.single_election))
    leader = single.kvs[0].value.decode(errors="replace") if single.kvs else ""
    return ShardsSnapshot(view, shards, leader, found.revision)
