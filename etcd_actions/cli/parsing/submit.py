"""The flags of ``submit``."""

from __future__ import annotations

from typing import Any

import click

from etcd_actions.cli.flags import command
from etcd_actions.cli.options import CommonOptions, with_settings
from etcd_actions.cli.output_options import output_option
from etcd_actions.cli.parsing.run_async import run_async
from etcd_actions.config.settings import SUBMIT


@command(example="etcd-actions submit hello.py:main --input count=4")
@click.argument("target", metavar="FILE.py:TASK")
@click.option(
    "--input", "inputs", metavar="NAME=VALUE", multiple=True, help="An input of the task."
)
@click.option("--project", metavar="NAME", default="flytesnacks", show_default=True)
@click.option("--domain", metavar="NAME", default="development", show_default=True)
@click.option("--org", metavar="NAME", default="local", show_default=True)
@click.option("--run", metavar="NAME", help="The name of the run. [default: a new name]")
@click.option(
    "--root-dir",
    metavar="DIRECTORY",
    type=click.Path(exists=True, file_okay=False),
    help="The directory of the program's modules. [default: that of FILE.py]",
)
@click.option(
    "--output-base",
    metavar="DIRECTORY",
    type=click.Path(file_okay=False),
    help="Where outputs are stored; without --service inputs, too. [default: the blob store]",
)
@click.option("--detach", is_flag=True, help="Do not wait for the result.")
@output_option("table", "jsonl", "name", "json", elsewhere="jsonl")
@with_settings(SUBMIT)
def submit(common: CommonOptions, *, output: str | None, **flags: Any) -> int:
    """Run a task of a program that is written with Flyte's SDK.

    The SDK, in the interpreter that --python names, converts the inputs and creates the run; an
    executor, such as that of run --executor local, runs it. Each change of a phase is shown,
    and the result at the end. With --detach, the outputs name and json have the run's name. VALUE
    is as for flyte run: a text, a path of a file or a directory, or JSON. A first Ctrl-C does not
    end the run: abort does.
    """
    from etcd_actions.cli.commands.submit import Submission, submit_program  # noqa: PLC0415

    return run_async(submit_program, common, Submission(**flags), output)
