"""Phases as conditions, history and labels: what the executor would have written."""

from __future__ import annotations

import copy
import itertools
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest

from etcd_actions.codecs import json
from etcd_actions.errors import DecodeError
from etcd_actions.model import ErrorState, Phase
from etcd_actions.model.conditions import FOLLOWERS, MAX_HISTORY, MAX_MESSAGE, rfc3339, write_phase
from etcd_actions.model.phase import CONDITION_WAITING, phase_of
from etcd_actions.model.taskaction import ActionObject
from tests.data.captured import PUTS, Event
from tests.support.table import table

T0 = datetime(2026, 11, 23, 16, 14, 3, tzinfo=UTC)
T1 = T0 + timedelta(minutes=1)
PHASES = [phase for phase in Phase if phase is not Phase.UNSPECIFIED]
ENDS = [phase for phase in PHASES if phase.is_terminal]


def blank() -> dict[str, Any]:
    """A created object that nothing was told of."""
    event = next(put for put in PUTS if put.version == 1 and put.key.endswith(b"-a1"))
    return json.decode_tree(event.value)


def phase_in(tree: dict[str, Any]) -> Phase:
    return json.decode(json.encode_tree(tree)).phase


def told(tree: dict[str, Any]) -> list[str]:
    """The conditions as ``Type=Status/Reason since time``."""
    return [
        f"{each['type']}={each['status']}/{each['reason']} since {each['lastTransitionTime'][14:]}"
        for each in tree["status"]["conditions"]
    ]


def history(tree: dict[str, Any]) -> list[str]:
    return [each["phase"] for each in tree["status"]["phaseHistory"]]


# --- against the captured history --------------------------------------------------------


def _turns() -> list[tuple[Event, Event]]:
    """Consecutive states of one object between which its conditions changed."""
    pairs = []
    last: dict[bytes, Event] = {}
    for put in PUTS:
        before = last.get(put.key)
        if before is not None and put.version > 1:
            is_, was = json.decode_tree(put.value), json.decode_tree(before.value)
            if is_.get("status", {}).get("conditions") != was.get("status", {}).get("conditions"):
                pairs.append((before, put))
        last[put.key] = put
    return pairs


def test_there_are_turns_of_every_kind() -> None:
    phases = {json.decode(after.value).phase for _, after in _turns()}
    assert phases == {
        Phase.QUEUED,
        Phase.INITIALIZING,
        Phase.RUNNING,
        Phase.PAUSED,
        Phase.SUCCEEDED,
        Phase.ABORTED,
    }


@table(("before", "after"), _turns(), ids=lambda event: event.id)
def test_it_is_what_the_executor_wrote(before: Event, after: Event) -> None:
    """Conditions and history to the byte, for every turn of the captured runs."""
    tree, wanted = json.decode_tree(before.value), json.decode_tree(after.value)["status"]
    seen = json.decode(after.value)
    (deciding,) = (each for each in seen.status.conditions if each.status == "True")
    write_phase(
        tree,
        seen.phase,
        now=datetime.fromisoformat(seen.status.phase_history[-1].occurred_at),
        reason=deciding.reason,
        message=None if seen.is_terminal else deciding.message,
    )
    assert tree["status"]["conditions"] == wanted["conditions"]
    assert tree["status"]["phaseHistory"] == wanted["phaseHistory"]


def test_the_end_labels_are_the_executors() -> None:
    """Written by the executor in a second write, here in one with the end."""
    labels = ("flyte.org/termination-status", "flyte.org/completed-time")
    ended = next(put for put in PUTS if labels[0].encode() in put.value)
    wanted = json.decode_tree(ended.value)
    end = wanted["status"]["conditions"][-1]["lastTransitionTime"]
    tree = blank()
    write_phase(tree, Phase.SUCCEEDED, now=datetime.fromisoformat(end))
    assert {label: tree["metadata"]["labels"][label] for label in labels} == {
        label: wanted["metadata"]["labels"][label] for label in labels
    }


# --- every phase ------------------------------------------------------------------------


@table("phase", PHASES, ids=lambda phase: phase.name)
def test_every_phase_reads_back(phase: Phase) -> None:
    tree = blank()
    assert write_phase(tree, phase, now=T0)
    assert phase_in(tree) is phase
    labels = tree["metadata"]["labels"]
    assert ("flyte.org/termination-status" in labels) == phase.is_terminal


