"""Whether the machine was quiet: what it does by itself, and how fast it is, now.

A figure of a busy machine is not a figure of the program. So the driver looks before and after each
round, when nothing of its own runs, and says what it found.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

IDLE_SECONDS = 0.25
MOST_BUSY = 0.08
MOST_LATE_MS = 2.0
MOST_DRIFT = 0.15
_SLEEPS = 50
_SLEEP_SECONDS = 0.001
_TURNS = 150_000


@dataclass(frozen=True, kw_only=True)
class Look:
    """The machine at one moment, while the bench itself does nothing.

    Attributes:
        busy: Share of all cores that others used.
        late_ms: How late the latest of some short sleeps ended.
        speed_ms: Processor time of a fixed piece of work in Python.
        load: The load average of the last minute; after a round it contains the round.
    """

    busy: float
    late_ms: float
    speed_ms: float
    load: float


def look() -> Look:
    """Look; takes half a second."""
    total, idle = _ticks()
    late = 0.0
    time.sleep(IDLE_SECONDS)
    for _ in range(_SLEEPS):
        began = time.perf_counter()
        time.sleep(_SLEEP_SECONDS)
        late = max(late, time.perf_counter() - began - _SLEEP_SECONDS)
    total_after, idle_after = _ticks()
    passed = max(total_after - total, 1)
    return Look(
        busy=max(0.0, 1 - (idle_after - idle) / passed),
        late_ms=1000 * late,
        speed_ms=min(_work() for _ in range(3)),
        load=os.getloadavg()[0],
    )


def doubts(looks: Sequence[Look], reference: float) -> list[str]:
    """Why the figures between these looks are not those of a quiet machine; empty if they are.

    Args:
        looks: Before and after each round.
        reference: The least processor time of the fixed work that was seen in this run.
    """
    found = []
    busy = max(one.busy for one in looks)
    late = max(one.late_ms for one in looks)
    drift = max(one.speed_ms for one in looks) / reference - 1
    if busy > MOST_BUSY:
        found.append(f"others used {busy:.0%} of the machine")
    if late > MOST_LATE_MS:
        found.append(f"a sleep of 1 ms ended {late:.1f} ms late")
    if drift > MOST_DRIFT:
        found.append(f"the processor was {drift:.0%} slower than at its best")
    return found


def description() -> str:
    """The processor, for a report."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{os.cpu_count()} cores ({model})"


def _ticks() -> tuple[int, int]:
    """Ticks of all cores so far, and those of them that were idle."""
    with Path("/proc/stat").open(encoding="ascii") as lines:
        fields = [int(field) for field in next(lines).split()[1:9]]
    return sum(fields), fields[3] + fields[4]


def _work() -> float:
    began = time.process_time()
    total = 0
    for number in range(_TURNS):
        total += number & 7
    return 1000 * (time.process_time() - began)
