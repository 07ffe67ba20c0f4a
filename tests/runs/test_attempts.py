"""Attempts as they are read from objects: ours, Flyte's, and broken ones; no etcd."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.etcd.api import KeyValue
from etcd_actions.model import ErrorState, Phase
from etcd_actions.model.conditions import FOLLOWERS, rfc3339, write_phase
from etcd_actions.model.earlier_attempts import MOST_TOGETHER, earlier_attempts, note_earlier
from etcd_actions.model.names import ANNOTATION_ATTEMPTS
from etcd_actions.runs.attempts import MOST_ATTEMPTS, attempts
from etcd_actions.runs.run_record import ActionHistory, Attempt, Failure
from tests.support.table import table

BEGIN = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)


def tree_of() -> dict[str, Any]:
    return {
        "apiVersion": "flyte.org/v1",
        "kind": "TaskAction",
        "metadata": {"name": "r1-a0", "namespace": "flyte", "uid": "u"},
        "spec": {
            "project": "p",
            "domain": "d",
            "runName": "r1",
            "actionName": "a0",
            "runOutputBase": "/base",
        },
        "status": {},
    }


def stored(tree: dict[str, Any]) -> StoredAction:
    value = json.dumps(tree).encode()
    return StoredAction.of(KeyValue(b"/k/flyte/r1-a0", value, 5, 9, 2))


def report(
    tree: dict[str, Any], attempt: int, phase: Phase, second: int, error: ErrorState | None = None
) -> None:
    """As `put_status` writes it."""
    now = BEGIN + timedelta(seconds=second)
    action = stored(tree)
    before = max(action.status.attempts, 1)
    if attempt > before:
        entries = len(action.status.phase_history)
        note_earlier(tree, before, error, entries=entries, ended=rfc3339(now))
        error = None
    write_phase(tree, phase, now=now, attempts=attempt, error=error)


def shown(found: tuple[Attempt, ...]) -> list[tuple[int, str, list[str]]]:
    return [
        (each.number, Phase(each.phase).name, [Phase(one.phase).name for one in each.transitions])
        for each in found
    ]


def test_each_attempt_has_its_phases_its_error_and_its_outputs() -> None:
    tree = tree_of()
    report(tree, 1, Phase.QUEUED, 0)
    report(tree, 1, Phase.RUNNING, 1)
    report(tree, 2, Phase.QUEUED, 3, ErrorState(code="E1", kind="USER", message="one"))
    report(tree, 3, Phase.QUEUED, 4, ErrorState(code="E2", kind="SYSTEM", message="two"))
    report(tree, 3, Phase.RUNNING, 5)
    report(tree, 3, Phase.FAILED, 6, ErrorState(code="E3", kind="USER", message="three"))
    found = attempts(stored(tree))
    assert shown(found) == [
        (1, "FAILED", ["QUEUED", "RUNNING", "FAILED"]),
        (2, "FAILED", ["QUEUED", "FAILED"]),
        (3, "FAILED", ["QUEUED", "RUNNING", "FAILED"]),
    ]
    assert [each.failure for each in found] == [
        Failure("E1", "USER", "one"),
        Failure("E2", "SYSTEM", "two"),
        Failure("E3", "USER", "three"),
    ]
    assert [each.has_log for each in found] == [True, False, True]
    assert [each.output_uri for each in found] == ["/base/a0/1", "/base/a0/2", "/base/a0/3"]
    first = found[0].transitions
    assert [(one.started - BEGIN).seconds for one in first] == [0, 1, 3]
    assert [one.ended and (one.ended - BEGIN).seconds for one in first] == [1, 3, None]


@given(data=st.data())
def test_whatever_is_reported_each_phase_is_of_its_own_attempt(data: st.DataObject) -> None:
    """Also where a later attempt begins with what could follow in the one before."""
    tree, told = tree_of(), {1: [Phase.QUEUED]}
    report(tree, 1, Phase.QUEUED, 0)
    for second in range(1, data.draw(st.integers(1, 12))):
        last = max(told)
        if data.draw(st.booleans()):
            phase = data.draw(st.sampled_from([Phase.QUEUED, Phase.INITIALIZING, Phase.RUNNING]))
            report(tree, last + 1, phase, second)
            told[last + 1] = [phase]
        else:
            before = told[last][-1]
            going = [each for each in FOLLOWERS[before] if not each.is_terminal]
            phase = data.draw(st.sampled_from(sorted(going)))
            report(tree, last, phase, second)
            if phase is not before:
                told[last].append(phase)
    found = attempts(stored(tree))
    assert [each.number for each in found] == sorted(told)
    for each in found:
        phases = [Phase(one.phase) for one in each.transitions]
        expected = [*told[each.number], *([Phase.FAILED] if each.number < max(told) else [])]
        assert phases == expected


def test_without_notes_an_attempt_ends_where_what_follows_cannot_be_of_it() -> None:
    """Flyte's executor writes no notes."""
    tree = tree_of()
    phases = ["Queued", "Executing", "RetryableFailure", "Queued", "Executing", "Completed"]
    tree["status"] = {
        "attempts": 2,
        "phaseHistory": [
            {"phase": phase, "occurredAt": rfc3339(BEGIN + timedelta(seconds=second))}
            for second, phase in enumerate(phases)
        ],
        "conditions": [{"type": "Succeeded", "status": "True", "reason": "Completed"}],
    }
    assert shown(attempts(stored(tree))) == [
        (1, "FAILED", ["QUEUED", "RUNNING", "FAILED"]),
        (2, "SUCCEEDED", ["QUEUED", "RUNNING", "SUCCEEDED"]),
    ]


