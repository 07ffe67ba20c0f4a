"""Runs take turns; none holds all slots while another waits, and no parent waits for ever."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from etcd_actions.executor.scheduling.turns import RUNS_FOR_A_SLOT, Turns


@dataclass
class Tree:
    """A run in a simulation: each level of it has so many actions for each one above."""

    name: str
    widths: list[int]
    limit: int = 0
    begun: int = 0
    most: int = 0
    running: int = 0
    waiting: int = 0


@dataclass
class Simulation:
    """Slots, and runs whose actions wait for all of their children before they end."""

    slots: int
    turns: Turns
    running: list[str] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    runs: dict[str, Tree] = field(default_factory=dict)
    open_children: dict[str, int] = field(default_factory=dict)
    age: int = 0
    most_waiting: int = 0

    def add(self, tree: Tree) -> None:
        self.runs[tree.name] = tree
        self.enqueue(f"{tree.name}/0")

    def enqueue(self, name: str) -> None:
        self.age += 1
        run, depth = run_of(name), name.count("/") - 1
        self.turns.ready(name, run, (-depth, self.age), self.runs[run].limit)

    def start(self) -> None:
        while len(self.running) < self.slots and (name := self.turns.first()) is not None:
            run = self.runs[run_of(name)]
            self.turns.remove(name)
            self.turns.count_running(run.name, 1)
            self.turns.count_slots(run.name, 1)
            self.running.append(name)
            self.order.append(name)
            run.running += 1
            run.most = max(run.most, run.running)

    def leave(self, name: str) -> None:
        self.running.remove(name)
        self.turns.count_slots(run_of(name), -1)
        self.runs[run_of(name)].running -= 1

    def step(self, index: int = 0) -> None:
        """One of what runs goes on: it asks for its children and waits, or ends."""
        name = self.running[index % len(self.running)]
        run = self.runs[run_of(name)]
        depth = name.count("/") - 1
        self.leave(name)
        width = run.widths[depth] if depth < len(run.widths) else 0
        if width:
            self.open_children[name] = width
            run.waiting += 1
            for number in range(width):
                self.enqueue(f"{name}/{number}")
        else:
            self.end(name)
        self.most_waiting = max(
            self.most_waiting, sum(each.waiting > 0 for each in self.runs.values())
        )

    def end(self, name: str) -> None:
        run = self.runs[run_of(name)]
        self.turns.count_running(run.name, -1)
        parent = name.rpartition("/")[0]
        if parent in self.open_children:
            self.open_children[parent] -= 1
            if not self.open_children[parent]:
                del self.open_children[parent]
                run.waiting -= 1
                self.end(parent)

    def run(self) -> None:
        self.start()
        while self.running:
            self.step()
            self.start()


def run_of(name: str) -> str:
    return name.partition("/")[0]


def simulation(slots: int, *trees: Tree) -> Simulation:
    found = Simulation(slots, Turns(slots))
    for tree in trees:
        found.add(tree)
    return found


def test_a_wide_run_leaves_slots_to_another() -> None:
    busy = simulation(4, Tree("wide", [10_000]))
    busy.start()
    busy.step()
    for _ in range(50):
        busy.start()
        busy.step()
    busy.add(Tree("late", [3]))
    begun = len(busy.order)
    for _ in range(20):
        busy.start()
        busy.step()
    late = [name for name in busy.order[begun:] if name.startswith("late")]
    assert len(late) == 4
    # Its root is the next to begin, and its children do not wait for the wide one's.
    assert busy.order[begun] == "late/0"
    assert busy.order.index("late/0/2") < begun + 10


def test_with_one_slot_two_runs_take_turns() -> None:
    turns = simulation(1, Tree("a", [20]), Tree("b", [20]))
    turns.run()
    children = [run_of(name) for name in turns.order if name.count("/") == 2]
    assert "aaaa" not in "".join(children[:30])
    assert "bbbb" not in "".join(children[:30])


def test_many_short_runs_do_not_keep_a_wide_one_back() -> None:
    mixed = simulation(2, Tree("wide", [50]), *(Tree(f"s{n}", []) for n in range(1_000)))
    mixed.run()
    last = max(index for index, name in enumerate(mixed.order) if name.startswith("wide"))
    assert last < 250


def test_new_runs_wait_for_those_under_way_where_these_are_many() -> None:
    many = simulation(2, *(Tree(f"r{n}", [60]) for n in range(60)))
    many.run()
    assert len(many.order) == 60 * 61
    assert many.most_waiting <= 2 * RUNS_FOR_A_SLOT + 2


def test_a_run_holds_no_more_slots_than_it_asks_for() -> None:
    for limit, most in ((2, 2), (0, 4)):
        alone = simulation(4, Tree("r", [10, 2], limit=limit))
        alone.run()
        assert len(alone.order) == 31
        assert alone.runs["r"].most == most


@given(
    st.integers(1, 4),
    st.lists(
        st.tuples(st.lists(st.integers(0, 3), max_size=4), st.integers(0, 2)),
        min_size=1,
        max_size=8,
    ),
    st.lists(st.integers(0, 3), min_size=1, max_size=50),
)
def test_whatever_runs_there_are_each_action_begins_once(
    slots: int, shapes: list[tuple[list[int], int]], picks: list[int]
) -> None:
    """Also with one slot and a limit of one: a parent that waits holds none."""
    trees = [Tree(f"r{n}", widths, limit) for n, (widths, limit) in enumerate(shapes)]
    every = simulation(slots, *trees)
    step = 0
    every.start()
    while every.running:
        every.step(picks[step % len(picks)])
        step += 1
        every.start()
    assert len(every.order) == len(set(every.order)) == sum(actions(each.widths) for each in trees)
    assert not len(every.turns)
    assert not every.turns._runs
    for tree in trees:
        assert tree.limit == 0 or tree.most <= tree.limit


def actions(widths: list[int]) -> int:
    total = level = 1
    for width in widths:
        level *= width
        total += level
    return total