@table(("before", "phase"), [*itertools.product(PHASES, PHASES)], ids=lambda phase: phase.name)
def test_every_phase_reads_back_after_every_other(before: Phase, phase: Phase) -> None:
    """Also where it may not follow: a forced write must not leave two truths."""
    tree = blank()
    write_phase(tree, before, now=T0)
    first = copy.deepcopy(tree)
    changed = write_phase(tree, phase, now=T1)
    assert phase_in(tree) is phase
    assert changed == (phase is not before)
    assert (tree == first) == (not changed)
    true = [each["type"] for each in tree["status"]["conditions"] if each["status"] == "True"]
    assert len(true) == (2 if phase is Phase.WAITING_FOR_RESOURCES else 1)


@table(
    ("phase", "conditions"),
    [
        (Phase.QUEUED, ["Progressing=True/Queued"]),
        (
            Phase.WAITING_FOR_RESOURCES,
            [
                "etcd-actions.io/WaitingForResources=True/WaitingForResources",
                "Progressing=True/Queued",
            ],
        ),
        (Phase.INITIALIZING, ["Progressing=True/Initializing"]),
        (Phase.RUNNING, ["Progressing=True/Executing"]),
        (Phase.PAUSED, ["Progressing=True/Paused"]),
        (Phase.SUCCEEDED, ["Progressing=False/Completed", "Succeeded=True/Completed"]),
        (Phase.RECOVERED, ["Progressing=False/Recovered", "Succeeded=True/Recovered"]),
        (Phase.FAILED, ["Progressing=False/PermanentFailure", "Failed=True/PermanentFailure"]),
        (Phase.TIMED_OUT, ["Progressing=False/TimedOut", "Failed=True/TimedOut"]),
        (Phase.ABORTED, ["Progressing=False/Aborted", "Failed=True/Aborted"]),
    ],
    ids=lambda value: value.name if isinstance(value, Phase) else "",
)
def test_the_table(phase: Phase, conditions: list[str]) -> None:
    """The table of docs/status.md, phase by phase."""
    tree = blank()
    write_phase(tree, phase, now=T0)
    assert told(tree) == [f"{each} since 14:03Z" for each in conditions]


@table(
    ("phase", "flytes"),
    [
        (Phase.WAITING_FOR_RESOURCES, Phase.QUEUED),
        (Phase.RECOVERED, Phase.SUCCEEDED),
        (Phase.ABORTED, Phase.FAILED),
        *((p, p) for p in PHASES if p.value not in (2, 7, 10)),
    ],
    ids=lambda phase: phase.name,
)
def test_flytes_own_readers_read_sensibly(phase: Phase, flytes: Phase) -> None:
    """GetPhaseFromConditions, spelt out: what it knows nothing of, it must get nearly right."""
    reasons = {"Queued": 1, "Initializing": 3, "Executing": 4, "Paused": 9}
    tree = blank()
    write_phase(tree, phase, now=T0)
    read = Phase.UNSPECIFIED
    for each in tree["status"]["conditions"]:
        if each["status"] != "True" or read:
            continue
        if each["type"] == "Succeeded":
            read = Phase.SUCCEEDED
        elif each["type"] == "Failed":
            read = Phase.TIMED_OUT if each["reason"] == "TimedOut" else Phase.FAILED
        elif each["type"] == "Progressing":
            read = Phase(reasons.get(each["reason"], 0))
    assert read is flytes


# --- how conditions change --------------------------------------------------------------


def test_the_time_of_a_condition_moves_with_its_status_only() -> None:
    """As Kubernetes' meta.SetStatusCondition: in place, keyed by type."""
    tree = blank()
    write_phase(tree, Phase.QUEUED, now=T0)
    write_phase(tree, Phase.RUNNING, now=T1, message="Started")
    assert told(tree) == ["Progressing=True/Executing since 14:03Z"]
    assert tree["status"]["conditions"][0]["message"] == "Started"
    write_phase(tree, Phase.FAILED, now=T1)
    assert told(tree) == [
        "Progressing=False/PermanentFailure since 15:03Z",
        "Failed=True/PermanentFailure since 15:03Z",
    ]


def test_waiting_ends_where_the_executor_goes_on() -> None:
    """Though it leaves our condition where it is."""
    tree = blank()
    write_phase(tree, Phase.WAITING_FOR_RESOURCES, now=T0)
    waiting, progressing = tree["status"]["conditions"]
    assert waiting["type"] == CONDITION_WAITING
    progressing["reason"] = "Initializing"
    assert phase_in(tree) is Phase.INITIALIZING
    write_phase(tree, Phase.RUNNING, now=T1)
    assert told(tree) == ["Progressing=True/Executing since 14:03Z"]


