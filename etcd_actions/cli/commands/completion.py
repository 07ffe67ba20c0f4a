"""``etcd-actions completion``: the script with which a shell completes this command."""

from __future__ import annotations

import re
from collections.abc import Mapping

import click
from click.shell_completion import get_completion_class

from etcd_actions.errors import ConfigError

SHELLS = ("bash", "zsh", "fish")


def completion_script(root: click.Command, program: str, shell: str) -> str:
    """The script for one of :data:`SHELLS`, which calls ``program`` for the candidates."""
    completion = get_completion_class(shell)
    if completion is None:
        raise ValueError(f"{shell} is none of {', '.join(SHELLS)}")
    return completion(root, {}, program, _variable(program)).source()


def check_completion_request(program: str, variables: Mapping[str, str]) -> None:
    """Check the variables of a shell's completion, if they are set.

    Raises:
        ConfigError: They are incomplete; click would fail on them.
    """
    variable = _variable(program)
    if not variables.get(variable, "").endswith("_complete"):
        return
    if "COMP_WORDS" not in variables or not re.fullmatch(
        "[0-9]{1,6}", variables.get("COMP_CWORD", "0" if "fish" in variables[variable] else "")
    ):
        raise ConfigError(
            f"{variable} is for a shell's completion, which sets COMP_WORDS and COMP_CWORD too: "
            "unset it"
        )


def _variable(program: str) -> str:
    return f"_{program.replace('-', '_').upper()}_COMPLETE"
