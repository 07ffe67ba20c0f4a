"""The schedule against simple models: nothing is lost, nothing twice, and the order holds."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from etcd_actions import Phase
from etcd_actions._internal.keyed_heap import KeyedHeap
from etcd_actions.executor.scheduling.board import MOST_DEPTH, Board
from etcd_actions.executor.scheduling.schedule import Alarm, Due, Schedule
from tests.executor.test_board import NAMES, PARENTS, update

KEYS = st.sampled_from("abcdef")


@given(st.lists(st.tuples(KEYS, st.none() | st.integers(0, 5)), max_size=300))
def test_a_heap_is_a_sorted_dictionary(changes: list[tuple[str, int | None]]) -> None:
    heap: KeyedHeap[str, int] = KeyedHeap()
    model: dict[str, int] = {}
    for key, priority in changes:
        if priority is None:
            assert heap.remove(key) == (key in model)
            model.pop(key, None)
        else:
            heap.put(key, priority)
            model[key] = priority
        assert len(heap) == len(model)
        assert (key in heap) == (key in model)
        first = heap.first()
        assert (first is None) == (not model)
        if first is not None:
            assert model[first[0]] == first[1] == min(model.values())
    # What was moved or removed is not kept for ever.
    assert len(heap._heap) <= 2 * len(model) + 64 + 1


class Scheduling(RuleBasedStateMachine):
    """Actions come, get parents, are delayed, begin and end; the model is a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.board = Board()
        self.schedule = Schedule()
        self.revision = 0
        self.now = 0.0
        # Where each action is, and until when it is delayed.
        self.places: dict[str, str] = {}
        self.until: dict[str, float] = {}
        self.depths: dict[str, int] = {}

    def tell(self, name: str, phase: Phase) -> bool:
        self.revision += 1
        news = self.board.note(update(name, self.revision, phase))
        for moved in self.board.moved():
            self.schedule.reorder(moved, self.board.order(moved))
        return news

    @rule(name=st.sampled_from(NAMES))
    def comes(self, name: str) -> None:
        key = f"r1-{name}"
        assert self.tell(name, Phase.QUEUED)
        if key not in self.depths:
            parent = f"r1-{PARENTS[name]}"
            self.depths[key] = self.depths[parent] + 1 if parent in self.depths else 0
            self.sink(name)
        if key not in self.places:
            self.schedule.ready(key, self.board.order(key))
            self.places[key] = "ready"

    def sink(self, name: str) -> None:
        for child, parent in PARENTS.items():
            if parent == name and f"r1-{child}" in self.depths:
                self.depths[f"r1-{child}"] = self.depths[f"r1-{name}"] + 1
                self.sink(child)

    @rule(name=st.sampled_from(NAMES))
    def is_over(self, name: str) -> None:
        key = f"r1-{name}"
        assert self.tell(name, Phase.SUCCEEDED) == (key in self.depths)
        self.schedule.drop(key)
        self.places.pop(key, None)
        self.until.pop(key, None)
        self.depths.pop(key, None)

    @precondition(lambda self: self.schedule.first() is not None)
    @rule()
    def begins(self) -> None:
        name = self.schedule.first()
        assert name is not None
        ready = [each for each, place in self.places.items() if place == "ready"]
        assert name == min(
            ready,
            key=lambda each: (-self.depths[each], NAMES.index(each.removeprefix("r1-"))),
        )
        self.schedule.begin(name)
        self.places[name] = "attended"

    @rule(data=st.data(), seconds=st.integers(0, 5), wakes=st.booleans())
    def is_delayed(self, data: st.DataObject, seconds: int, wakes: bool) -> None:
        names = [each for each, place in self.places.items() if place != "elsewhere"]
        if names:
            name = data.draw(st.sampled_from(sorted(names)))
            self.schedule.delay(name, self.now + seconds, wakes=wakes)
            self.places[name] = "delayed"
            self.until[name] = self.now + seconds
            assert self.schedule.keeps_waiting(name) is not wakes

    @rule(data=st.data())
    def goes_elsewhere(self, data: st.DataObject) -> None:
        if self.places:
            name = data.draw(st.sampled_from(sorted(self.places)))
            self.schedule.elsewhere(name)
            self.places[name] = "elsewhere"
            self.until.pop(name, None)

    @rule()
    def comes_back(self) -> None:
        elsewhere = {each for each, place in self.places.items() if place == "elsewhere"}
        assert set(self.schedule.keep_elsewhere(set())) == elsewhere
        for name in elsewhere:
            self.schedule.examine(name)
            self.places[name] = "unexamined"

    @rule()
    def is_examined(self) -> None:
        for name in self.schedule.unexamined():
            assert self.places[name] == "unexamined"
            self.schedule.ready(name, self.board.order(name))
            self.places[name] = "ready"

    @rule(seconds=st.integers(0, 3))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds
        due: list[Alarm] = []
        while (alarm := self.schedule.take_due(self.now)) is not None:
            due.append(alarm)
        expected = {
            name
            for name, place in self.places.items()
            if place == "delayed" and self.until[name] <= self.now
        }
        assert {alarm.name for alarm in due} == expected
        assert len(due) == len(expected)
        assert all(alarm.due is Due.AGAIN for alarm in due)
        for name in expected:
            self.schedule.ready(name, self.board.order(name))
            self.places[name] = "ready"

    @invariant()
    def each_is_where_it_should_be(self) -> None:
        for name, place in self.places.items():
            assert self.schedule.is_ready(name) == (place == "ready")
            assert self.schedule.is_elsewhere(name) == (place == "elsewhere")
            assert self.schedule.is_unexamined(name) == (place == "unexamined")
        waiting = [place for place in self.places.values() if place != "attended"]
        assert len(self.schedule) == len(waiting)
        for name, depth in self.depths.items():
            known = self.board.get(name)
            assert known is not None
            assert known.depth == depth