def test_waiting_is_told_again_where_the_order_was_lost() -> None:
    tree = blank()
    write_phase(tree, Phase.WAITING_FOR_RESOURCES, now=T0)
    tree["status"]["conditions"].reverse()
    assert phase_in(tree) is Phase.QUEUED
    assert write_phase(tree, Phase.WAITING_FOR_RESOURCES, now=T1)
    assert phase_in(tree) is Phase.WAITING_FOR_RESOURCES


def test_what_is_not_named_stays() -> None:
    tree = blank()
    tree["spec"]["future"] = {"a": [1, None]}
    tree["metadata"]["labels"]["team"] = "blue"
    tree["status"] = {
        "pluginState": "AAEC",
        "future": True,
        "conditions": [
            {"type": "Ready", "status": "True", "reason": "R", "message": "", "x": 1},
            {
                "type": "Progressing",
                "status": "True",
                "reason": "Queued",
                "message": "",
                "lastTransitionTime": rfc3339(T0),
                "observedGeneration": 7,
            },
        ],
    }
    before = copy.deepcopy(tree)
    write_phase(tree, Phase.SUCCEEDED, now=T1)
    assert tree["spec"] == before["spec"]
    assert tree["metadata"]["managedFields"] == before["metadata"]["managedFields"]
    assert tree["metadata"]["labels"]["team"] == "blue"
    assert tree["status"].keys() - {"conditions", "phaseHistory"} == {"pluginState", "future"}
    ready, progressing, _ = tree["status"]["conditions"]
    assert ready == before["status"]["conditions"][0]
    assert progressing["observedGeneration"] == 7
    assert progressing["lastTransitionTime"] == rfc3339(T1)


def test_a_second_condition_of_a_type_goes() -> None:
    """The list is a map by type: with two of one, a reader would believe either."""
    tree = blank()
    write_phase(tree, Phase.RUNNING, now=T0)
    tree["status"]["conditions"] *= 2
    write_phase(tree, Phase.SUCCEEDED, now=T1)
    assert [each["type"] for each in tree["status"]["conditions"]] == ["Progressing", "Succeeded"]


def test_null_is_absent() -> None:
    tree = blank()
    tree["status"] = None
    tree["metadata"]["labels"] = None
    write_phase(tree, Phase.FAILED, now=T0, attempts=1)
    assert phase_in(tree) is Phase.FAILED
    assert tree["metadata"]["labels"]["flyte.org/completed-time"] == "2026-11-23.16-14"


def test_the_history_is_deduped_within_an_attempt() -> None:
    tree = blank()
    write_phase(tree, Phase.QUEUED, now=T0, attempts=1)
    write_phase(tree, Phase.QUEUED, now=T1, message="again")
    assert history(tree) == ["Queued"]
    write_phase(tree, Phase.QUEUED, now=T1, attempts=2)
    write_phase(tree, Phase.WAITING_FOR_RESOURCES, now=T1)
    write_phase(tree, Phase.RUNNING, now=T1)
    assert history(tree) == ["Queued", "Queued", "WaitingForResources", "Executing"]
    assert tree["status"]["phaseHistory"][1] == {"phase": "Queued", "occurredAt": rfc3339(T1)}


def test_the_history_is_bounded() -> None:
    """Defect 14: an action that pauses for ever must not outgrow what etcd takes."""
    tree = blank()
    write_phase(tree, Phase.QUEUED, now=T0)
    for at in range(MAX_HISTORY + 5):
        write_phase(tree, (Phase.RUNNING, Phase.PAUSED)[at % 2], now=T1)
    assert len(tree["status"]["phaseHistory"]) == MAX_HISTORY
    assert history(tree)[:1] == ["Queued"]
    assert history(tree)[-2:] == ["Paused", "Executing"]


def test_attempts_and_cache_status_alone() -> None:
    tree = blank()
    assert write_phase(tree, Phase.UNSPECIFIED, now=T0, attempts=2, cache_status=3)
    assert tree["status"] == {"attempts": 2, "cacheStatus": 3}
    assert not write_phase(tree, Phase.UNSPECIFIED, now=T1, attempts=2, cache_status=3)
    assert write_phase(tree, Phase.UNSPECIFIED, now=T1, cache_status=0)
    assert tree["status"] == {"attempts": 2}


def test_nothing_to_say_leaves_no_status() -> None:
    tree = blank()
    assert not write_phase(tree, Phase.UNSPECIFIED, now=T0)
    assert tree == blank()


