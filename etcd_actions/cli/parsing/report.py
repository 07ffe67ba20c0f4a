"""The flags of report."""

from __future__ import annotations

import click

from etcd_actions.cli.flags import command
from etcd_actions.cli.options import CommonOptions, with_settings
from etcd_actions.cli.parsing.run_async import run_async
from etcd_actions.config.settings import BACKEND


@command(example="etcd-actions report r1 -o r1.html")
@click.argument("run", metavar="RUN")
@click.option(
    "-o",
    "--output",
    "file",
    metavar="FILE",
    type=click.Path(),
    help="The file; it is replaced. [default: standard output]",
)
@with_settings(BACKEND)
def report(common: CommonOptions, *, run: str, file: str | None) -> int:
    """Write the page of a run into an HTML file that opens without a server.

    RUN is its name, or <project>/<domain>/<run>. The file has the tree, the timeline, and the
    attempts and errors of each action, at one time; it has no logs, inputs or outputs. It loads
    nothing, and no text in it can run as a script. In a run with more than 2000 actions, only 2000
    have details, the failed and the running ones first. With --service the data come from the
    service, else from etcd.
    """
    from etcd_actions.cli.commands.report import write_report  # noqa: PLC0415

    return run_async(write_report, common, run, file)
