"""Thirty schedules, always the same: whatever breaks, nothing false is told and nothing is lost.

They run side by side, since each waits most of the time. ``scripts/prove`` runs a thousand.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import cast

import pytest

from tests.schedules.main import binaries
from tests.schedules.many import ROOT, run_seed
from tests.schedules.results import Result

pytestmark = pytest.mark.faults

SEEDS = range(30)
JOBS = 2 * (os.cpu_count() or 1)


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest) -> Iterator[dict[int, Future[Result]]]:
    """Those schedules that this run of pytest has selected, under way."""
    if not binaries():
        pytest.skip("there is no etcd here that keeps what it acknowledged when it is killed")
    selected = [
        cast(int, item.callspec.params["seed"])
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.originalname == test_nothing_false_is_told_whatever_breaks.__name__
    ]
    directory = ROOT / "build" / "schedules"
    with ThreadPoolExecutor(JOBS) as pool:
        yield {seed: pool.submit(run_seed, seed, directory) for seed in selected}


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_false_is_told_whatever_breaks(
    running: dict[int, Future[Result]], seed: int
) -> None:
    """See the oracle's checks; a failure says how to repeat it, and where its logs are."""
    result = running[seed].result()
    repeat = f"repeat it with: scripts/prove --seed {seed}; logs: build/schedules/{seed}"
    assert result.violations == [], repeat
    assert result.counts["changes"] > 0
    assert result.counts["run service status"] > 0
