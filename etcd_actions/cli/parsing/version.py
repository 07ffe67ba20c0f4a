"""The flags of ``version``."""

from __future__ import annotations

import click

from etcd_actions.cli.choice_type import Choice
from etcd_actions.cli.flags import command
from etcd_actions.cli.options import CommonOptions, with_settings
from etcd_actions.cli.parsing.run_async import run_async
from etcd_actions.config.settings import BACKEND


@command(example="etcd-actions version -o json")
@click.option(
    "-o",
    "--output",
    type=Choice(["text", "json"]),
    default="text",
    show_default=True,
)
@click.option("--client", is_flag=True, help="Call neither etcd nor the service.")
@with_settings(BACKEND)
def version(common: CommonOptions, *, output: str, client: bool) -> int:
    """Show the versions of this program, of etcd, and of the parts that it uses.

    An etcd, or a service, that does not respond within two seconds is shown as such, and is not an
    error.
    """
    from etcd_actions.cli.commands.version import show_versions  # noqa: PLC0415

    return run_async(show_versions, common, output, client)
