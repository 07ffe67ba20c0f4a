"""The simulation of a day of runs: amounts are conserved, and sizes are those computed by hand."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from scripts.bench.scaling_figures import (
    DOCUMENT,
    FIGURES,
    Cost,
    Costs,
    keep_figures,
    read_costs,
    replace_block,
)
from scripts.bench.simulate_cells import (
    BIN,
    DAY,
    POLICIES,
    Arrivals,
    Day,
    Load,
    Policy,
    arrivals,
    held,
    needs,
    tables,
)

COUNT = DAY // BIN
ROOT = Cost(
    writes=20,
    requests=15,
    written_bytes=40_000,
    object_keys=1,
    object_bytes=4_000,
    record_keys=2,
    record_bytes=3_000,
    etcd_cpu_ms=5,
    service_cpu_ms=12,
    worker_cpu_ms=20,
)
CHILD = Cost(
    writes=10,
    requests=8,
    written_bytes=20_000,
    object_keys=1,
    object_bytes=3_000,
    record_keys=1,
    record_bytes=1_000,
    etcd_cpu_ms=2,
    service_cpu_ms=6,
    worker_cpu_ms=10,
)
COSTS = Costs(run=ROOT, child=CHILD, page_factor=1.5, follow_us=100)


def even(runs: float, actions: float, busy: float = 0) -> Arrivals:
    """A day on which each second is like the others."""
    per_bin = [runs * BIN] * COUNT, [actions * BIN] * COUNT, [busy * BIN] * COUNT
    return Arrivals(
        runs=per_bin[0], actions=per_bin[1], sizes=per_bin[1], busy=per_bin[2], largest=3
    )


def test_what_is_spread_is_there_once_and_at_its_time() -> None:
    day = Day()
    day.spread(5, 25, 20)
    day.spread(DAY - 10, DAY + 30, 8)
    found = day.amounts()
    assert found[:4] == pytest.approx([5 + 2, 10 + 2, 5 + 2, 0])
    assert found[-1] == pytest.approx(2)
    assert math.fsum(found) == pytest.approx(28)


def test_what_is_held_is_a_window_over_a_day_that_repeats_itself() -> None:
    draw = random.Random(3)
    added = [draw.random() for _ in range(COUNT)]
    for seconds in (BIN, 7 * BIN, DAY - BIN, DAY, 2 * DAY + 5 * BIN):
        found = held(added, seconds)
        for index in (0, 3, COUNT - 1):
            window = (added[(index - back) % COUNT] for back in range(seconds // BIN))
            assert found[index] == pytest.approx(math.fsum(window))


def test_a_day_is_drawn_from_its_seed() -> None:
    load = Load(runs=2_000)
    one, other = arrivals(load, 1), arrivals(load, 1)
    assert one == other
    assert arrivals(load, 2) != one
    assert math.fsum(one.runs) == load.runs
    # The mean of a lognormal number, and its error at this many runs.
    mean = load.actions * math.exp(load.actions_sigma**2 / 2)
    assert math.fsum(one.actions) / load.runs == pytest.approx(mean, rel=0.3)
    assert math.fsum(one.sizes) == pytest.approx(math.fsum(one.actions), rel=0.3)
    assert min(one.actions) > -1e-6
    # Cron's runs start in the first minute of an hour.
    first_minutes = sum(amount for index, amount in enumerate(one.runs) if index * BIN % 3600 < 60)
    assert first_minutes / load.runs == pytest.approx(load.scheduled + 0.7 / 60, rel=0.15)


def test_an_even_day_needs_what_is_computed_by_hand() -> None:
    # One run a second, of ten actions each.
    policy = Policy(
        retain_terminal=3600, retain_runs=DAY, quota=10_000_000_000, writes=440, compaction=300
    )
    found = needs(even(1, 10, busy=170), COSTS, policy)
    writes = 20 + 9 * 10
    objects, records = 4_000 + 9 * 3_000, 3_000 + 9 * 1_000
    assert found.actions == pytest.approx(10 * DAY)
    assert found.writes == found.writes_mean == pytest.approx(writes)
    assert found.live == pytest.approx(objects * 3600 + records * DAY)
    assert found.history == pytest.approx((40_000 + 9 * 20_000) * 600)
    assert found.keys == pytest.approx(10 * 3600 + 11 * DAY)
    # 1.2807 GB at 1.5 bytes each, of 5 GB; 110 of 220 writes a second.
    assert (found.cells_for_bytes, found.cells_for_writes, found.cells_for_cores) == (1, 1, 1)
    assert found.workers == math.ceil(170 / policy.slots)
    assert not found.too_large
    space = (5e9 / 1.5 - found.history - objects * 3600) / records
    assert found.kept_on_one == pytest.approx(min(space, DAY))


def test_each_limit_can_come_first() -> None:
    day = even(1, 10)
    ample = Policy(quota=1e15, writes=1e9, etcd_cores=1e6)
    tight = [
        replace(ample, quota=1e9),
        replace(ample, writes=50.0),
        replace(ample, etcd_cores=0.01),
    ]
    for policy in tight:
        found = needs(day, COSTS, policy)
        parts = (found.cells_for_bytes, found.cells_for_writes, found.cells_for_cores)
        assert sorted(parts)[:2] == [1, 1]
        assert found.cells == max(parts) > 1


def test_following_everything_is_a_limit_that_shards_do_not_have() -> None:
    """Each replica follows all changes: once that takes a core, no number of them is enough."""
    one = needs(even(20, 200), COSTS, Policy(quota=1e15, writes=1e9, etcd_cores=1e6))
    assert one.replicas >= one.replicas_in_shards >= 2
    busy = needs(even(100, 1000), COSTS, Policy(quota=1e15, writes=1e9, etcd_cores=1e6))
    assert busy.replicas == 0
    assert busy.replicas_in_shards > one.replicas_in_shards


def test_an_object_above_the_limit_of_a_request_is_seen() -> None:
    largest = Arrivals(runs=[1.0], actions=[1.0], sizes=[1.0], busy=[0.0], largest=600)
    assert needs(largest, COSTS, Policy()).too_large


def test_keeping_longer_never_needs_less() -> None:
    day = arrivals(Load(runs=3_000), 1)
    found = [needs(day, COSTS, Policy(retain_runs=hours * 3600)) for hours in (1, 24, 48, 720)]
    assert [each.live for each in found] == sorted(each.live for each in found)
    assert [each.cells for each in found] == sorted(each.cells for each in found)
    assert found[-1].live > 10 * found[0].live


def test_figures_are_kept_by_their_name(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    keep_figures("other", {"a": 1}, path)
    keep_figures("costs", COSTS, path)
    assert read_costs(path) == COSTS
    keep_figures("costs", {"run": 1}, path)
    with pytest.raises(msgspec.ValidationError):
        read_costs(path)


def test_a_block_of_the_page_is_replaced_once(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- one -->\nold\n<!-- /one -->\nb\n<!-- two -->\nx\n<!-- /two -->\n")
    replace_block("one", "new \\1\n", page)
    assert page.read_text().startswith("a\n<!-- one -->\n\nnew \\1\n\n<!-- /one -->\nb\n<!-- two")
    with pytest.raises(ValueError, match="marks of three"):
        replace_block("three", "", page)


def test_the_page_has_the_figures_of_the_file() -> None:
    """The rows of the smallest load: the page was written from these costs by this code."""
    assert FIGURES.exists()
    text = DOCUMENT.read_text()
    rows = tables({"10,000": arrivals(Load(runs=10_000), 1)}, read_costs()).splitlines()
    rows = [row for row in rows if row.startswith("| 10,000")]
    assert len(rows) == 1 + len(POLICIES)
    for row in rows:
        assert row in text
