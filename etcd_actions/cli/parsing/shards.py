"""The flags of ``shards``."""

from __future__ import annotations

from etcd_actions.cli.flags import epilog, group
from etcd_actions.cli.options import CommonOptions, with_settings
from etcd_actions.cli.output_options import FORMATS, output_option
from etcd_actions.cli.parsing.run_async import run_async
from etcd_actions.config.settings import COMMON


@group("shards", no_args_is_help=True)
def shards() -> None:
    """Show the shards of the processes that share the work.

    Processes with run --shards divide the runs into ranges, the shards. Each shard has one owner,
    which records and marks its actions.
    """


@shards.command("list", epilog=epilog("etcd-actions shards list -o wide"))
@output_option(*FORMATS, elsewhere="jsonl")
@with_settings(COMMON)
def list_shards(common: CommonOptions, *, output: str | None) -> int:
    """Show each shard: its range of <namespace>/<run>, its owner, and what is wrong.

    BEHIND is the number of etcd's revisions since its checkpoint. The members go to stderr with a
    table, and into the document with -o json or yaml.
    """
    from etcd_actions.cli.commands.shards import list_shards as print_shards  # noqa: PLC0415

    return run_async(print_shards, common, output)


@shards.command("remove", epilog=epilog("etcd-actions shards remove --namespace flyte"))
@with_settings(COMMON)
def remove_shards(common: CommonOptions) -> int:
    """Remove the shards, so that one leader records all actions again.

    Stop all processes that have --shards before; it is refused while a shard has an owner.
    """
    from etcd_actions.cli.commands.shards import remove_shards as remove  # noqa: PLC0415

    return run_async(remove, common)
