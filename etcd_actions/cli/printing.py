"""Output while a command line is parsed: help, the version, scripts.

The output of a command is written by :mod:`etcd_actions.cli.formats.standard_output`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

import click

from etcd_actions.cli.exit_codes import unwritable

FORMATS = ("table", "wide", "name", "yaml", "json", "jsonl")
"""The formats of the commands that show runs and actions."""


def output_option(*formats: str, elsewhere: str) -> Callable[[Callable[..., Any]], Any]:
    """Give a command the flag ``--output``, whose default off a terminal is ``elsewhere``."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(formats),
        help=f"[default: table on a terminal, else {elsewhere}]",
    )


def change_output_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command that changes something the flag ``--output``."""
    decorated: Callable[..., Any] = click.option(
        "-o",
        "--output",
        type=click.Choice(["name", "json"]),
        help="Print the names of the changed objects, or JSON. [default: a message on stderr]",
    )(function)
    return decorated


@contextmanager
def output_by_print() -> Iterator[None]:
    """Let the body print to standard output, which it may leave buffered.

    A reader that has ended ends the body early and is not an error.

    Raises:
        InputError: It cannot be written.
    """
    try:
        yield
        if cast("IO[str] | None", sys.stdout) is not None:
            sys.stdout.flush()
    except OSError as error:
        # The buffered rest would fail again at the end of the process.
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 (no path of the user's)
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise unwritable(error) from error