def test_an_error_goes_with_its_failure() -> None:
    error = ErrorState(code="OOM", kind="USER", message="killed")
    tree = blank()
    write_phase(tree, Phase.RUNNING, now=T0, attempts=1)
    write_phase(tree, Phase.FAILED, now=T1, error=error)
    assert tree["status"]["errorState"] == {"code": "OOM", "kind": "USER", "message": "killed"}
    assert {each["message"] for each in tree["status"]["conditions"]} == {"killed"}
    assert tree["status"]["phaseHistory"][-1]["message"] == "killed"
    same = copy.deepcopy(tree)
    assert not write_phase(tree, Phase.FAILED, now=T1 + timedelta(hours=1), error=error)
    assert not write_phase(tree, Phase.FAILED, now=T1 + timedelta(hours=1))
    assert tree == same
    write_phase(tree, Phase.QUEUED, now=T1, attempts=2)
    assert "errorState" not in tree["status"]


def test_a_phase_keeps_its_reason_and_message() -> None:
    tree = blank()
    write_phase(tree, Phase.SUCCEEDED, now=T0, reason="Signaled")
    assert not write_phase(tree, Phase.SUCCEEDED, now=T1)
    write_phase(tree, Phase.SUCCEEDED, now=T1, message="by hand")
    assert told(tree)[1] == "Succeeded=True/Signaled since 14:03Z"
    assert tree["status"]["conditions"][1]["message"] == "by hand"


def test_a_long_message_is_cut() -> None:
    """Rather a shorter reason than an ending that cannot be told."""
    tree = blank()
    write_phase(tree, Phase.FAILED, now=T0, message="x" * (MAX_MESSAGE + 1))
    assert {len(each["message"]) for each in tree["status"]["conditions"]} == {MAX_MESSAGE}


@table(
    ("phase", "reason", "problem"),
    [
        (Phase.FAILED, "TimedOut", "means TIMED_OUT, not FAILED"),
        (Phase.RUNNING, "Paused", "means PAUSED, not RUNNING"),
        (Phase.RUNNING, "Working", "means UNSPECIFIED, not RUNNING"),
        (Phase.SUCCEEDED, "Recovered", "means RECOVERED, not SUCCEEDED"),
        (Phase.FAILED, "no reason", "is not a valid reason of a condition"),
        (Phase.FAILED, "", "is not a valid reason of a condition"),
        (Phase.FAILED, "x" * 1025, "is not a valid reason of a condition"),
    ],
)
def test_a_reason_must_mean_the_phase(phase: Phase, reason: str, problem: str) -> None:
    tree = blank()
    with pytest.raises(ValueError, match=problem):
        write_phase(tree, phase, now=T0, reason=reason)
    assert tree == blank()


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        (("status",), "status: not an object"),
        (("status", "conditions"), "status.conditions: not a list of objects"),
        (("status", "phaseHistory"), "status.phaseHistory: not a list of objects"),
        (("metadata", "labels"), "metadata.labels: not an object"),
    ],
)
def test_another_shape_is_told(path: tuple[str, ...], problem: str) -> None:
    tree = blank()
    tree.setdefault("status", {})
    place = tree
    for field in path[:-1]:
        place = place[field]
    place[path[-1]] = "text"
    with pytest.raises(DecodeError, match=problem):
        write_phase(tree, Phase.SUCCEEDED, now=T0)


# --- what may follow --------------------------------------------------------------------


def test_followers_know_every_phase() -> None:
    assert FOLLOWERS.keys() == set(Phase)
    assert all(FOLLOWERS[end] == {end} for end in ENDS)
    assert all(phase in FOLLOWERS[phase] for phase in PHASES)
    assert all(Phase.UNSPECIFIED not in after for after in FOLLOWERS.values())


def test_times_are_whole_seconds_of_utc() -> None:
    east = timezone(timedelta(hours=2))
    assert rfc3339(datetime(2026, 1, 1, 1, 0, 0, 999_999, tzinfo=east)) == "2025-12-31T23:00:00Z"


def test_the_view_takes_what_is_written() -> None:
    """All five texts that Flyte's schema demands of a condition, and both of an entry."""
    tree = blank()
    write_phase(tree, Phase.WAITING_FOR_RESOURCES, now=T0)
    for each in tree["status"]["conditions"]:
        assert each.keys() == {"type", "status", "reason", "message", "lastTransitionTime"}
    action = msgspec.convert(tree, ActionObject)
    assert phase_of(action.status.conditions) is Phase.WAITING_FOR_RESOURCES
    assert action.status.phase_history[0].phase == "WaitingForResources"
