"""The index: revisions, facts, children and deletions of keys, in little memory."""

from __future__ import annotations

import tracemalloc
import uuid
from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcd_actions.codecs import json
from etcd_actions.etcd.api import KeyRange, KeyValue
from etcd_actions.follow import Index
from etcd_actions.model import ActionUpdate, Phase, Summary, build_action_update, summarize
from etcd_actions.watch import Change, ChangeKind
from tests.data.captured import PUTS

HEAD = b"/registry/flyte.org/taskactions/flyte/"


def facts(
    run: str, action: str, revision: int, *, parent: str = "a0", created: int = 1
) -> tuple[bytes, Summary]:
    """What is remembered of an action, and under which key."""
    summary = Summary(
        project="flytesnacks",
        domain="development",
        run=run,
        action=action,
        org="",
        parent=parent,
        uid=str(uuid.UUID(int=revision)),
        phase=Phase.RUNNING,
        attempts=1,
        cache_status=0,
        recorded=False,
        run_output_base=f"s3://bucket/metadata/flytesnacks/development/{run}",
        create_revision=created,
        revision=revision,
    )
    return HEAD + f"{run}-{action}".encode(), summary


def put(key: bytes, revision: int) -> Change:
    return Change(ChangeKind.MODIFIED, KeyValue(key, b"v", 1, revision, 2))


def delete(key: bytes, revision: int) -> Change:
    return Change.deletion(key, revision)


def deletion(key: bytes, revision: int) -> ActionUpdate:
    action = summarize(json.decode(PUTS[0].value), 1)
    return build_action_update(action, key=key, revision=revision, deleted=True)


def test_a_state_is_known_by_its_facts_and_its_revision() -> None:
    index = Index()
    key, summary = facts("r1", "a1", 7)
    assert (index.get(key), index.revision_of(key), list(index)) == (None, 0, [])
    index.put(key, summary)
    assert (index.get(key), index.revision_of(key), list(index)) == (summary, 7, [key])
    index.remove(key)
    assert (index.get(key), index.revision_of(key), len(index)) == (None, 0, 0)


def test_what_was_taken_and_is_not_handled_counts_as_delivered() -> None:
    """An unreadable value, and a deletion whose handling failed."""
    index = Index()
    key, summary = facts("r1", "a1", 7)
    index.note(put(b"/unreadable", 3))
    assert (index.revision_of(b"/unreadable"), list(index)) == (3, [b"/unreadable"])
    index.note(delete(b"/unreadable", 4))
    assert (index.revision_of(b"/unreadable"), list(index)) == (0, [])
    index.put(key, summary)
    index.note(put(key, 8))
    assert (index.revision_of(key), index.get(key)) == (8, summary)
    index.note(delete(key, 9))
    assert (index.revision_of(key), index.get(key), len(index)) == (0, summary, 0)
    index.redeliver_all()
    assert (index.revision_of(key), list(index)) == (0, [])
    index.remove(key)
    assert (index.revision_of(key), list(index)) == (0, [])


def test_after_a_new_start_all_is_to_come_again() -> None:
    index = Index()
    (one, of_one), (other, of_other) = facts("r1", "a1", 7), facts("r1", "a2", 8)
    index.put(one, of_one)
    index.put(other, of_other)
    index.redeliver_all()
    assert [index.revision_of(key) for key in (one, other)] == [-7, -8]
    assert index.is_redelivery(one)
    index.put(one, of_one)
    index.note(put(other, 9))
    assert [index.revision_of(key) for key in (one, other)] == [7, 9]
    assert not index.is_redelivery(one)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a1", "a2", "a3"]),
            st.sampled_from([None, Phase.QUEUED, Phase.RUNNING, Phase.SUCCEEDED]),
            st.sampled_from(["", "gpu"]),
            st.booleans(),
        ),
        max_size=12,
    )
)
def test_the_queued_actions_are_counted_by_pool(
    changes: list[tuple[str, Phase | None, str, bool]],
) -> None:
    """A phase of None is a deletion."""
    index = Index()
    queued: dict[bytes, str] = {}
    for revision, (action, phase, pool, condition) in enumerate(changes, 1):
        key, summary = facts("r1", action, revision)
        queued.pop(key, None)
        if phase is None:
            index.remove(key)
            continue
        index.put(
            key, msgspec.structs.replace(summary, phase=phase, pool=pool, condition=condition)
        )
        if phase is Phase.QUEUED and not condition:
            queued[key] = pool
    assert index.queued() == Counter(queued.values())


