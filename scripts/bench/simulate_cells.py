"""Simulates a day of runs on etcd clusters (cells): keys, bytes, writes, and the parts needed.

    .venv/bin/python -m scripts.bench.simulate_cells [--seed 1] [--write]

It needs no etcd. The costs of an action are those of docs/scaling.json, which
``scripts.bench.action_cost`` measures. With ``--write`` the tables go into docs/scaling.md.

A day is a circle: it follows itself, so the figures are those of a steady state. All times are in
seconds, all sizes in bytes.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.bench.scaling_figures import Costs, read_costs, replace_block, table

DAY = 86_400
BIN = 10
"""Seconds of the intervals in which amounts are counted; a peak is the largest of them."""

_HOUR = 3600
_LONGEST_RUN = 2 * DAY
_GIB = 1 << 30
_REQUEST_BYTES = 1.5 * (1 << 20)


@dataclass(frozen=True, kw_only=True)
class Load:
    """The runs of a day. Numbers and times are lognormal: a median, and the sigma of the logarithm.

    Attributes:
        runs: Runs a day.
        actions: Median of the actions of a run.
        actions_sigma: Sigma of these.
        actions_most: Actions of the largest run.
        width: The most actions of one run at once.
        seconds: Median time of an action.
        seconds_sigma: Sigma of it.
        bytes_sigma: Sigma of the size of an object; the mean is the measured one.
        scheduled: The share of the runs that start in the first minute of an hour, as cron does it.
        swing: How far the busiest hour is above the mean of the day, without the scheduled runs.
    """

    runs: int = 1_000_000
    actions: float = 6
    actions_sigma: float = 1.3
    actions_most: int = 10_000
    width: int = 20
    seconds: float = 15
    seconds_sigma: float = 1.5
    bytes_sigma: float = 0.5
    scheduled: float = 0.3
    swing: float = 0.6


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How a cell is run.

    Attributes:
        retain_terminal: Seconds until the object of an ended action expires; None for never.
        retain_runs: Seconds until the record and the histories of an ended run are removed.
        compaction: ``--auto-compaction-retention`` of etcd.
        quota: ``--quota-backend-bytes`` of etcd.
        quota_share: The share of the quota that may be in use at the peak.
        writes: Writes a second that the disk and the members of a cell sustain.
        writes_share: The share of these that may be used at the peak.
        etcd_cores: Cores of each member of etcd.
        core_share: The share of a core that may be in use at the peak, of etcd and of a replica.
        slots: Actions that a worker runs at once.
    """

    retain_terminal: float | None = None
    retain_runs: float = 30 * DAY
    compaction: float = 300
    quota: float = 8 * _GIB
    quota_share: float = 0.5
    writes: float = 4_000
    writes_share: float = 0.5
    etcd_cores: float = 4
    core_share: float = 0.6
    slots: int = 16


