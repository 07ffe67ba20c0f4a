"""The flags of logs and io, which show the output of an attempt."""

from __future__ import annotations

from functools import partial

import click

from etcd_actions.cli.flags import command
from etcd_actions.cli.number_types import COUNT
from etcd_actions.cli.options import CommonOptions, with_settings
from etcd_actions.cli.output_options import output_option
from etcd_actions.cli.parsing.run_async import run_async
from etcd_actions.config.settings import FILES


@command(example="etcd-actions logs r1/train -f --tail 20")
@click.argument("action", metavar="ACTION")
@click.option("-f", "--follow", is_flag=True, help="Write new lines, too, until the action ends.")
@click.option("--attempt", type=COUNT, metavar="N", help="[default: the present one]")
@click.option("--tail", type=COUNT, metavar="N", help="Begin with the last N lines.")
@with_settings(FILES)
def logs(
    common: CommonOptions, *, action: str, follow: bool, attempt: int | None, tail: int | None
) -> int:
    """Write the log of an action's attempt, the output of its process.

    ACTION is RUN, for its root, RUN/ACTION, or a full path. With --service the service reads it;
    else it is in the directory of this machine's executor (--executor-state-dir). --follow
    continues with the next attempts, unless --attempt is given. The lines have no times: the
    executor stores the bytes as they are, so there is no --since.
    """
    from etcd_actions.cli.commands.logs import show_log  # noqa: PLC0415

    return run_async(partial(show_log, common, action, follow=follow, attempt=attempt, tail=tail))


@command("io", example="etcd-actions io r1/train --outputs -o json")
@click.argument("action", metavar="ACTION")
@click.option("--inputs", is_flag=True, help="Only the inputs.")
@click.option("--outputs", is_flag=True, help="Only the outputs.")
@output_option("table", "json", elsewhere="json")
@with_settings(FILES)
def io_(
    common: CommonOptions, *, action: str, inputs: bool, outputs: bool, output: str | None
) -> int:
    """Show the inputs and outputs of an action as values.

    ACTION is RUN, for its root, RUN/ACTION, or a full path. With --service the service reads
    the files; else they are in the blob store (--blob-dir) or on this machine. Files and
    tables are shown by their URIs. A condition's output is the value of its signal.
    """
    from etcd_actions.cli.commands.io import show_data  # noqa: PLC0415

    return run_async(
        partial(show_data, common, action, inputs=inputs, outputs=outputs, output=output)
    )
