"""Copies of the log lines of this process, such as those for a collector."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

Copy = Callable[[dict[str, Any]], None]
"""Receives the fields of a line, bounded in number and length. It must not fail or block."""

_receivers: Final[list[Copy]] = []


@contextmanager
def copying(receiver: Copy) -> Iterator[None]:
    """Give a receiver the fields of each log line while the body runs."""
    _receivers.append(receiver)
    try:
        yield
    finally:
        _receivers.remove(receiver)


def copy_line(fields: dict[str, Any]) -> None:
    """Give the fields of a line to all receivers."""
    for receiver in _receivers:
        receiver(fields)