class Day:
    """Amounts over the intervals of a day that repeats itself."""

    def __init__(self) -> None:
        count = (DAY + _LONGEST_RUN) // BIN + 2
        # What an interval gets beyond the rate at its beginning, and changes of the rate.
        self._extra = [0.0] * count
        self._change = [0.0] * count

    def spread(self, start: float, end: float, amount: float) -> None:
        """Add an amount evenly between two times, of which the second may be days later."""
        rate = amount / (end - start)
        first, last = int(start // BIN), int(end // BIN)
        self._extra[first] += rate * ((first + 1) * BIN - start)
        self._change[first + 1] += rate
        self._extra[last] -= rate * ((last + 1) * BIN - end)
        self._change[last + 1] -= rate

    def amounts(self) -> list[float]:
        """The amount of each interval."""
        found = [0.0] * (DAY // BIN)
        rate = 0.0
        for index, (change, extra) in enumerate(zip(self._change, self._extra, strict=True)):
            rate += change
            found[index % len(found)] += rate * BIN + extra
        return found


def held(added: Sequence[float], seconds: float) -> list[float]:
    """What is there at the end of each interval, if all that is added stays for so long."""
    laps, rest = divmod(round(seconds / BIN), len(added))
    always = laps * math.fsum(added)
    window = math.fsum(added[len(added) - rest :]) if rest else 0.0
    found = []
    for index, amount in enumerate(added):
        if rest:
            window += amount - added[index - rest]
        found.append(always + window)
    return found


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """What a day of runs does, for each interval.

    Attributes:
        runs: Runs that start.
        actions: Actions that are created, and end.
        sizes: The same actions, each by its size compared with the measured one.
        busy: Seconds of work of tasks.
        largest: The size of the largest action, compared with the measured one.
    """

    runs: list[float]
    actions: list[float]
    sizes: list[float]
    busy: list[float]
    largest: float


def arrivals(load: Load, seed: int) -> Arrivals:
    """Draw the runs of a day."""
    draw = random.Random(seed)
    count = DAY // BIN
    runs = [0.0] * count
    actions, sizes, busy = Day(), Day(), Day()
    largest = 0.0
    # So that the mean of the sizes is 1.
    shift = -(load.bytes_sigma**2) / 2
    number, seconds = math.log(load.actions), math.log(load.seconds)
    for _ in range(load.runs):
        start = _start(load, draw)
        most = round(draw.lognormvariate(number, load.actions_sigma))
        total = min(max(most, 1), load.actions_most)
        each = draw.lognormvariate(seconds, load.seconds_sigma)
        size = draw.lognormvariate(shift, load.bytes_sigma)
        took = min(each * math.ceil(total / load.width), _LONGEST_RUN)
        end = start + max(took, 1.0)
        runs[int(start // BIN) % count] += 1
        actions.spread(start, end, total)
        sizes.spread(start, end, total * size)
        busy.spread(start, end, took * total / math.ceil(total / load.width))
        largest = max(largest, size)
    return Arrivals(
        runs=runs,
        actions=actions.amounts(),
        sizes=sizes.amounts(),
        busy=busy.amounts(),
        largest=largest,
    )


def _start(load: Load, draw: random.Random) -> float:
    if draw.random() < load.scheduled:
        return draw.randrange(24) * _HOUR + draw.uniform(0, 60)
    while True:
        # The most at noon, the least at midnight.
        at = draw.uniform(0, DAY)
        if draw.uniform(0, 1 + load.swing) < 1 - load.swing * math.cos(2 * math.pi * at / DAY):
            return at


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a day of runs needs, at its peak unless it says a mean.

    Attributes:
        actions: Actions a day.
        keys: Keys in all cells.
        live: Bytes of their present values.
        history: Bytes of older revisions before the compaction.
        writes_mean: Puts and deletions a second.
        writes: The same at the peak.
        bytes_written: Bytes a second that go into etcd.
        busy: Actions that run at once.
        cells_for_bytes: Cells that the quota demands.
        cells_for_writes: Cells that the rate of writes demands.
        cells_for_cores: Cells that etcd's processors demand.
        replicas: Replicas of the service in each cell, if each of them follows every change.
        replicas_in_shards: The same if each follows its share of the runs.
        workers: Workers in all cells.
        kept_on_one: Seconds that ended runs are kept if there is one cell.
        too_large: Whether the largest object is above etcd's limit of a request.
    """

    actions: float
    keys: float
    live: float
    history: float
    writes_mean: float
    writes: float
    bytes_written: float
    busy: float
    cells_for_bytes: int
    cells_for_writes: int
    cells_for_cores: int
    replicas: int
    replicas_in_shards: int
    workers: int
    kept_on_one: float
    too_large: bool

    @property
    def cells(self) -> int:
        """Cells, by the limit that comes first."""
        return max(self.cells_for_bytes, self.cells_for_writes, self.cells_for_cores)


def needs(found: Arrivals, costs: Costs, policy: Policy) -> Needs:
    """What a day needs under a policy."""
    run, child = costs.run, costs.child
    pairs = list(zip(found.runs, found.actions, strict=True))

    def each(of_run: float, of_child: float) -> list[float]:
        """An amount for each interval, of a run with its root and of each other action."""
        return [
            max(runs * (of_run - of_child) + actions * of_child, 0.0) for runs, actions in pairs
        ]

    writes = each(run.writes, child.writes)
    written = each(run.written_bytes, child.written_bytes)
    # The bytes follow the sizes of the objects, which differ between the runs.
    scale = _ratios(found.sizes, found.actions)
    stay = policy.retain_runs
    expire = min(policy.retain_terminal or stay, stay)
    objects = _products(each(run.object_bytes, child.object_bytes), scale)
    live = _sums(held(objects, expire), held(each(run.record_bytes, child.record_bytes), stay))
    keys = _sums(
        held(each(run.object_keys, child.object_keys), expire),
        held(each(run.record_keys, child.record_keys), stay),
    )
    # etcd compacts once in each interval, up to the revision of one interval before.
    history = held(_products(written, scale), 2 * policy.compaction)
    in_use = max(_sums(live, history)) * costs.page_factor
    space = policy.quota * policy.quota_share
    most_writes, most_actions = max(writes) / BIN, max(found.actions) / BIN
    cores = most_actions * child.etcd_cpu_ms / 1000
    for_bytes = math.ceil(in_use / space)
    for_writes = math.ceil(most_writes / (policy.writes * policy.writes_share))
    for_cores = math.ceil(cores / (policy.etcd_cores * policy.core_share))
    cells = max(for_bytes, for_writes, for_cores)
    follow = most_actions / cells * child.writes * costs.follow_us / 1e6
    # The measured process followed all changes, too.
    serve = max(most_actions / cells * child.service_cpu_ms / 1000 - follow, 0.0)
    left = max(space / costs.page_factor - max(history), 0.0)
    records = math.fsum(each(run.record_bytes, child.record_bytes))
    return Needs(
        actions=math.fsum(found.actions),
        keys=max(keys),
        live=max(live),
        history=max(history),
        writes_mean=math.fsum(writes) / DAY,
        writes=most_writes,
        bytes_written=max(written) / BIN,
        busy=max(found.busy) / BIN,
        cells_for_bytes=for_bytes,
        cells_for_writes=for_writes,
        cells_for_cores=for_cores,
        replicas=_replicas(serve, follow, policy.core_share),
        replicas_in_shards=_replicas(serve + follow, 0.0, policy.core_share),
        workers=math.ceil(max(found.busy) / BIN / policy.slots),
        kept_on_one=_kept(left, math.fsum(objects) / DAY, records / DAY, policy),
        too_large=found.largest * child.object_bytes > _REQUEST_BYTES,
    )


def _kept(space: float, objects: float, records: float, policy: Policy) -> float:
    """Seconds until so many bytes are full, with two rates of bytes a second."""
    expire = policy.retain_terminal
    kept = space / (objects + records)
    if expire is not None and kept > expire:
        kept = max(space - objects * expire, 0.0) / records
    return min(kept, policy.retain_runs)


def _replicas(divided: float, repeated: float, share: float) -> int:
    """Processes of one core each: of two kinds of work, one is done by each of them."""
    left = share - repeated
    return max(2, math.ceil(divided / left)) if left > 0 else 0


def _ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [a / b if b else 0.0 for a, b in zip(above, below, strict=True)]


def _products(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a * b for a, b in zip(one, other, strict=True)]


def _sums(*columns: Sequence[float]) -> list[float]:
    return [math.fsum(each) for each in zip(*columns, strict=True)]


def main() -> None:
    """Simulate, and print the tables or write them into the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="into docs/scaling.md")
    options = parser.parse_args()
    costs = read_costs()
    days = {f"{runs:,}": arrivals(Load(runs=runs), options.seed) for runs in options.runs}
    most = max(options.runs)
    days[f"{most:,} spread"] = arrivals(Load(runs=most, scheduled=0.0), options.seed)
    text = tables(days, costs)
    if options.write:
        replace_block("simulated", text)
    else:
        print(text)


POLICIES = {
    "30 days": Policy(),
    "7 days": Policy(retain_runs=7 * DAY),
    "7 days, objects 1 h": Policy(retain_terminal=_HOUR, retain_runs=7 * DAY),
    "24 h, objects 1 h": Policy(retain_terminal=_HOUR, retain_runs=DAY),
    "1 h": Policy(retain_terminal=_HOUR, retain_runs=_HOUR),
}


def tables(days: dict[str, Arrivals], costs: Costs) -> str:
    """The table of the loads, by their names, and that of the needs by retention."""
    loads, parts = [], []
    for name, found in days.items():
        one = needs(found, costs, Policy())
        loads.append(
            [
                name,
                f"{one.actions:,.0f}",
                f"{one.writes_mean:,.0f}",
                f"{one.writes:,.0f}",
                f"{one.bytes_written / 1e6:,.1f}",
                f"{one.history / 1e9:.2f}",
                f"{one.busy:,.0f}",
                f"{one.workers:,}",
            ]
        )
        for kept, policy in POLICIES.items():
            one = needs(found, costs, policy)
            parts.append(
                [
                    f"{name}, {kept}",
                    f"{one.keys / 1e6:,.2f}",
                    f"{one.live / 1e9:,.1f}",
                    f"{one.cells_for_bytes:,}",
                    f"{one.cells_for_writes:,}",
                    f"{one.cells_for_cores:,}",
                    f"**{one.cells:,}**",
                    f"{one.replicas or 'too many'}",
                    f"{one.replicas_in_shards:,}",
                    _time(one.kept_on_one),
                ]
            )
    return "\n".join(
        [
            table(
                [
                    "runs a day",
                    "actions a day",
                    "writes/s, mean",
                    "writes/s, peak",
                    "MB/s written, peak",
                    "GB of history, peak",
                    "actions at once, peak",
                    "workers",
                ],
                loads,
            ),
            table(
                [
                    "runs a day, kept for",
                    "million keys",
                    "GB live",
                    "cells for bytes",
                    "for writes",
                    "for etcd's cores",
                    "cells",
                    "replicas a cell",
                    "in shards",
                    "one cell keeps",
                ],
                parts,
            ),
        ]
    )


def _time(seconds: float) -> str:
    return f"{seconds / DAY:.1f} days" if seconds >= 2 * DAY else f"{seconds / _HOUR:.1f} h"


if __name__ == "__main__":
    main()