TestScheduling = Scheduling.TestCase


@given(
    st.lists(st.tuples(st.sampled_from(["hold", "release", "come", "end"]), st.sampled_from(NAMES)))
)
def test_slots_are_counted_as_they_would_be_one_by_one(steps: list[tuple[str, str]]) -> None:
    board, held = Board(), set()
    for revision, (step, name) in enumerate(steps, start=1):
        key = f"r1-{name}"
        if step == "hold":
            board.hold(key)
            held.add(key)
        elif step == "release":
            board.release(key)
            held.discard(key)
        else:
            board.note(update(name, revision, Phase.QUEUED if step == "come" else Phase.FAILED))
        assert board.waiting == sum(board.is_waiting(each) for each in held)
        assert board.busy == len(held) - board.waiting


def chain(length: int) -> Iterable[tuple[str, str]]:
    for number in range(length):
        yield f"c{number}", f"c{number - 1}" if number else ""


def test_a_chain_that_comes_from_its_end_is_as_deep_as_counts() -> None:
    """Also one that is longer than the interpreter's stack."""
    board = Board()
    links = list(chain(2_000))
    for number, (name, parent) in enumerate(reversed(links), start=1):
        board.note(
            msgspec.structs.replace(
                update("a0", number), name=f"r1-{name}", parent=parent, uid=name
            )
        )
    depths = [board._open[f"r1-{name}"].depth for name, _ in links]
    assert depths == [min(number, MOST_DEPTH) for number in range(len(links))]


def test_parents_that_form_a_circle_do_no_harm() -> None:
    board = Board()
    for number, (name, parent) in enumerate([("x", "y"), ("y", "z"), ("z", "x"), ("s", "s")]):
        board.note(
            msgspec.structs.replace(
                update("a0", number + 1), name=f"r1-{name}", parent=parent, uid=name
            )
        )
    assert not board.is_waiting("r1-s")
    for name in ("x", "y", "z", "s"):
        assert board._open[f"r1-{name}"].depth <= MOST_DEPTH
        board.note(
            msgspec.structs.replace(
                update("a0", 100, Phase.FAILED), name=f"r1-{name}", parent="", uid=name
            )
        )
    assert len(board) == 0
