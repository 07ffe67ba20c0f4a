"""The output of ``describe`` for a person."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import IO, TYPE_CHECKING

from etcd_actions._internal.quoting import printable
from etcd_actions.cli.formats.action_tables import phase_text
from etcd_actions.cli.formats.table import Cell, Line, Terminal, age, aligned
from etcd_actions.model import Phase

if TYPE_CHECKING:
    from etcd_actions.cli.formats.descriptions import AttemptDescription, Description

_TITLE_WIDTH = 12


def description_text(described: Description, file: IO[str], now: datetime) -> bytes:
    """The lines about one action; none is cut, and a terminal wraps them.

    Args:
        described: The action.
        file: The output, which decides about styles.
        now: The time for actions that have not ended.
    """
    return Terminal(file).render([*_lines(described, now)], wrap=True)


def _lines(described: Description, now: datetime) -> Iterator[Line]:
    action = described.action
    yield [Cell(printable(action.path), "bold")]
    yield _field("Phase", phase_text(action.phase or "unknown"))
    for title, text in {
        "Task": _task(described),
        "Parent": action.parent or "none: the root of its run",
        "Created": _since(action.created_at, now),
        "Ended": action.ended_at,
        "Duration": age(action.created_at, now, action.ended_at),
        "Attempts": str(action.attempts),
        "Created by": described.details.get("metadata", {})
        .get("executed_by", {})
        .get("user", {})
        .get("id", {})
        .get("subject", ""),
        "Inputs": described.inputs_uri,
        "Outputs": described.outputs_uri,
        "Labels": ", ".join(f"{key}={value}" for key, value in sorted(described.labels.items())),
    }.items():
        if text:
            yield _field(title, Cell(printable(text)))
    if described.error:
        yield []
        yield [Cell("Error", "bold")]
        yield from _block(described.error, "red")
    if described.failed:
        yield []
        yield [Cell("Failed actions", "bold")]
        yield from ([Cell(f"  {printable(each)}", "red")] for each in described.failed)
    yield []
    yield [Cell("Events", "bold")]
    rows = [
        [
            each.time,
            str(each.attempt),
            each.phase,
            "" if Phase[each.phase].is_terminal else age(each.time, now, each.ended),
        ]
        for each in described.events
    ]
    for text in aligned([["TIME", "ATTEMPT", "PHASE", "FOR"], *rows]):
        yield [Cell(f"  {text}")]
    yield from _attempts(described.attempts)


def _attempts(attempts: Sequence[AttemptDescription]) -> Iterator[Line]:
    for each in attempts:
        yield []
        yield [Cell(f"Attempt {each.attempt}", "bold"), Cell(f": {each.phase}")]
        for where in each.log:
            yield _field("Log", Cell(printable(where)))
        if each.error:
            yield from _block(each.error, "red")


def _task(described: Description) -> str:
    metadata = described.details.get("metadata", {})
    named = metadata.get("task", {}).get("id", {})
    name = named.get("name") or described.action.short_name
    return " ".join(filter(None, (name, named.get("version"))))


def _since(time: str, now: datetime) -> str:
    since = age(time, now)
    return f"{time}, {since} ago" if time and since else time


def _field(title: str, cell: Cell) -> Line:
    return [Cell(f"  {title:<{_TITLE_WIDTH}}", "dim"), cell]


def _block(text: str, style: str) -> Iterator[Line]:
    """A text of several lines, such as a traceback."""
    for line in text.splitlines():
        yield [Cell(f"  {printable(line)}", style)]
