"""Thirty schedules, always the same: whatever breaks, nothing false is told and nothing is lost.

They run side by side, since each waits most of the time. ``scripts/prove`` runs a thousand. Plans
that found something are kept in ``found/``, and are some of the thirty.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.schedules.main import binaries
from tests.schedules.many import ROOT, run_plan, run_seed
from tests.schedules.results import Result

pytestmark = pytest.mark.faults

FOUND = sorted((Path(__file__).parent / "found").glob("*.txt"))
SCHEDULES: list[int | Path] = [*FOUND, *range(30 - len(FOUND))]
JOBS = 2 * (os.cpu_count() or 1)
Running = dict[int | Path, Future[Result]]


def _name(schedule: int | Path) -> str:
    return schedule.stem if isinstance(schedule, Path) else str(schedule)


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    """Those schedules that this run of pytest has selected, under way."""
    if not binaries():
        pytest.skip("there is no etcd here that keeps what it acknowledged when it is killed")
    name = test_nothing_false_is_told_whatever_breaks.__name__
    selected = {
        item.callspec.id
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == name
    }
    directory = ROOT / "build" / "schedules"

    def run(schedule: int | Path) -> Result:
        if isinstance(schedule, Path):
            return run_plan(schedule, directory)
        return run_seed(schedule, directory)

    with ThreadPoolExecutor(JOBS) as pool:
        yield {each: pool.submit(run, each) for each in SCHEDULES if _name(each) in selected}


@pytest.mark.parametrize("schedule", SCHEDULES, ids=_name)
def test_nothing_false_is_told_whatever_breaks(running: Running, schedule: int | Path) -> None:
    """See the oracle's checks; a failure says how to repeat it, and where its logs are."""
    result = running[schedule].result()
    name = _name(schedule)
    how = f"--seed {name}" if isinstance(schedule, int) else f"--replay {schedule}"
    assert result.violations == [], (
        f"repeat it with: scripts/prove {how}; logs: build/schedules/{name}"
    )


def test_the_schedules_were_about_something(running: Running) -> None:
    """One of them may lose etcd before anything is written; most of them do not."""
    if not running:
        pytest.skip("none of them was selected")
    counts = [each.result().counts for each in running.values()]
    assert sum(each["changes"] > 0 for each in counts) > len(counts) // 2
    assert sum(each["run service status"] > 0 for each in counts) > len(counts) // 2
