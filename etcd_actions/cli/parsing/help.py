"""The argument of ``help``."""

from __future__ import annotations

import click

from etcd_actions.cli.flags import command
from etcd_actions.cli.printing import output_by_print


def _commands(ctx: click.Context, _param: click.Parameter, start: str) -> list[str]:
    """The commands that continue the given ones, for completion."""
    group = ctx.find_root().command
    assert isinstance(group, click.Group)
    return [name for name in group.list_commands(ctx) if name.startswith(start)]


@command("help", example="etcd-actions help dead-letters retry")
@click.argument("names", metavar="[COMMAND...]", nargs=-1, shell_complete=_commands)
def help_(names: tuple[str, ...]) -> None:
    """Show the help of a command; without one, the list of commands."""
    context = click.get_current_context().find_root()
    for name in names:
        group = context.command
        if not isinstance(group, click.Group):
            raise click.UsageError(f"{context.command_path} has no commands", context)
        _, found, _ = group.resolve_command(context, [name])
        assert found is not None
        context = click.Context(
            found, info_name=name, parent=context, help_option_names=context.help_option_names
        )
    with output_by_print():
        click.echo(context.get_help())
