"""What became of many schedules, as a text for docs/."""

from __future__ import annotations

import datetime
import platform
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Self

from etcd_actions import __version__

HEADING = "## Random schedules"
FAULTS = {
    "kill": "process killed (SIGKILL)",
    "stop": "process stopped and continued (SIGSTOP), up to beyond its lease",
    "term": "process ended (SIGTERM) and started again",
    "etcd-kill": "member of etcd killed",
    "etcd-term": "member of etcd ended and started again",
    "etcd-stop": "member of etcd stopped and continued",
    "compact": "history compacted, physically",
    "nospace": "alarm for want of space raised and lowered",
    "revoke": "lease of the elected process revoked",
    "move-leader": "leader of etcd moved",
    "quorum": "quorum of etcd lost",
    "cut": "connections to etcd cut",
    "down": "connections to etcd refused",
    "stall": "connections to etcd stalled, one way or both",
    "isolate": "process disconnected from etcd, half-open, up to beyond its lease",
    "chunk": "bytes of etcd in pieces of 1 to 100",
    "delay": "bytes of etcd delayed",
    "rs-cut": "connections to the run service cut",
    "rs-mute": "answers of the run service held back",
    "rs-stop": "run service restarted on its port",
    "rs-hang": "run service hung",
    "rs-slow": "run service slow, up to beyond the deadline",
    "rs-refuse": "run service refused calls",
    "rs-inband": "run service refused in-band",
    "rs-lose": "run service applied calls and lost the answers",
    "rs-reject": "run service rejected a call for good",
    "rs-forget": "run service lost its rows",
}


@dataclass
class Result:
    """What became of one schedule; ``wall`` is what it took with the start of its process."""

    seed: int
    version: str
    violations: list[str]
    seconds: float = 0.0
    calm: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    logged: Counter[str] = field(default_factory=Counter)
    wall: float = 0.0

    @classmethod
    def of(cls, told: dict[str, Any]) -> Self:
        """From what the schedule's process printed."""
        return cls(
            told["seed"],
            told["version"],
            told["violations"],
            told.get("seconds", 0.0),
            told.get("calm", 0.0),
            Counter(told.get("faults", {})),
            Counter(told.get("counts", {})),
            Counter(told.get("logged", {})),
        )

    def __str__(self) -> str:
        """One line."""
        verdict = f"{len(self.violations)} VIOLATIONS" if self.violations else "ok"
        return (
            f"seed {self.seed}: {verdict} on etcd {self.version} in {self.seconds:.1f} s, "
            f"calm after {self.calm:.1f} s, {self.faults.total()} faults, "
            f"{self.counts['changes']} changes, {self.counts['marks']} marks"
        )


class Results:
    """All of them.

    Attributes:
        violated: Those with a violation.
    """

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._began = time.monotonic()
        self._all: list[Result] = []
        self.violated: list[Result] = []

    def add(self, result: Result) -> None:
        """One more."""
        self._all.append(result)
        if result.violations:
            self.violated.append(result)

    def summary(self) -> str:
        """One line."""
        return (
            f"{len(self._all)} schedules, {len(self.violated)} with violations"
            f"{_listed(each.seed for each in self.violated)}, "
            f"{self._sum('faults').total()} faults, in {self._took():.0f} s"
        )

    def markdown(self) -> str:
        """The part of docs/proof.md about schedules."""
        seeds = [each.seed for each in self._all]
        took = sorted(each.seconds for each in self._all)
        calm = sorted(each.calm for each in self._all)
        versions = Counter(each.version for each in self._all)
        counts, faults, logged = (self._sum(name) for name in ("counts", "faults", "logged"))
        lines = [
            HEADING,
            "",
            f"{len(self._all)} schedules, seeds {min(seeds)} to {max(seeds)}, "
            f"{len(self.violated)} with violations.",
            "",
            "| | |",
            "| --- | --- |",
            f"| date | {datetime.datetime.now(datetime.UTC):%Y-%m-%d} |",
            f"| etcd-actions | {__version__} |",
            f"| etcd | {', '.join(f'{name}: {n} schedules' for name, n in versions.items())} |",
            f"| Python | {platform.python_version()} |",
            f"| side by side | {self._jobs} |",
            f"| in all | {self._took():.0f} s |",
            f"| one schedule | median {_at(took, 0.5):.1f} s, 99 of 100 within "
            f"{_at(took, 0.99):.1f} s, at most {took[-1]:.1f} s |",
            "| from healing to the end of all work | "
            f"median {_at(calm, 0.5):.1f} s, 99 of 100 within {_at(calm, 0.99):.1f} s, "
            f"at most {calm[-1]:.1f} s |",
            "",
            "| faults | times |",
            "| --- | ---: |",
            *(f"| {text} | {faults[kind]} |" for kind, text in FAULTS.items()),
            f"| **all faults** | **{faults.total()}** |",
            "",
            "| what happened | times |",
            "| --- | ---: |",
            *(f"| {name} | {times} |" for name, times in sorted(counts.items())),
            "",
            "| what the processes logged, from warnings on | times |",
            "| --- | ---: |",
            *(f"| {name} | {times} |" for name, times in sorted(logged.items())),
            "",
        ]
        if self.violated:
            lines += ["| seed | violations |", "| --- | --- |"]
            for each in self.violated:
                kinds = Counter(text.partition(":")[0] for text in each.violations)
                listed = ", ".join(f"{kind} ({times})" for kind, times in kinds.items())
                lines.append(f"| {each.seed} | {listed} |")
            lines.append("")
        return "\n".join(lines)

    def _took(self) -> float:
        return time.monotonic() - self._began

    def _sum(self, name: str) -> Counter[str]:
        total: Counter[str] = Counter()
        for each in self._all:
            total += getattr(each, name)
        return total


def _listed(seeds: Any) -> str:
    text = ", ".join(map(str, seeds))
    return f" (seeds {text})" if text else ""


def _at(numbers: list[float], part: float) -> float:
    return numbers[min(len(numbers) - 1, int(part * len(numbers)))]
