"""What the everyday suite may cost, and what it did cost: told at its end, failing nothing.

Time on the clock says little on a machine that others use too. Processor time is steadier.
"""

from __future__ import annotations

import resource
import time
from collections import defaultdict

import pytest

CPU_SECONDS = 120
"""Of all processes together, on a machine that others use too; less on an idle one."""

TEST_SECONDS = 5.0
"""On the clock, for one test that is marked neither ``slow`` nor ``faults``."""

_MARKED = {"slow", "faults"}


class Budget:
    """A plugin: the processor time of a run, and the unmarked tests that took long.

    Args:
        test_seconds: A test that took longer is named.
    """

    def __init__(self, test_seconds: float = TEST_SECONDS) -> None:
        self._test_seconds = test_seconds
        self._began = time.monotonic()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add a phase to its test."""
        if _MARKED.isdisjoint(report.keywords):
            self._seconds[report.nodeid] += report.duration

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print both."""
        if not self._seconds:
            return
        terminalreporter.write_line(
            f"processor time {_spent():.0f} s in {time.monotonic() - self._began:.0f} s; "
            f"the everyday suite may take {CPU_SECONDS} s"
        )
        longest_first = sorted(self._seconds.items(), key=lambda item: item[1], reverse=True)
        for test, seconds in longest_first:
            if seconds <= self._test_seconds:
                break
            terminalreporter.write_line(f"{seconds:.1f} s without a mark: {test}")


def _spent() -> float:
    """User and system time of this process, and of all below it, which were reaped by now."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
