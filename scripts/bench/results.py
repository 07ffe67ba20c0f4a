"""The goals of a row of the table, its figures, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal, NamedTuple

FLOOR = "floor"
OURS = "ours"
GO = "go"

Figures = dict[str, float]
"""The measurements of one side of a row in one round, by name."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One figure of a row and what it is to be.

    Attributes:
        figure: Its name among the measured ones.
        label: Its name and unit, for people.
        relation: Whether less or more is better.
        limit: The bound, in the figure's unit or times the floor.
        times: Whether the bound is a multiple of the floor of the same round.
        form: How the figure is printed.
        against: The side that it is compared with; the floor where that side was not measured.
    """

    figure: str
    label: str
    relation: Literal["≤", "≥"]
    limit: float
    times: bool = False
    form: str = ",.1f"
    against: str = FLOOR

    @property
    def text(self) -> str:
        """The bound, for people."""
        return f"{self.relation} {self.limit:,g}{' x' if self.times else ''}"

    def met_by(self, value: float) -> bool:
        """Whether a figure, or its ratio, is within the bound."""
        return value <= self.limit if self.relation == "≤" else value >= self.limit


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table.

    Attributes:
        name: On the command line.
        title: What is measured.
        floor: What it is compared with.
        goals: Its figures.
        obstacle: What stands in the way of goals that are not reached.
    """

    name: str
    title: str
    floor: str
    goals: tuple[Goal, ...]
    obstacle: str


@dataclass(kw_only=True)
class Result:
    """The figures of a row.

    Attributes:
        row: The row's name.
        rounds: Figures by side, of each round.
        failures: What went wrong, by round and side.
        doubts: Why the machine was not quiet.
        skipped: Why it was not measured at all.
        seconds: How long it took.
        conditions: With what, where and how it was measured.
        short: Whether stores were smaller and writes fewer than the row says.
    """

    row: str
    rounds: list[dict[str, Figures]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    skipped: str = ""
    seconds: float = 0.0
    conditions: str = ""
    short: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Line(NamedTuple):
    """A goal with its figures: medians over the rounds; None if there is none."""

    goal: Goal
    against: str
    floor: float | None
    ours: float | None
    ratio: float | None
    verdict: str


def lines(row: Row, result: Result | None) -> list[Line]:
    """A line for each goal of a row."""
    return [_line(goal, result) for goal in row.goals]


def median_of(result: Result, side: str, figure: str) -> float | None:
    """The median over the rounds, of those that have it."""
    found = [one[side][figure] for one in result.rounds if figure in one.get(side, {})]
    return median(found) if found else None


def load_doubts(rounds: Sequence[dict[str, Figures]]) -> list[str]:
    """Why a load was not the planned one, or its reader no fair one."""
    found = []
    for number, sides in enumerate(rounds, 1):
        for side, figures in sides.items():
            where = f"round {number}, {side}"
            planned = figures.get("load_planned", 0)
            if figures.get("load_rate", 0) < 0.98 * planned:
                found.append(f"{where}: {figures['load_rate']:,.0f} of {planned:,.0f} puts/s")
            if figures.get("load_late_p99_ms", 0) > _MOST_LATE_MS:
                late = figures["load_late_p99_ms"]
                found.append(f"{where}: the load was {late:.1f} ms late (p99)")
            if figures.get("stale"):
                found.append(f"{where}: {figures['stale']:,.0f} last states unseen, it fell behind")
            if figures.get("disordered"):
                found.append(f"{where}: {figures['disordered']:,.0f} events out of order")
    return found


_MOST_LATE_MS = 1.0


def _line(goal: Goal, result: Result | None) -> Line:
    if result is None:
        return Line(goal, FLOOR, None, None, None, "not measured")
    if result.skipped:
        return Line(goal, FLOOR, None, None, None, f"skipped: {result.skipped}")
    measured = median_of(result, goal.against, goal.figure) is not None
    against = goal.against if measured else FLOOR
    floor = median_of(result, against, goal.figure)
    ours = median_of(result, OURS, goal.figure)
    ratios = [
        one[OURS][goal.figure] / one[against][goal.figure]
        for one in result.rounds
        if goal.figure in one.get(OURS, {}) and one.get(against, {}).get(goal.figure)
    ]
    ratio = median(ratios) if ratios else None
    judged = ratio if goal.times else ours
    if ours is None:
        verdict = "**failed**"
    elif judged is None:
        verdict = "no floor"
    else:
        verdict = "reached" if goal.met_by(judged) else "**not reached**"
        verdict += " (short pass)" if result.short else ""
    return Line(goal, against, floor, ours, ratio, verdict)
