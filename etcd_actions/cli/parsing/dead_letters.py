"""The flags of ``dead-letters``."""

from __future__ import annotations

import click

from etcd_actions.cli.flags import epilog, group
from etcd_actions.cli.number_types import COUNT
from etcd_actions.cli.options import CommonOptions, with_settings
from etcd_actions.cli.output_options import change_output_option, output_option
from etcd_actions.cli.parsing.run_async import run_async
from etcd_actions.config.settings import BACKEND


@group("dead-letters", no_args_is_help=True)
def dead_letters() -> None:
    """Show the reports that the run service rejected for good, and retry them."""


@dead_letters.command("list", epilog=epilog("etcd-actions dead-letters list -o table"))
@click.argument("actions", metavar="[ACTION...]", nargs=-1)
@output_option("table", "jsonl", "json", elsewhere="jsonl")
@with_settings(BACKEND)
def list_dead_letters(
    common: CommonOptions, *, actions: tuple[str, ...], output: str | None
) -> int:
    """Show the rejected reports: when, why, and whether the object still exists.

    The oldest is first; without an ACTION all are shown. ACTION is RUN, RUN/ACTION, the object's
    name (<run>-a0), <project>/<domain>/<run>/<action>, or the key of a dead letter. A value that
    cannot be decoded is shown as such.
    """
    from etcd_actions.cli.commands.dead_letters import list_dead_letters as print_dead_letters  # noqa: PLC0415

    return run_async(print_dead_letters, common, actions, output)


@dead_letters.command("retry", epilog=epilog("etcd-actions dead-letters retry --all --wait"))
@click.argument("actions", metavar="[ACTION...]", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All of them.")
@click.option("--wait", is_flag=True, help="Wait for the results, and print them.")
@click.option(
    "--timeout",
    type=COUNT,
    metavar="SECONDS",
    default=30,
    show_default=True,
    help="With --wait: the time limit.",
)
@change_output_option
@with_settings(BACKEND)
def retry_dead_letters(
    common: CommonOptions,
    *,
    actions: tuple[str, ...],
    every: bool,
    wait: bool,
    timeout: int,
    output: str | None,
) -> int:
    """Request that the leader reports again: the record, then the status.

    Without a leader the request stays. An accepted report is deleted from the dead letters.
    Safe to run again. ACTION is as for list.
    """
    from etcd_actions.cli.commands.dead_letters import retry_dead_letters as retry  # noqa: PLC0415

    return run_async(retry, common, actions, every, wait, timeout, output)


@dead_letters.command("delete", epilog=epilog("etcd-actions dead-letters delete r1/train"))
@click.argument("actions", metavar="[ACTION...]", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All of them.")
@change_output_option
@with_settings(BACKEND)
def delete_dead_letters(
    common: CommonOptions, *, actions: tuple[str, ...], every: bool, output: str | None
) -> int:
    """Delete dead letters: the run service never gets these reports.

    ACTION is as for list. The next leader reports a terminal action without a mark again, which
    can become a dead letter again.
    """
    from etcd_actions.cli.commands.dead_letters import delete_dead_letters as delete  # noqa: PLC0415

    return run_async(delete, common, actions, every, output)
