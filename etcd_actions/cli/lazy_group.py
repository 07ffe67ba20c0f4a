"""A group of commands that are imported when they are named."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

import click

from etcd_actions.cli.flags import CommandGroup


class Home(NamedTuple):
    """Where a command is, and what help says of it before it is imported."""

    module: str
    attribute: str
    summary: str
    """The first sentence of its docstring."""


class LazyGroup(CommandGroup):
    """A group whose commands are imported when they are named on a command line.

    Help and completion of the group itself show them by their summaries, and import none.

    Args:
        homes: Where each command is, by its name.
        rest: What a group takes.

    Attributes:
        homes: See above.
    """

    def __init__(self, *, homes: Mapping[str, Home], **rest: Any) -> None:
        stand_ins = {name: click.Command(name, help=home.summary) for name, home in homes.items()}
        super().__init__(commands=stand_ins, **rest)
        self.homes = homes

    def load(self, name: str) -> click.Command:
        """Import a command, and give it.

        Raises:
            KeyError: There is none of that name.
        """
        home = self.homes[name]
        command: click.Command = getattr(import_module(home.module), home.attribute)
        self.commands[name] = command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find, and import, the command that arguments begin with; see click."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, self.load(name) if name and command else command, rest
