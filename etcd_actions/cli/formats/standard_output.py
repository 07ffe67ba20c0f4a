"""Standard output: its format, its writes, and the end of its reader."""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import IO, Any, cast

import msgspec
import trio

from etcd_actions._internal.logger import get_logger
from etcd_actions._internal.quoting import printable
from etcd_actions.app.stop import Stop
from etcd_actions.cli.exit_codes import unwritable
from etcd_actions.errors import InputError

Write = Callable[[bytes], None]

_log = get_logger(__name__)


def chosen_format(output: str | None, *, elsewhere: str) -> str:
    """The format of ``--output``, else ``table`` on a terminal and ``elsewhere`` elsewhere.

    Raises:
        InputError: Standard output is closed.
    """
    check_output_open()
    return output or ("table" if sys.stdout.isatty() else elsewhere)


def check_output_open() -> None:
    """Raise InputError if standard output is closed: the next open file would take its place."""
    # Python's own streams are None then.
    if cast("IO[str] | None", sys.stdout) is None:
        raise InputError("standard output is closed: send it to a file, or to /dev/null")


def check_input_open() -> None:
    """Raise InputError if standard input is closed."""
    if cast("IO[str] | None", sys.stdin) is None:
        raise InputError("standard input is closed: give a file")


@contextmanager
def standard_output() -> Iterator[Write]:
    """Give a function that writes all of its bytes to standard output.

    A reader that has ended, such as ``head``, ends the body early and is not an error.

    Raises:
        InputError: It cannot be written.
    """
    check_output_open()

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
        _log.debug("reader_ended")


def json_document(document: object) -> bytes:
    """A document as JSON, on several lines."""
    return msgspec.json.format(msgspec.json.encode(document)) + b"\n"


def name_lines(names: Iterable[str]) -> bytes:
    """Names, one a line.

    A stored name may have line breaks: as another name a part of it would get to the next command.
    """
    return "".join(f"{printable(name)}\n" for name in names).encode()


def print_rows(
    form: str,
    rows: Sequence[Any],
    document: object,
    table: Callable[[bool], bytes],
    write: Write | None = None,
) -> None:
    """Print rows in any of :data:`~etcd_actions.cli.output_options.FORMATS`.

    Args:
        form: The format.
        rows: The rows; with ``name`` each has a ``path``, the name that commands take.
        document: All of them, for ``json`` and ``yaml``.
        table: Formats them for people; gets whether ``-o wide`` was given.
        write: Writes to standard output; by default it is opened here.
    """
    if write is None:
        with standard_output() as opened:
            print_rows(form, rows, document, table, opened)
    elif form in ("table", "wide"):
        write(table(form == "wide"))
    elif form == "name":
        write(name_lines(row.path for row in rows))
    elif form == "jsonl":
        write(msgspec.json.Encoder().encode_lines(rows))
    elif form == "yaml":
        from etcd_actions.cli.formats.yaml import as_yaml  # noqa: PLC0415 (rarely needed)

        write(as_yaml(document))
    else:
        write(json_document(document))


def write_all(descriptor: int, data: bytes) -> None:
    """Write bytes, in as many pieces as it takes."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            # Another program with the same terminal or pipe can have made it non-blocking.
            select.select([], [descriptor], [])


@asynccontextmanager
async def until_stopped(stop: Stop) -> AsyncIterator[None]:
    """Run the body until the end is requested, or standard output's reader has ended."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop_when_unread, sys.stdout.fileno(), stop)
        with stop.interrupts():
            yield
        nursery.cancel_scope.cancel("the output has ended")


async def stop_when_unread(descriptor: int, stop: Stop) -> None:
    """Request the end when a pipe's reader has ended, also while there is nothing to write."""
    if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        # The write end of a pipe becomes readable in one case only: as an error.
        await trio.lowlevel.wait_readable(descriptor)
        stop.request()
