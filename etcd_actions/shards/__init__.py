"""Shards: ranges of runs, each with an owner of its own among several processes."""

from __future__ import annotations

from etcd_actions.shards.membership import Membership, open_membership
from etcd_actions.shards.plan import Duty, Plan, Role, ShardState, make_plan, shard_states
from etcd_actions.shards.shard_keys import ShardKeys, member_name
from etcd_actions.shards.shard_range import EVERYTHING, ShardRange
from etcd_actions.shards.shard_table import Shard, ShardTable
from etcd_actions.shards.shard_view import ShardView
from etcd_actions.shards.snapshot import ShardReport, ShardsSnapshot, read_shards, shard_scopes
from etcd_actions.shards.table_changes import (
    create_table,
    load_table,
    remove_table,
    replace_shards,
)

__all__ = [
    "EVERYTHING",
    "Duty",
    "Membership",
    "Plan",
    "Role",
    "Shard",
    "ShardKeys",
    "ShardRange",
    "ShardReport",
    "ShardState",
    "ShardTable",
    "ShardView",
    "ShardsSnapshot",
    "create_table",
    "load_table",
    "make_plan",
    "member_name",
    "open_membership",
    "read_shards",
    "remove_table",
    "replace_shards",
    "shard_scopes",
    "shard_states",
]
