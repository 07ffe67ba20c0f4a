"""The results of commands that change something: a message for people, a name, or JSON."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from etcd_actions.cli.exit_codes import print_message
from etcd_actions.cli.formats.standard_output import json_document, name_lines, standard_output


class Change(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The result of a change of one object.

    Attributes:
        name: The name that other commands take: a run's or an action's path, the key of a dead
            letter.
        result: The result in one word such as ``enqueued``.
        aborted: The names of the ended actions; None if the service does not report them.
        parts: Number of the deleted parts by kind.
    """

    name: str
    result: str
    phase: str = ""
    attempt: int = 0
    aborted: Sequence[str] | None = None
    reason: str = ""
    parts: dict[str, int] = {}


def plural(number: int, noun: str) -> str:
    """A number with its noun, which forms its plural by an s: ``1 action``, ``2 actions``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def size_text(size: int) -> str:
    """A number of bytes for people."""
    number, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if number < 1024 or unit == "TiB":
            break
        number /= 1024
    return f"{number:.0f} {unit}" if unit == "B" or number >= 10 else f"{number:.1f} {unit}"


class Changes:
    """Prints the results of a command, in the format of its ``--output``.

    Args:
        output: ``name`` or ``json`` for standard output; None for messages on standard error.
    """

    def __init__(self, output: str | None) -> None:
        self._output = output
        self._changes: dict[str, Change] = {}

    def add(self, change: Change, message: str) -> None:
        """Add a result, which replaces an earlier one of the same name.

        The message, the same for people, is printed at once, unless a format is chosen.
        """
        self._changes[change.name] = change
        self.note(message)

    def note(self, message: str) -> None:
        """Print a message, unless a format is chosen."""
        if self._output is None:
            print_message(message)

    def finish(self, **totals: object) -> None:
        """Print the results in the chosen format: as JSON with the totals."""
        if self._output is not None:
            with standard_output() as write:
                write(self._encoded(totals))

    def _encoded(self, totals: dict[str, object]) -> bytes:
        if self._output == "name":
            return name_lines(self._changes)
        document = {"changes": list(self._changes.values()), **totals}
        return json_document(document)


def print_change(output: str | None, change: Change, message: str) -> None:
    """Print the result of a command that changes one object; its JSON is that of the change.

    Args:
        output: See :class:`Changes`.
        change: The result.
        message: The same for people.
    """
    if output == "json":
        with standard_output() as write:
            write(json_document(change))
        return
    changes = Changes(output)
    changes.add(change, message)
    changes.finish()
