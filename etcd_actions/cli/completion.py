"""``etcd-actions completion``: the script with which a shell completes this command."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


def completion_script(root: click.Command, program: str, shell: str) -> str:
    """The script for a shell, which asks the program for what fits.

    Args:
        root: The command.
        program: What it is called.
        shell: One of :data:`SHELLS`.
    """
    completion = get_completion_class(shell)
    if completion is None:
        raise ValueError(f"{shell} is none of {', '.join(SHELLS)}")
    variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
    return completion(root, {}, program, variable).source()
