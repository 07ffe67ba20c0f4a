"""The oracle finds each kind of fault in a recording that was good before."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from etcd_actions.codecs import json
from etcd_actions.etcd.api import KeyValue
from etcd_actions.model import LABEL_TERMINAL_STATUS_RECORDED, build_action_update
from etcd_actions.record.recorder import TerminalState
from etcd_actions.watch import Change, ChangeKind
from tests.codecs.labels import add_label
from tests.support import oracle
from tests.support.load import make_action, with_annotation
from tests.support.oracle import Entry, Skipped
from tests.support.recording import Told
from tests.support.table import table

A, B = b"/p/a", b"/p/b"

HISTORY = [
    Entry(A, 2, 2, 1, b"1"),
    Entry(B, 3, 3, 1, b"1"),
    Entry(A, 4, 2, 2, b"2"),
    Entry(A, 5, 0, 0, b""),
    Entry(A, 6, 6, 1, b"3"),
    Entry(B, 7, 0, 0, b""),
    Entry(A, 8, 6, 2, b"4"),
]


def change(entry: Entry) -> Change:
    kind = ChangeKind.MODIFIED
    if entry.version <= 1:
        kind = ChangeKind.ADDED if entry.version else ChangeKind.DELETED
    return Change(
        kind,
        KeyValue(
            entry.key, entry.value or b"", entry.create_revision, entry.mod_revision, entry.version
        ),
    )


def replaced(change: Change, **fields: object) -> Change:
    return change.with_value(msgspec.structs.replace(change.kv, **fields))


def gone(key: bytes, revision: int) -> Change:
    return Change.deletion(key, revision, synthesised=True)


def kinds(problems: list[str]) -> set[str]:
    return {problem.partition(":")[0] for problem in problems}


GOOD = [change(entry) for entry in HISTORY]


def test_a_faithful_recording_has_no_problem() -> None:
    """Everything once and in order is what the oracle wants."""
    assert oracle.delivery_problems(GOOD, HISTORY) == []


def test_keys_may_be_interleaved_differently() -> None:
    """The order between keys is no promise."""
    by_key = sorted(GOOD, key=lambda each: (each.key, each.mod_revision))
    assert oracle.delivery_problems(by_key, HISTORY) == []


@table(
    ("mutate", "expected"),
    [
        pytest.param(lambda c: c[:2] + c[3:], "missing", id="a change is left out"),
        pytest.param(lambda c: c[:5] + c[6:], "final", id="the last delete is left out"),
        pytest.param(lambda c: c[:-1], "final", id="the last state is left out"),
        pytest.param(lambda c: c[:3] + c[4:], "incarnation", id="the delete between is left out"),
        pytest.param(lambda c: [c[0], c[0], *c[1:]], "order", id="twice"),
        pytest.param(lambda c: [c[2], c[1], c[0], *c[3:]], "order", id="swapped"),
        pytest.param(
            lambda c: [replaced(c[0], value=b"x"), *c[1:]],
            "invented",
            id="another value",
        ),
        pytest.param(
            lambda c: [replaced(c[0], version=9), *c[1:]],
            "invented",
            id="another version",
        ),
        pytest.param(lambda c: [*c, replaced(c[0], key=b"/p/c")], "invented", id="another key"),
        pytest.param(lambda c: [*c, gone(A, 9)], "synthesised", id="a living key is deleted"),
        pytest.param(lambda c: [*c, gone(B, 9)], "synthesised", id="deleted again"),
        pytest.param(lambda c: [], "final", id="nothing"),
    ],
)
def test_a_broken_recording_is_found(
    mutate: Callable[[list[Change]], list[Change]], expected: str
) -> None:
    """Each mutation of the good recording is named for what it is."""
    assert expected in kinds(oracle.delivery_problems(mutate(list(GOOD)), HISTORY))


def test_skipped_history_may_be_replaced_by_a_list() -> None:
    """Within a skipped stretch a synthesised delete and the state at its end will do."""
    given = [GOOD[0], GOOD[1], gone(A, 5), gone(B, 8), GOOD[6]]
    assert oracle.delivery_problems(given, HISTORY, skipped=[Skipped(3, 8)]) == []


def test_a_key_may_live_and_die_within_a_skipped_stretch() -> None:
    """What was never given out needs no delete."""
    history = [*HISTORY, Entry(b"/p/c", 9, 9, 1, b""), Entry(b"/p/c", 10, 0, 0, b"")]
    assert oracle.delivery_problems(GOOD, history, skipped=[Skipped(8, 11)]) == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param([GOOD[0], GOOD[1], gone(B, 8), GOOD[6]], "incarnation", id="no delete of a"),
        pytest.param([GOOD[0], GOOD[1], gone(A, 5), GOOD[6]], "final", id="no delete of b"),
        pytest.param([GOOD[0], GOOD[1], gone(A, 5), gone(B, 8)], "missing", id="no state at end"),
        pytest.param(
            [GOOD[0], GOOD[1], gone(A, 4), gone(B, 8), GOOD[6]], "synthesised", id="too early"
        ),
        pytest.param([GOOD[0], gone(A, 5), gone(B, 8), GOOD[6]], "missing", id="before it"),
    ],
)
def test_a_broken_recording_of_skipped_history_is_found(given: list[Change], expected: str) -> None:
    """A list excuses what is left out, and nothing else."""
    problems = oracle.delivery_problems(given, HISTORY, skipped=[Skipped(3, 8)])
    assert expected in kinds(problems)


ACTION = make_action(b"/p/", "r1", "a1")
ENDED = ACTION.states[5]
MARKED = add_label(json, ENDED, LABEL_TERMINAL_STATUS_RECORDED, "true")
EARLY = add_label(json, ACTION.states[4], LABEL_TERMINAL_STATUS_RECORDED, "true")


def put(revision: int, value: bytes, version: int) -> Entry:
    return Entry(ACTION.key, revision, 10, version, value)


def told(revision: int, value: bytes, at: int) -> Told:
    update = build_action_update(json.decode(value), key=ACTION.key, revision=revision)
    return Told(ACTION.key, revision, TerminalState.of(update), is_deleted=False, at=at)


MARK_HISTORY = [put(10, ACTION.states[4], 1), put(12, ENDED, 2), put(14, MARKED, 3)]
MARK_TOLD = [told(10, ACTION.states[4], 11), told(12, ENDED, 13)]


def test_one_mark_after_its_acceptance_is_right() -> None:
    """A terminal state that was accepted and then marked once has no problem."""
    assert oracle.mark_problems(MARK_HISTORY, MARK_TOLD) == []


def test_another_incarnation_needs_a_mark_of_its_own() -> None:
    """After a delete the count begins anew."""
    again = [entry._replace(mod_revision=entry.mod_revision + 10) for entry in MARK_HISTORY]
    history = [*MARK_HISTORY, Entry(ACTION.key, 15, 0, 0, b""), *again]
    assert oracle.mark_problems(history, MARK_TOLD) == []
    assert kinds(oracle.mark_problems(history[:-1], MARK_TOLD)) == {"unmarked"}


@table(
    ("history", "accepted", "expected"),
    [
        pytest.param(MARK_HISTORY[:2], MARK_TOLD, "unmarked", id="no mark"),
        pytest.param(MARK_HISTORY, MARK_TOLD[:1], "unaccepted", id="the ending was not accepted"),
        pytest.param(MARK_HISTORY, [told(12, ENDED, 15)], "unaccepted", id="accepted afterwards"),
        pytest.param(
            [MARK_HISTORY[0], put(14, EARLY, 2)],
            MARK_TOLD,
            "early",
            id="not over",
        ),
        pytest.param(
            [*MARK_HISTORY, put(15, ENDED, 4), put(16, MARKED, 5)], MARK_TOLD, "twice", id="twice"
        ),
        pytest.param([*MARK_HISTORY, put(15, ENDED, 4)], MARK_TOLD, "lost", id="taken away"),
        pytest.param(
            [*MARK_HISTORY[:2], put(14, with_annotation(MARKED, "x", "y"), 3)],
            MARK_TOLD,
            "damage",
            id="an edit with the mark",
        ),
        pytest.param(
            [put(11, with_annotation(ENDED, "x", "y"), 1), put(14, MARKED, 2)],
            MARK_TOLD,
            "damage",
            id="an edit lost by the mark",
        ),
    ],
)
def test_a_wrong_mark_is_found(history: list[Entry], accepted: list[Told], expected: str) -> None:
    """Each way of marking wrongly is named for what it is."""
    assert expected in kinds(oracle.mark_problems(history, accepted))


def test_marks_may_be_missing_while_they_wait() -> None:
    """In the middle of an outage an unmarked ending is no fault."""
    assert oracle.mark_problems(MARK_HISTORY[:2], MARK_TOLD, whole=False) == []


def test_telling_backwards_is_found() -> None:
    """The run service may hear the same again, never something older."""
    assert oracle.told_problems([*MARK_TOLD, MARK_TOLD[-1]]) == []
    assert kinds(oracle.told_problems(MARK_TOLD[::-1])) == {"order"}


UPDATES = [
    build_action_update(json.decode(entry.value), key=entry.key, revision=entry.mod_revision)
    for entry in MARK_HISTORY
]


def test_a_subscriber_may_miss_states_but_not_the_last() -> None:
    """Conflation leaves states out; order, truth and the last state stay."""
    keys = [ACTION.key]
    assert oracle.subscriber_problems(UPDATES, MARK_HISTORY, keys) == []
    assert oracle.subscriber_problems(UPDATES[1:], MARK_HISTORY, keys) == []
    assert kinds(oracle.subscriber_problems(UPDATES[:2], MARK_HISTORY, keys)) == {"final"}
    assert kinds(oracle.subscriber_problems([], MARK_HISTORY, keys)) == {"final"}
    assert kinds(oracle.subscriber_problems([*UPDATES[1:], UPDATES[0]], MARK_HISTORY, keys)) == {
        "order",
        "final",
    }
    other = msgspec.structs.replace(UPDATES[0], revision=11)
    assert kinds(oracle.subscriber_problems([other, *UPDATES[1:]], MARK_HISTORY, keys)) == {
        "invented"
    }
