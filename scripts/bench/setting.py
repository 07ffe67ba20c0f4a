"""How a run measures: the options of the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scripts.bench.results import Figures

Take = Callable[[str], Figures]
"""Measures one side of a row once."""

_QUICK_SHARE = 5


class Skipped(Exception):
    """A row cannot be measured here, for this reason."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a run measures.

    Attributes:
        etcd: The program.
        directory: Where etcd's data goes; the system's place when None.
        rounds: How often each side of a row is measured.
        seconds: Length of a load.
        quick: Whether smaller stores and fewer writes do.
        sizes: Keys in the stores of one row, in order.
    """

    etcd: str
    directory: Path | None
    rounds: int
    seconds: float
    quick: bool
    sizes: tuple[int, ...]

    def scaled(self, count: int) -> int:
        """``count``, or a part of it where a short pass must do."""
        return count // _QUICK_SHARE if self.quick else count
