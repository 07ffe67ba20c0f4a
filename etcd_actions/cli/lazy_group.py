"""A group of commands that are imported when they are named."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from etcd_actions.cli.commands.name_completion import complete_name, completes_names
from etcd_actions.cli.flags import CommandGroup


def _complete_names(command: click.Command) -> None:
    """Give a command, and those below it, the shell completion of names of runs and actions."""
    for param in command.params:
        if completes_names(param) and param._custom_shell_complete is None:
            param._custom_shell_complete = complete_name
    for each in command.commands.values() if isinstance(command, click.Group) else ():
        _complete_names(each)


class LazyGroup(CommandGroup):
    """A group whose commands are imported when they are named on a command line.

    The help and completion of the group itself show summaries, for which no command is imported.

    Args:
        locations: By the name of each command: its module in ``parsing``, and its summary.
        rest: The arguments of a group.
    """

    def __init__(self, *, locations: Mapping[str, tuple[str, str]], **rest: Any) -> None:
        stand_ins = {name: click.Command(name, help=text) for name, (_, text) in locations.items()}
        super().__init__(commands=stand_ins, **rest)
        self.locations = locations

    def load(self, name: str) -> click.Command:
        """Import a command; raises KeyError if there is none of that name."""
        module = import_module(f"etcd_actions.cli.parsing.{self.locations[name][0]}")
        for each in vars(module).values():
            if isinstance(each, click.Command) and each.name == name:
                self.commands[name] = each
                _complete_names(each)
                return each
        raise KeyError(name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find and import the command at the beginning of the arguments; see click."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, self.load(name) if name and command else command, rest
