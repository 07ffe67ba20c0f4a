"""One step of a plan, as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

LENGTH = 5.0
"""Seconds from the first step to the time when everything is healed."""

PHASES = {
    "queued": 1,
    "waiting": 2,
    "initializing": 3,
    "running": 4,
    "succeeded": 5,
    "failed": 6,
    "timed-out": 8,
}


@dataclass(frozen=True)
class Step:
    """What happens at a time, in seconds from the beginning.

    Attributes:
        at: When it begins.
        what: What happens, such as ``kill``.
        args: To whom, and how; ``for`` is how long it lasts.
    """

    at: float
    what: str
    args: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line of a plan."""
        words = [f"{self.at:.3f}", self.what, *(f"{k}={v}" for k, v in self.args.items())]
        return " ".join(words)

    @classmethod
    def parse(cls, line: str) -> Step:
        """Read what :meth:`__str__` wrote."""
        at, what, *words = line.split()
        return cls(float(at), what, dict(word.split("=", 1) for word in words))

    @property
    def stamp(self) -> str:
        """What marks an object that this step wrote directly in etcd."""
        return f"{self.what}@{self.at:.3f}"

    @property
    def lasts(self) -> float:
        """Seconds until it is undone; 0 for what is over at once."""
        return float(self.args.get("for", "0"))
