"""``etcd-actions shards``: the shards, their owners, and the members."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC

from etcd_actions.cli.exit_codes import ExitCode, print_message
from etcd_actions.cli.formats.shard_rows import MemberRow, ShardList, ShardRow
from etcd_actions.cli.formats.standard_output import chosen_format, print_rows
from etcd_actions.cli.options import CommonOptions
from etcd_actions.model import Keyspace
from etcd_actions.shards import ShardKeys, ShardsSnapshot, read_shards, remove_table, shard_scopes

_ALL = "*"


async def list_shards(common: CommonOptions, output: str | None) -> int:
    """Print the shards, and on stderr the members and what is wrong with the table."""
    form = chosen_format(output, elsewhere="jsonl")
    found = ShardList([], [], [])
    async with common.open_etcd() as etcd:
        keyspace = Keyspace(common.prefix)
        for scope in await shard_scopes(etcd, keyspace, common.namespace):
            _add_scope(found, scope or _ALL, await read_shards(etcd, keyspace, scope))
    print_rows(form, found.shards, found, lambda wide: _table(found.shards, wide=wide))
    if form in ("table", "wide"):
        for member in found.members:
            print_message(f"member {member.name}: {member.shards} shards, since {member.since}")
    for problem in found.problems:
        print_message(problem)
    if not found.shards and not found.problems:
        print_message("there are no shards: one leader records all actions")
    return ExitCode.OK


async def remove_shards(common: CommonOptions) -> int:
    """Remove the shards, so that one leader records again."""
    keyspace = Keyspace(common.prefix)
    async with common.open_etcd() as etcd:
        for scope in await shard_scopes(etcd, keyspace, common.namespace):
            await remove_table(etcd, ShardKeys(keyspace, scope))
    print_message("there are no shards any more: start processes without --shards")
    return ExitCode.OK


def _add_scope(found: ShardList, scope: str, snapshot: ShardsSnapshot) -> None:
    """Add the shards, members and problems of one namespace, or of all together."""
    view = snapshot.view
    for report in snapshot.shards:
        state = report.state
        shard = state.shard
        found.shards.append(
            ShardRow(
                scope=scope,
                id=str(shard),
                start=shard.range.start.decode(errors="backslashreplace"),
                end=shard.range.end.decode(errors="backslashreplace"),
                owner=state.owner,
                target=state.target,
                ready=state.ready,
                actions=report.actions,
                checkpoint=report.checkpoint,
                behind=snapshot.revision - report.checkpoint if report.checkpoint else 0,
                problem=report.problem,
            )
        )
    owners = list(view.owners.values())
    for name, since in sorted(view.members.items()):
        text = since.astimezone(UTC).isoformat(timespec="seconds")
        row = MemberRow(scope=scope, name=name, since=text, shards=owners.count(name))
        found.members.append(row)
    if view.table.exists and view.table.problem:
        found.problems.append(f"{scope}: {view.table.problem}")
    if snapshot.leader and not view.table.exists and view.members:
        found.problems.append(
            f"{scope}: {snapshot.leader} records without shards: restart it with --shards"
        )


def _table(rows: Sequence[ShardRow], *, wide: bool) -> bytes:
    from etcd_actions.cli.formats.shard_table import ShardListTable  # noqa: PLC0415 (rich is slow)

    return ShardListTable(sys.stdout, wide=wide).format(rows)
