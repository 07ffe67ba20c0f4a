"""A program over workers on three machines that have only etcd and the store in common."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sdk.fleet import Fleet, Program, open_fleet
from tests.sdk.fleet_chaos import Ray, run_program
from tests.support.namespaces import why_not
from tests.support.ray_cluster import open_ray_cluster

pytestmark = [pytest.mark.slow, pytest.mark.faults]


@pytest.fixture
def fleet(tmp_path: Path, sdk_python: Path) -> Iterator[Fleet]:
    if reason := why_not():
        pytest.skip(reason)
    with open_fleet(tmp_path, sdk_python) as fleet:
        yield fleet


async def test_a_program_over_three_machines_while_each_part_is_killed_once(fleet: Fleet) -> None:
    """The complete form, of 2,000 tasks, is ``scripts/prove --machines``."""
    outcome = await run_program(fleet, Program(branches=8, width=12))
    assert outcome.problems == [], outcome
    assert outcome.lost["WorkerLost"] > 0
    assert len(outcome.by_machine) == 3


async def test_next_to_a_ray_cluster_whose_head_is_killed(fleet: Fleet, ray_python: Path) -> None:
    with open_ray_cluster(ray_python) as cluster:
        program = Program(branches=4, width=10, on_ray=9)
        outcome = await run_program(fleet, program, Ray(cluster, ray_python))
    assert outcome.problems == [], outcome
    assert len(outcome.by_machine) == 4
