"""Plans: the same from the same seed, and readable again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.schedules.plan import LENGTH, Plan, draw
from tests.schedules.results import FAULTS
from tests.schedules.sections import put_section
from tests.schedules.writers import DIRECT

SEEDS = range(200)


@pytest.mark.parametrize("seed", [0, 1, 17, 4711])
def test_a_seed_gives_the_same_plan_each_time(seed: int) -> None:
    assert str(draw(seed)) == str(draw(seed))


@pytest.mark.parametrize("seed", [0, 1, 17, 4711])
def test_a_written_plan_is_read_again(seed: int) -> None:
    plan = draw(seed)
    assert Plan.parse(str(plan)) == plan
    assert Plan.parse(f"# by hand\n\n{plan}") == plan


def test_the_plans_that_found_something_can_be_read() -> None:
    files = list(Path(__file__).parent.glob("found/*.txt"))
    assert files
    for file in files:
        plan = Plan.parse(file.read_text())
        assert plan.faults
        assert Plan.parse(str(plan)) == plan


def test_seeds_differ_and_together_do_everything() -> None:
    plans = [draw(seed) for seed in SEEDS]
    assert len({str(plan).partition("\n")[2] for plan in plans}) == len(plans)
    assert {plan.members for plan in plans} == {1, 3}
    assert {plan.processes for plan in plans} == {1, 2, 3, 8}
    assert {plan.shards for plan in plans} == {0, 2, 5, 16}
    assert {plan.transport for plan in plans} == {"grpc", "gateway"}
    assert {step.what for plan in plans for step in plan.faults} == set(FAULTS)
    written = {step.what for plan in plans for step in plan.writes}
    assert written == {"enqueue", "status", "signal", "abort", *DIRECT}
    assert any("timeout" in step.args for plan in plans for step in plan.writes)
    ways = {step.args["via"].partition(":")[0] for plan in plans for step in plan.writes}
    assert ways == {"grpc", "connect", "library"}


def test_every_step_is_within_the_schedule_and_names_what_there_is() -> None:
    for plan in map(draw, SEEDS):
        for step in plan.faults:
            assert 0 <= step.at < LENGTH
            assert step.args.get("process", "leader") in (
                "leader",
                *map(str, range(plan.processes)),
            )
            assert int(step.args.get("member", "0")) < plan.members
            if step.what in ("quorum", "move-leader"):
                assert plan.members == 3
        assert plan.readers
        for step in plan.readers:
            assert int(step.args["via"].partition(":")[2]) < plan.processes


def test_a_section_takes_the_place_of_its_older_self(tmp_path: Path) -> None:
    path = tmp_path / "proof.md"
    path.write_text("# Proof\n\nIntroduction.\n\n## A\n\nold\n\n### A1\n\nold\n\n## B\n\nb\n")
    put_section(path, "## A", "## A\n\nnew\n")
    put_section(path, "## C", "## C\n\nc\n")
    text = "# Proof\n\nIntroduction.\n\n## A\n\nnew\n\n## B\n\nb\n\n## C\n\nc\n"
    assert path.read_text() == text
