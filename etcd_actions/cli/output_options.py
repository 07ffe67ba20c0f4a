"""The flag ``--output`` of the commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from etcd_actions.cli.choice_type import Choice

FORMATS = ("table", "wide", "name", "yaml", "json", "jsonl")
"""The formats of the commands that show runs and actions."""


def output_option(*formats: str, elsewhere: str) -> Callable[[Callable[..., Any]], Any]:
    """Add the flag ``--output`` to a command.

    Args:
        formats: Its values.
        elsewhere: The format without the flag if standard output is not a terminal; on a terminal
            it is ``table``.
    """
    return click.option(
        "-o",
        "--output",
        type=Choice(formats),
        help=f"[default: table on a terminal, else {elsewhere}]",
    )


def change_output_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flag ``--output`` to a command that changes something."""
    decorated: Callable[..., Any] = click.option(
        "-o",
        "--output",
        type=Choice(["name", "json"]),
        help="Print the names of the changed objects, or JSON. [default: a message on stderr]",
    )(function)
    return decorated
