"""Standard output: which format it gets, and what its reader's end means."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import click
import msgspec
import structlog
import trio

from etcd_actions.cli.exits import unwritable
from etcd_actions.cli.rows import Row
from etcd_actions.cli.signals import Stop

Write = Callable[[bytes], None]

_log = structlog.get_logger(__name__)


class Format(Protocol):
    """How rows become output."""

    def format(self, rows: Sequence[Row], /) -> bytes:
        """The bytes of whole lines."""
        ...


class JsonLines:
    """One JSON object a line."""

    def __init__(self) -> None:
        self._encoder = msgspec.json.Encoder()

    def format(self, rows: Sequence[Row], /) -> bytes:
        """The bytes of whole lines."""
        return self._encoder.encode_lines(rows)


def output_option(*formats: str, elsewhere: str) -> Callable[[Callable[..., Any]], Any]:
    """Give a command the flag ``--output``; see :func:`chosen_format`.

    Args:
        formats: What it can print.
        elsewhere: What it prints where standard output is no terminal.
    """
    return click.option(
        "-o",
        "--output",
        type=click.Choice(formats),
        help=f"[default: table on a terminal, else {elsewhere}]",
    )


def chosen_format(output: str | None, *, elsewhere: str) -> str:
    """The format that was asked for, else table on a terminal and ``elsewhere`` elsewhere."""
    return output or ("table" if sys.stdout.isatty() else elsewhere)


@contextmanager
def standard_output() -> Iterator[Write]:
    """Give a function that writes all of its bytes to standard output.

    A reader that reads no further, such as ``head``, ends the body early and is no error.

    Raises:
        InputError: It cannot be written.
    """

    def write(data: bytes) -> None:
        try:
            write_all(sys.stdout.fileno(), data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise unwritable(error) from error

    try:
        yield write
    except* BrokenPipeError:
        # Nothing else here writes to a pipe.
        _log.debug("nobody_reads_on")


def write_all(descriptor: int, data: bytes) -> None:
    """Write bytes, however many pieces it takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


async def stop_when_unread(descriptor: int, stop: Stop) -> None:
    """Ask for the end when a pipe's reader has gone, also while there is nothing to write."""
    if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        # The writing end of a pipe becomes readable in one case only: as an error.
        await trio.lowlevel.wait_readable(descriptor)
        stop.request()