class _Watching:
    def revision_of(self, key: bytes) -> int:
        return 20

    def progress(self, keys: KeyRange) -> list[tuple[KeyRange, int]]:
        return [(keys, 20)]


def test_a_state_of_a_snapshot_is_expected_until_it_is_delivered() -> None:
    """The watch is at revision 20."""
    index = Index()
    key, summary = facts("r1", "a1", 25)
    update = build_action_update(summary, key=key, revision=25)
    keys = KeyRange.of_key(key)
    assert index.expect(update, 30)
    assert not index.expected_in(keys, 40)  # It is not watched.
    index.watched_by(_Watching())
    assert index.expect(update, 30)
    assert index.expected_in(keys, 24) == []
    assert index.expected_in(keys, 25) == [key]
    index.put(key, summary)
    assert index.expected_in(keys, 40) == []
    index.remove(key)
    # The watch has passed this snapshot, and the key does not exist.
    assert not index.expect(msgspec.structs.replace(update, revision=15), 19)


def test_the_newest_is_what_was_handled_last_of_all_that_came() -> None:
    index = Index()
    key, summary = facts("r1", "a1", 7)
    index.put(key, summary)
    assert not index.is_newest(key, 7, 10)
    index.watched_by(_Watching())
    assert index.is_newest(key, 7, 20)
    assert not index.is_newest(key, 7, 21)
    assert not index.is_newest(key, 6, 20)
    index.note(put(key, 8))
    assert not index.is_newest(key, 7, 20)


def test_deletions_stay_until_they_are_done_with() -> None:
    index = Index()
    assert index.oldest_deletion is None
    for key, revision in ((b"/a", 5), (b"/b", 3), (b"/a", 9)):
        index.add_deletion(deletion(key, revision))
    assert index.oldest_deletion == 3
    assert [(each.key, each.revision) for each in index.deletions()] == [
        (b"/a", 5),
        (b"/a", 9),
        (b"/b", 3),
    ]
    index.forget_deletion(b"/b", 3)
    assert index.oldest_deletion == 5
    index.forget_deletions(8)
    assert [each.revision for each in index.deletions()] == [9]
    index.forget_deletion(b"/a", 9)
    assert index.deletions() == []
    index.add_deletion(deletion(b"/a", 12), synthesised=True)
    index.add_deletion(deletion(b"/b", 11))
    assert index.oldest_deletion == 1, "it may have been any time before"
    index.forget_deletions(11)
    assert [each.key for each in index.deletions()] == [b"/a"], "by then it surely was"
    index.forget_deletions(12)
    assert index.deletions() == []
    assert index.oldest_deletion is None


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["r1", "r2"]),
            st.integers(0, 40),
            st.sampled_from(["", "a0", "a1", "r1", None]),
        ),
        max_size=120,
    )
)
def test_children_are_those_that_name_the_parent(
    steps: list[tuple[str, int, str | None]],
) -> None:
    """Whatever comes, goes, or changes its parent; in the order in which they came or not."""
    index = Index()
    parents: dict[bytes, bytes] = {}
    for revision, (run, number, parent) in enumerate(steps, 1):
        key, summary = facts(run, f"a{number}", revision, parent=parent or "")
        if parent is None:
            index.remove(key)
            parents.pop(key, None)
            continue
        index.put(key, summary)
        name = "a0" if parent in ("a0", run) else parent
        parents[key] = HEAD + f"{run}-{name}".encode() if parent else b""
    for parent_key in {*parents.values(), HEAD + b"r1-a9"} - {b""}:
        children = {key for key, of in parents.items() if of == parent_key}
        assert set(index.children(parent_key)) == children
    assert set(index) == set(parents)
    for key in parents:
        index.remove(key)
    assert index._groups == {}
    assert index._packing._numbers == {}


@pytest.mark.parametrize(
    ("actions", "runs"),
    [
        pytest.param(1, 6_000, id="runs of one action"),
        pytest.param(10, 2_000, id="runs of ten", marks=pytest.mark.slow),
        pytest.param(10_000, 2, id="runs of ten thousand", marks=pytest.mark.slow),
    ],
)
def test_a_key_takes_less_than_250_bytes(actions: int, runs: int) -> None:
    """With its share of everything that the index has, for runs of any size."""
    index = Index()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for run in range(runs):
            for number in range(actions):
                name = f"r{run:06}k2m9p4q"
                parent = "" if not number else "a0" if number % 5 else f"a{number - 1}"
                index.put(*facts(name, f"a{number}", run * actions + number + 1, parent=parent))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(index) == runs * actions
    assert taken / len(index) < 250