def test_a_history_fills_in_what_the_object_does_not_say() -> None:
    tree = tree_of()
    report(tree, 1, Phase.QUEUED, 0)
    report(tree, 2, Phase.RUNNING, 1)
    kept = (Attempt(number=1, phase=6, failure=Failure("E", "USER", "m"), has_log=True),)
    found = attempts(stored(tree), ActionHistory(create_revision=5, attempts=kept))
    assert found[0].failure == Failure("E", "USER", "m")
    assert found[0].has_log
    other = attempts(stored(tree), ActionHistory(create_revision=4, attempts=kept))
    assert other[0].failure is None


@table(
    "text",
    [
        "",
        "[",
        "7",
        "[" * 100_000,
        '[{"attempt":1,"entries":-5}]',
        '[{"attempt":1,"entries":99}]',
        '[{"attempt":-7}]',
        '[{"attempt":9}]',
        '[{"attempt":1,"ended":"soon","message":"m"}]',
    ],
)
def test_notes_that_are_none_hurt_nothing(text: str) -> None:
    tree = tree_of()
    report(tree, 1, Phase.QUEUED, 0)
    report(tree, 2, Phase.RUNNING, 1)
    tree["metadata"]["annotations"][ANNOTATION_ATTEMPTS] = text
    found = attempts(stored(tree))
    assert [each.number for each in found] == [1, 2]
    assert found[-1].phase == Phase.RUNNING
    report(tree, 3, Phase.QUEUED, 2, ErrorState(code="E", kind="USER"))
    assert attempts(stored(tree))[1].failure == Failure("E", "USER", "")


def test_any_number_of_attempts_is_bounded() -> None:
    tree = tree_of()
    tree["status"] = {"attempts": 2**32 - 1}
    found = attempts(stored(tree))
    assert len(found) == MOST_ATTEMPTS
    assert found[-1].number == 2**32 - 1


def test_the_oldest_messages_make_room() -> None:
    tree = tree_of()
    for attempt in range(1, 300):
        error = ErrorState(code="E", kind="USER", message=f"{attempt} " + "x" * 5000)
        note_earlier(tree, attempt, error, entries=0, ended="")
    noted = tree["metadata"]["annotations"][ANNOTATION_ATTEMPTS]
    assert len(noted) <= MOST_TOGETHER + 1000
    last = earlier_attempts(stored(tree))[-1]
    assert (last.attempt, last.message[:5]) == (299, "299 x")
