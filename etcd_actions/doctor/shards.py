"""The shards of processes that share the work, and their owners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import trio

from etcd_actions.doctor.findings import Finding, Kind
from etcd_actions.doctor.scan import and_more
from etcd_actions.doctor.subject import Subject
from etcd_actions.errors import PermissionDenied
from etcd_actions.etcd import EtcdClient
from etcd_actions.model import Keyspace
from etcd_actions.shards import ShardsSnapshot, read_shards, shard_scopes

SHARDS = Kind.ok("shards")
UNUSABLE = Kind.error(
    "shards-unusable",
    "Members keep the shards that they own, and no shard gets another owner.",
    "see etcd-actions shards list; if a value cannot be decoded, stop all processes with --shards, "
    "delete that key, and run: etcd-actions shards remove; then start them again",
)
UNOWNED = Kind.error(
    "shards-unowned",
    "No process reports and marks the actions of these shards: their runs do not end.",
    "start etcd-actions run --shards; if members are up, their logs say why they do not stand for "
    "election, and /readyz has the check",
)
MIXED = Kind.error(
    "shards-mixed",
    "Processes with shards record nothing while a process without shards is the leader.",
    "restart <leader> with --shards, or all others without",
)

_EVERY: Final = 0.5


async def check_shards(subject: Subject, etcd: EtcdClient) -> list[Finding]:
    """Read the shards; a user who may not read them gets no finding."""
    keyspace = Keyspace(subject.prefix)
    findings: list[Finding] = []
    try:
        for scope in await shard_scopes(etcd, keyspace, subject.namespace):
            snapshot = await read_shards(etcd, keyspace, scope)
            with trio.move_on_after(subject.limits.hand_over):
                while _unowned(snapshot):
                    await trio.sleep(_EVERY)
                    snapshot = await read_shards(etcd, keyspace, scope)
            findings += _findings(subject, snapshot)
    except PermissionDenied:
        return []
    return findings


def _unowned(snapshot: ShardsSnapshot) -> Sequence[str]:
    return [str(each.state.shard) for each in snapshot.shards if not each.state.owner]


def _findings(subject: Subject, snapshot: ShardsSnapshot) -> list[Finding]:
    view = snapshot.view
    members = f"{len(view.members)} members"
    if not view.table.exists:
        if snapshot.leader and view.members:
            seen = f"{members} with shards; the leader without shards is {snapshot.leader}"
            return [MIXED.found(seen, leader=snapshot.leader)]
        return []
    if view.table.problem:
        return [UNUSABLE.found(view.table.problem)]
    if unowned := _unowned(snapshot):
        first = unowned[: subject.limits.examples]
        more = and_more(len(unowned), len(first))
        seen = f"{len(unowned)} of {len(snapshot.shards)}: {', '.join(first)}{more}; {members}"
        return [UNOWNED.found(seen)]
    return [SHARDS.found(f"{len(snapshot.shards)}, each with an owner; {members}")]
