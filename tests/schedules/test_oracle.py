"""The oracle: it finds nothing in a true story, and each lie that is planted in one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from etcd_actions import Phase
from tests.schedules import oracle
from tests.schedules.facts import Fact
from tests.schedules.letters import LetterFact
from tests.schedules.oracle import Evidence
from tests.schedules.plan import Step
from tests.schedules.processes import Life
from tests.schedules.readers import Reader, State
from tests.schedules.run_service import Landing
from tests.schedules.writers import Write
from tests.support.table import table

RUNNING, QUEUED, UNSPECIFIED = Phase.RUNNING, Phase.QUEUED, Phase.UNSPECIFIED
SUCCEEDED, FAILED, ABORTED = Phase.SUCCEEDED, Phase.FAILED, Phase.ABORTED


def fact(
    revision: int,
    name: str,
    phase: Phase = UNSPECIFIED,
    attempt: int = 1,
    *,
    recorded: bool = False,
    uid: str = "",
) -> Fact:
    return Fact(
        f"/p/ns/r0-{name}".encode(),
        revision,
        float(revision),
        uid or f"uid-{name}",
        "r0",
        name,
        "" if name == "a0" else "a0",
        "" if name == "a0" else "uid-a0",
        phase,
        attempt,
        recorded,
        f"s3://out/{name}/{attempt}",
        mark=f"{phase.name}/{attempt} {CREATED.get(name, revision)} digest" if recorded else "",
    )


CREATED = {"a0": 2, "c1": 4, "c2": 10, "c3": 13}


def gone(revision: int, name: str) -> Fact:
    return Fact(f"/p/ns/r0-{name}".encode(), revision, float(revision))


def told(at: float, name: str, phase: Phase, attempt: int = 1) -> Landing:
    return Landing("status", "r0", name, phase, attempt, at, at)


def read(name: str, phase: Phase, attempt: int = 1) -> State:
    return State("r0", name, phase, f"s3://out/{name}/{attempt}")


def done(what: str, name: str, **args: str) -> Write:
    return Write(Step(0.0, what, {"run": "r0", "name": name, **args}), "done", sent=100.0)


def honest() -> Evidence:
    """A root that runs, a child that fails after a second attempt, one that is aborted by a
    deletion, and one that succeeds; a reader who sees most of it over two streams."""
    return Evidence(
        facts=[
            fact(2, "a0"),
            fact(3, "a0", RUNNING),
            fact(4, "c1"),
            fact(5, "c1", RUNNING),
            fact(6, "c1", RUNNING, 2),
            fact(7, "c1", FAILED, 2),
            fact(9, "c1", FAILED, 2, recorded=True),
            fact(10, "c2"),
            fact(11, "c2", RUNNING),
            gone(12, "c2"),
            fact(13, "c3"),
            fact(14, "c3", QUEUED),
            fact(15, "c3", SUCCEEDED),
            fact(17, "c3", SUCCEEDED, recorded=True),
        ],
        landings=[
            *(Landing("record", "r0", name) for name in ("a0", "c1", "c2", "c3", "c4")),
            told(3.5, "a0", RUNNING),
            told(5.5, "c1", RUNNING),
            told(6.5, "c1", RUNNING, 2),
            told(8.0, "c1", FAILED, 2),
            told(11.5, "c2", RUNNING),
            told(12.5, "c2", ABORTED),
            told(14.5, "c3", QUEUED),
            told(16.0, "c3", SUCCEEDED),
        ],
        writes=[
            done("enqueue", "c1", parent="a0", kind="task"),
            done("status", "c1", phase="failed", attempt="2"),
            done("abort", "c3"),
            done("delete", "c2"),
        ],
        readers=[
            Reader(
                "0",
                "r0",
                "a0",
                "grpc:0",
                [
                    [read("a0", UNSPECIFIED), read("a0", RUNNING), read("c1", RUNNING)],
                    [
                        read("a0", RUNNING),
                        read("c1", RUNNING),
                        read("c1", FAILED, 2),
                        read("c1", FAILED, 2),
                        read("c2", RUNNING),
                        read("c2", ABORTED),
                        read("c3", SUCCEEDED),
                    ],
                ],
                is_there=True,
            )
        ],
    )


def kinds(evidence: Evidence) -> set[str]:
    return {each.kind for each in oracle.always(evidence) + oracle.finally_(evidence)}


def test_a_true_story_is_believed() -> None:
    evidence = honest()
    assert oracle.always(evidence) == []
    assert oracle.finally_(evidence) == []


Plant = Callable[[Evidence], None]


def also_told(*landings: Landing) -> Plant:
    def plant(evidence: Evidence) -> None:
        evidence.landings = [*evidence.landings, *landings]

    return plant


def not_told(name: str, phase: Phase) -> Plant:
    def plant(evidence: Evidence) -> None:
        evidence.landings = [
            each for each in evidence.landings if (each.name, each.phase) != (name, phase)
        ]

    return plant


def also_happened(*facts: Fact) -> Plant:
    def plant(evidence: Evidence) -> None:
        evidence.facts = sorted((*evidence.facts, *facts), key=lambda each: each.revision)

    return plant


def never_happened(*revisions: int) -> Plant:
    def plant(evidence: Evidence) -> None:
        evidence.facts = [each for each in evidence.facts if each.revision not in revisions]

    return plant


def also_wrote(write: Write) -> Plant:
    def plant(evidence: Evidence) -> None:
        evidence.writes = [*evidence.writes, write]

    return plant


def streams(change: Callable[[list[State]], list[State]]) -> Plant:
    """Change the last stream."""

    def plant(evidence: Evidence) -> None:
        (reader,) = evidence.readers
        reader.streams[-1] = change(reader.streams[-1])

    return plant


def both(*plants: Plant) -> Plant:
    def plant(evidence: Evidence) -> None:
        for each in plants:
            each(evidence)

    return plant


def refused(write: Write, detail: str, faults: str = "") -> Write:
    return replace(write, outcome="refused", detail=detail, faults=faults)


def letters(*facts: LetterFact) -> Plant:
    def plant(evidence: Evidence) -> None:
        evidence.letters = [*evidence.letters, *facts]

    return plant


def letter(revision: int, name: str, what: str = "record") -> LetterFact:
    return LetterFact(f"/letters/{name}/{what}".encode(), revision, ("r0", name), what)


LIES: dict[str, tuple[Plant, str]] = {
    "a status without a record": (not_told("c1", UNSPECIFIED), "unrecorded"),
    "running told long after an ending": (
        both(also_told(told(20.0, "c1", RUNNING, 2), told(20.1, "c1", FAILED, 2))),
        "told-after-ending",
    ),
    "running is the last word, though late": (
        also_told(told(9.0, "c1", RUNNING, 2)._replace(arrived=7.9)),
        "last-word",
    ),
    "running in the database": (also_told(told(8.5, "c1", RUNNING, 2)), "database"),
    "an older attempt told after the ending": (
        both(also_told(told(20.0, "c1", RUNNING, 1), told(20.1, "c1", FAILED, 2))),
        "told-after-ending",
    ),
    "aborted told of what succeeded": (also_told(told(18.0, "c3", ABORTED)), "told-false"),
    "another ending told": (
        both(also_happened(fact(18, "c3", FAILED)), also_told(told(19.0, "c3", FAILED))),
        "told-two-endings",
    ),
    "a phase that never was": (also_told(told(4.5, "c3", FAILED)), "told-false"),
    "an attempt that never was": (also_told(told(3.6, "a0", RUNNING, 3)), "told-false"),
    "an action that never was": (also_told(told(3.6, "c9", RUNNING)), "told-false"),
    "an ending that was not told": (not_told("c3", SUCCEEDED), "last-word"),
    "a deletion that was not told": (not_told("c2", ABORTED), "last-word"),
    "a state that was not told": (not_told("a0", RUNNING), "last-word"),
    "a mark that nobody accepted": (not_told("c3", SUCCEEDED), "marked-unaccepted"),
    "a mark before its acceptance": (
        both(not_told("c3", SUCCEEDED), also_told(told(18.0, "c3", SUCCEEDED))),
        "marked-unaccepted",
    ),
    "a mark of what goes on": (
        also_happened(fact(18, "a0", RUNNING, recorded=True)),
        "marked-early",
    ),
    "a mark that goes": (also_happened(fact(18, "c3", SUCCEEDED)), "mark-lost"),
    "two marks": (
        also_happened(fact(18, "c3", SUCCEEDED), fact(19, "c3", SUCCEEDED, recorded=True)),
        "marked-twice",
    ),
    "a mark that ends the action": (never_happened(15), "mark-changes"),
    "an ending without its mark": (never_happened(17), "unmarked"),
    "a lost enqueue": (also_wrote(done("enqueue", "c7", parent="a0", kind="task")), "write-lost"),
    "a lost status": (
        also_wrote(done("status", "c3", phase="running", attempt="1")),
        "write-lost",
    ),
    "a lost signal": (also_wrote(done("signal", "c1", value="true")), "write-lost"),
    "a lost abort": (also_wrote(done("abort", "a0")), "abort-lost"),
    "an answer of a bug": (
        also_wrote(refused(done("abort", "c1"), "internal: x", "internal: x")),
        "answer",
    ),
    "a denied action": (also_wrote(refused(done("abort", "c1"), "not_found: no c1")), "denied"),
    "an orphan": (
        both(also_happened(gone(18, "a0")), also_told(told(19.0, "a0", ABORTED))),
        "orphan",
    ),
    "a child below what is aborted": (
        both(
            also_happened(
                fact(18, "c4"),
                fact(19, "a0", ABORTED),
                fact(21, "a0", ABORTED, recorded=True),
            ),
            also_told(told(20.0, "a0", ABORTED)),
        ),
        "goes-on",
    ),
    "an object that is to be deleted and stays": (
        both(
            also_happened(
                fact(18, "c3", SUCCEEDED, recorded=True)._replace(deleting=True),
            ),
        ),
        "held",
    ),
    "states out of order": (streams(lambda states: states[::-1]), "read-order"),
    "a state that never was read": (
        streams(lambda states: [*states, read("c3", FAILED)]),
        "read-order",
    ),
    "a stream that begins with something older": (
        streams(lambda states: [read("a0", UNSPECIFIED), *states]),
        "read-order",
    ),
    "the last state not read": (streams(lambda states: states[:-1]), "read-last"),
    "the ending not read": (
        streams(lambda states: [each for each in states if each.phase is not FAILED]),
        "read-last",
    ),
    "a deletion not read": (
        streams(lambda states: [each for each in states if each.phase is not ABORTED]),
        "read-last",
    ),
}


@table("lie", LIES)
def test_each_lie_is_found(lie: str) -> None:
    plant, kind = LIES[lie]
    evidence = honest()
    plant(evidence)
    assert kind in kinds(evidence)


def test_a_call_that_was_given_up_may_land_late_when_the_ending_is_told_again() -> None:
    evidence = honest()
    late = told(8.5, "c1", RUNNING, 2)
    also_told(late, told(9.5, "c1", FAILED, 2))(evidence)
    assert kinds(evidence) == set()


def test_what_is_rejected_for_ever_may_stay_unmarked() -> None:
    evidence = honest()
    never_happened(17)(evidence)
    evidence.landings = [
        each._replace(applied=False, accepted=False, rejected=True)
        if (each.name, each.phase) == ("c3", SUCCEEDED)
        else each
        for each in evidence.landings
    ]
    letters(letter(16, "c3", "status"))(evidence)
    assert kinds(evidence) == set()


def test_a_deletion_that_was_compacted_away_need_not_be_told() -> None:
    evidence = honest()
    not_told("c2", ABORTED)(evidence)
    evidence.compactions = [12]
    assert kinds(evidence) == set()


def test_an_ending_that_was_compacted_away_with_its_deletion_may_be_told_as_aborted() -> None:
    evidence = honest()
    also_happened(fact(18, "c4"), fact(19, "c4", FAILED), gone(20, "c4"))(evidence)
    also_told(told(22.0, "c4", ABORTED))(evidence)
    assert "told-false" in kinds(evidence)
    evidence.compactions = [20]
    assert kinds(evidence) == set()


def test_a_violation_says_what_and_where() -> None:
    evidence = honest()
    also_told(told(18.0, "c3", ABORTED))(evidence)
    (found,) = [each for each in oracle.always(evidence) if each.kind == "told-false"]
    assert str(found).startswith("told-false: r0/c3: ABORTED/1@18.000(accepted) was never so; ")
    assert "13:UNSPECIFIED/1 14:QUEUED/1 15:SUCCEEDED/1 17:SUCCEEDED/1+mark" in found.text


def life(tmp_path: Path, log: str, **more: object) -> Life:
    path = tmp_path / "process-0-0.log"
    path.write_text(log)
    return replace(Life(0, 1, path, 0.0, how="term", code=0), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("log", "more", "problem"),
    [
        ('{"event":"stopped","level":"info"}\n', {}, ""),
        ("", {"how": "kill", "code": -9}, ""),
        ("", {"code": -15, "in_time": False}, ""),
        ("", {"code": -15}, "exit: "),
        ("", {"code": 1}, "exit: "),
        ("", {"how": "", "code": 0}, "died: "),
        ("", {"how": "", "code": -6}, "died: "),
        ("Traceback (most recent call last):\n", {}, "trace: "),
        ('{"event":"unit_failed","level":"error"}\n', {}, "unexpected: "),
        ('{"event":"value_undecodable","level":"error"}\n', {}, "unexpected: "),
        ('{"event":"handler_failed","level":"warning","error":"NoSpace: x"}\n', {}, ""),
        (
            '{"event":"handler_failed","level":"warning","error":"KeyError: 1"}\n',
            {},
            "unexpected: ",
        ),
    ],
)
def test_how_a_process_lived(
    tmp_path: Path, log: str, more: dict[str, object], problem: str
) -> None:
    problems = life(tmp_path, log, **more).problems()
    assert [each.startswith(problem) for each in problems] == ([True] if problem else [])
