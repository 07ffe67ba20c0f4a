"""The flags of ``config``."""

from __future__ import annotations

from etcd_actions.cli.flags import epilog, group
from etcd_actions.cli.options import with_resolution
from etcd_actions.cli.output_options import output_option
from etcd_actions.config import Resolution


@group(no_args_is_help=True)
def config() -> None:
    """Show the settings."""


@config.command(epilog=epilog("etcd-actions config show -o jsonl"))
@output_option("table", "jsonl", "json", elsewhere="jsonl")
@with_resolution
def show(values: Resolution, *, output: str | None) -> int:
    """Show each setting, its value, and the source of the value.

    A flag overrides a variable, a variable overrides the file, the file overrides the default.
    Passwords are not shown. Unusable values are reported on standard error; then the exit code
    is 2.
    """
    from etcd_actions.cli.commands.config_show import show_config  # noqa: PLC0415

    return show_config(values, output)
