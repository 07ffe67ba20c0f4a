"""The flags of ``dead-letters``."""

from __future__ import annotations

import click

from etcd_actions.cli.flags import EPILOG, group
from etcd_actions.cli.number_types import Count
from etcd_actions.cli.options import CommonOptions, with_settings
from etcd_actions.cli.parsing.run_async import run_async
from etcd_actions.cli.printing import output_option
from etcd_actions.config.settings import COMMON


@group("dead-letters", no_args_is_help=True)
def dead_letters() -> None:
    """See what the run service refused for good, and have it told again."""


@dead_letters.command("list", epilog=EPILOG)
@click.argument("actions", metavar="[ACTION...]", nargs=-1)
@output_option("table", "jsonl", "json", elsewhere="jsonl")
@with_settings(COMMON)
def list_dead_letters(
    common: CommonOptions, *, actions: tuple[str, ...], output: str | None
) -> int:
    """Show what was refused, when, why, and whether the object is still there.

    The oldest first; without an ACTION all. ACTION is <namespace>/<name>, the object's name
    alone (<run>-a0), <project>/<domain>/<run>/<action>, or the whole key of a letter. What is
    no letter in their place is shown as such.
    """
    from etcd_actions.cli.commands.dead_letters import list_letters  # noqa: PLC0415

    return run_async(list_letters, common, actions, output)


@dead_letters.command("retry", epilog=EPILOG)
@click.argument("actions", metavar="[ACTION...]", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All that there are.")
@click.option("--wait", is_flag=True, help="Wait for the answers, and say what they are.")
@click.option(
    "--timeout",
    type=Count(),
    metavar="SECONDS",
    default=30,
    show_default=True,
    help="With --wait: for so long.",
)
@with_settings(COMMON)
def retry_dead_letters(
    common: CommonOptions, *, actions: tuple[str, ...], every: bool, wait: bool, timeout: int
) -> int:
    """Have actions told again: the record, then the status.

    The leader does it, in each action's own turn; where none runs the request stays.
    What is accepted is no dead letter any more. Safe to run again. ACTION is as for list.
    """
    from etcd_actions.cli.commands.dead_letters import retry_letters  # noqa: PLC0415

    return run_async(retry_letters, common, actions, every, wait, timeout)


@dead_letters.command("delete", epilog=EPILOG)
@click.argument("actions", metavar="[ACTION...]", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All that there are.")
@with_settings(COMMON)
def delete_dead_letters(common: CommonOptions, *, actions: tuple[str, ...], every: bool) -> int:
    """Give up on dead letters: the run service goes without.

    ACTION is as for list. An ending that is not marked is told again by the next process that
    is elected, and may become a dead letter again.
    """
    from etcd_actions.cli.commands.dead_letters import delete_letters  # noqa: PLC0415

    return run_async(delete_letters, common, actions, every)
