"""The flags of delete and gc."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from etcd_actions.cli.choice_type import Choice
from etcd_actions.cli.flags import command
from etcd_actions.cli.number_types import AGE, COUNT
from etcd_actions.cli.options import CommonOptions, with_settings
from etcd_actions.cli.output_options import change_output_option
from etcd_actions.cli.parsing.run_async import run_async
from etcd_actions.config.settings import FILES
from etcd_actions.model import Phase


@command(example="etcd-actions delete r1 --dry-run")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Abort a run that has not ended, and then delete it.")
@click.option("--dry-run", is_flag=True, help="Delete nothing, and print what would be deleted.")
@click.option("--reason", metavar="TEXT", default="deleted", help="Why, for an abort.")
@change_output_option
@with_settings(FILES)
def delete(common: CommonOptions, *, runs: tuple[str, ...], **flags: Any) -> int:
    """Delete runs: their actions, histories, files and records.

    A run is deleted only when the leader has reported each terminal state and no other program's
    finalizer is left; else the message has the reason, and the exit code is 10. Its files in the
    blob store are deleted unless another run or cached result uses them. If the command is
    interrupted, run it again.
    """
    from etcd_actions.cli.commands.deletion import delete_runs  # noqa: PLC0415

    return run_async(partial(delete_runs, common, runs, **flags))


@command(example="etcd-actions gc runs attempts --older-than 7d --dry-run")
@click.argument(
    "kinds",
    metavar="[runs|attempts|uploads]...",
    nargs=-1,
    type=Choice(["runs", "attempts", "uploads"]),
)
@click.option(
    "--older-than",
    type=AGE,
    metavar="AGE",
    default="30d",
    show_default=True,
    help="Only items that ended, or last changed, longer ago, such as 12h or 30d.",
)
@click.option(
    "--phase",
    "phases",
    multiple=True,
    type=Choice([phase.name for phase in Phase], case_sensitive=False),
    help="Only runs in this phase; may be given several times. [default: all terminal ones]",
)
@click.option("--project", metavar="NAME", help="Only runs of this project.")
@click.option("--domain", metavar="NAME", help="Only runs of this domain.")
@click.option("--limit", type=COUNT, metavar="N", help="The most runs, the oldest first.")
@click.option("--force", is_flag=True, help="Abort old runs that have not ended, and delete them.")
@click.option("--dry-run", is_flag=True, help="Delete nothing, and print what would be deleted.")
@change_output_option
@with_settings(FILES)
def gc(common: CommonOptions, *, output: str | None, **flags: Any) -> int:
    """Delete old runs, attempts or uploads; by default runs.

    runs are deleted as by delete, with all their parts. attempts are directories of ended actions
    of this machine's executor (--executor-state-dir). uploads are files of the blob store without
    a reference. At the end the command prints the counts. The service collects the same by itself,
    by --retain-runs and --retain-uploads.
    """
    from etcd_actions.cli.commands.gc import GarbageCollection, collect_garbage, parse_kinds  # noqa: PLC0415

    kinds = parse_kinds(flags.pop("kinds"))
    return run_async(collect_garbage, common, GarbageCollection(kinds=kinds, **flags), output)
