"""Output by print: of help, the version, scripts, and a last line of a command.

All other output of commands is written by :mod:`etcd_actions.cli.formats.standard_output`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

from etcd_actions.cli.exit_codes import unwritable


@contextmanager
def output_by_print() -> Iterator[None]:
    """Let the body print to standard output, and flush that at the end.

    If the reader of the output has ended, the body ends early, without an error.

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
