"""The counts of a run, by the index."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from etcd_actions.follow import Index
from etcd_actions.follow.run_counts import RunCount
from etcd_actions.model import Phase
from tests.follow.test_index import HEAD, facts

TRACES = b"/etcd-actions/registry/flyte.org/taskactions/traces/flyte/"
HEADS = (HEAD.rstrip(b"/"), TRACES.rstrip(b"/"))
NAMES = [f"a{number}" for number in range(8)]


def put(
    index: Index, run: str, name: str, parent: str, phase: Phase, *, head: bytes = HEAD
) -> None:
    key, summary = facts(run, name, 1, parent=parent)
    key = head + key.removeprefix(HEAD)
    index.put(key, msgspec.structs.replace(summary, phase=phase))


def counted(index: Index, count: RunCount, most: int = 2_000) -> tuple[int, int]:
    while (counts := count.counts) is None:
        count.read_more(index, most)
    return counts


@given(
    before=st.lists(st.tuples(st.sampled_from(NAMES), st.booleans())),
    during=st.lists(
        st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from((True, False, None))))
    ),
)
def test_it_is_right_whatever_changes_while_it_is_read(
    before: list[tuple[str, bool]], during: list[list[tuple[str, bool | None]]]
) -> None:
    index, ended = Index(), dict[str, bool]()

    def change(name: str, has_ended: bool | None) -> None:
        if has_ended is None:
            ended.pop(name, None)
            index.remove(HEAD + f"r1-{name}".encode())
            return
        ended[name] = has_ended
        parent = "" if name == "a0" else f"a{int(name[1:]) // 2}"
        put(index, "r1", name, parent, Phase.SUCCEEDED if has_ended else Phase.RUNNING)

    for name in NAMES:
        change(name, False)
    for name, has_ended in before:
        change(name, has_ended)
    count = index.count("r1", HEADS)
    for changes in during:
        count.read_more(index, 1)
        for name, now in changes:
            change(name, now)
    assert counted(index, count, 1) == (sum(ended.values()), len(ended))
    index.stop_counting(count)
    assert index._run_counts == {}


def test_traces_count_and_other_runs_do_not() -> None:
    index = Index()
    put(index, "r1", "a0", "", Phase.RUNNING)
    put(index, "r1", "c1", "a0", Phase.SUCCEEDED)
    put(index, "r1", "t1", "c1", Phase.SUCCEEDED, head=TRACES)
    put(index, "r2", "a0", "", Phase.RUNNING)
    # Its key begins like those of r1.
    put(index, "r1-a0", "x", "", Phase.SUCCEEDED)
    count = index.count("r1", HEADS)
    assert counted(index, count) == (2, 3)
    put(index, "r1", "t2", "a0", Phase.SUCCEEDED, head=TRACES)
    put(index, "r2", "c1", "a0", Phase.SUCCEEDED)
    assert count.counts == (3, 4)
    # The same key, now of another run.
    put(index, "r1-c1", "a0", "", Phase.RUNNING)
    put(index, "r1", "c1-a0", "a0", Phase.RUNNING)
    assert count.counts == (3, 5)
    put(index, "r1-c1", "a0", "", Phase.RUNNING)
    assert count.counts == (3, 4)


def test_a_circle_of_parents_ends() -> None:
    index = Index()
    put(index, "r1", "a0", "a1", Phase.RUNNING)
    put(index, "r1", "a1", "a0", Phase.RUNNING)
    assert counted(index, index.count("r1", HEADS)) == (0, 2)


def test_readers_share_a_count_until_the_last_one_stops() -> None:
    index = Index()
    put(index, "r1", "a0", "", Phase.RUNNING)
    first, second = index.count("r1", HEADS), index.count("r1", HEADS)
    assert first is second
    index.stop_counting(first)
    assert counted(index, second) == (0, 1)
    put(index, "r1", "a0", "", Phase.FAILED)
    assert second.counts == (1, 1)
    index.stop_counting(second)
    put(index, "r1", "a1", "a0", Phase.FAILED)
    assert second.counts == (1, 1)
