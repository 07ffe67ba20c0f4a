"""The oracle, where others write in etcd and the run service refuses: truths, and planted lies."""

from __future__ import annotations

from dataclasses import replace

from etcd_actions import Phase
from tests.schedules import oracle
from tests.schedules.oracle import Evidence
from tests.schedules.readers import State
from tests.schedules.run_service import Landing
from tests.schedules.test_oracle import (
    FAILED,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    Plant,
    also_happened,
    also_told,
    also_wrote,
    both,
    done,
    fact,
    gone,
    honest,
    kinds,
    letter,
    letters,
    never_happened,
    read,
    streams,
    told,
)
from tests.support.table import table


def refused_record(name: str) -> Plant:
    """The run service refuses a record for good."""

    def plant(evidence: Evidence) -> None:
        evidence.landings = [
            each._replace(applied=False, accepted=False, rejected=True)
            if (each.what, each.name) == ("record", name)
            else each
            for each in evidence.landings
        ]

    return plant


def retried(evidence: Evidence) -> None:
    """The operator had everything told again."""
    evidence.retried = True


def forgotten(at: float) -> Plant:
    def plant(evidence: Evidence) -> None:
        evidence.forgotten = [at]

    return plant


def also_read(*states: State) -> Plant:
    return streams(lambda before: [*before, *states])


# Somebody puts an older status over the recorded SUCCEEDED of c3, which keeps the mark.
KEPT = also_happened(fact(18, "c3", SUCCEEDED, recorded=True)._replace(stamp="put-back"))
# The same, and the mark is gone with the ending.
REOPENED = also_happened(fact(18, "c3", RUNNING)._replace(stamp="put-back"))
# Then somebody writes another ending.
FAILS = also_happened(fact(21, "c3", FAILED)._replace(stamp="put-end"))
MARKED = also_happened(fact(23, "c3", FAILED, recorded=True)._replace(stamp="put-end"))
ENDED_AGAIN = both(
    FAILS, MARKED, also_told(told(22.0, "c3", FAILED)), also_read(read("c3", FAILED))
)


def waits(first: float, *, ends: bool = True) -> Plant:
    """A condition with a time-out of three seconds, which is over at 24."""
    enqueue = replace(done("enqueue", "w0", parent="a0", kind="condition", timeout="3"))
    steps = [
        also_wrote(replace(enqueue, first=first)),
        also_told(Landing("record", "r0", "w0")),
        also_happened(fact(20, "w0")._replace(kind="condition")),
    ]
    if ends:
        over = fact(24, "w0", Phase.TIMED_OUT)._replace(kind="condition")
        marked = over._replace(revision=26, seen=26.0, recorded=True, mark="TIMED_OUT/1 20 digest")
        steps += [
            also_happened(over, marked),
            also_told(told(25.0, "w0", Phase.TIMED_OUT)),
            also_read(read("w0", Phase.TIMED_OUT)),
        ]
    return both(*steps)


TRUTHS: dict[str, Plant] = {
    "an older status that keeps the mark": KEPT,
    "another ending over a recorded one": both(KEPT, ENDED_AGAIN),
    "one that goes on again, and ends": both(
        REOPENED,
        also_told(told(19.0, "c3", RUNNING)),
        also_read(read("c3", RUNNING)),
        ENDED_AGAIN,
    ),
    "a refused record with its letter": both(refused_record("c3"), letters(letter(14, "c3"))),
    "a record that is accepted later": both(
        refused_record("c3"),
        letters(letter(14, "c3"), letter(19, "c3")._replace(is_delete=True)),
        also_told(Landing("record", "r0", "c3")),
        retried,
    ),
    "rows that are lost behind the mark": forgotten(17.5),
    "a condition that ends in time": waits(21.0),
    "a condition that is made again without a time-out": both(
        waits(20.0, ends=False),
        also_happened(gone(21, "w0"), fact(23, "w0")._replace(kind="condition", uid="again")),
        also_told(told(22.0, "w0", Phase.ABORTED)),
        also_wrote(done("enqueue", "w0", parent="a0", kind="condition")),
    ),
}

MORE_LIES: dict[str, tuple[Plant, str]] = {
    "a mark that says another ending": (
        both(
            never_happened(17),
            also_happened(fact(17, "c3", SUCCEEDED, recorded=True)._replace(mark="FAILED/1 13 d")),
        ),
        "mark-wrong",
    ),
    "a mark of another incarnation": (
        both(
            never_happened(17),
            also_happened(
                fact(17, "c3", SUCCEEDED, recorded=True)._replace(mark="SUCCEEDED/1 12 d")
            ),
        ),
        "mark-wrong",
    ),
    "a mark that is written again": (
        also_happened(
            fact(18, "c3", SUCCEEDED, recorded=True)._replace(mark="SUCCEEDED/1 13 other")
        ),
        "marked-twice",
    ),
    "two endings by ourselves": (also_happened(fact(18, "c3", FAILED)), "ended-twice"),
    "an ending that goes on again by itself": (
        also_happened(fact(18, "c3", RUNNING)),
        "ended-twice",
    ),
    "another ending that nobody told": (both(KEPT, FAILS, MARKED), "marked-unaccepted"),
    "another ending that is not marked": (
        both(KEPT, FAILS, also_told(told(22.0, "c3", FAILED))),
        "unmarked",
    ),
    "another ending that nobody read": (
        both(KEPT, FAILS, MARKED, also_told(told(22.0, "c3", FAILED))),
        "read-last",
    ),
    "the first ending told behind the other one": (
        both(KEPT, ENDED_AGAIN, also_told(told(30.0, "c3", SUCCEEDED))),
        "told-two-endings",
    ),
    "the older status told": (
        both(KEPT, also_told(told(20.5, "c3", QUEUED)), ENDED_AGAIN),
        "told-after-ending",
    ),
    "the first ending is the last word": (
        both(KEPT, ENDED_AGAIN, also_told(told(22.5, "c3", SUCCEEDED))),
        "last-word",
    ),
    "a refused record without a letter": (refused_record("c3"), "letter-missing"),
    "a mark before the letter": (
        both(refused_record("c3"), letters(letter(18, "c3"))),
        "marked-unrecorded",
    ),
    "a mark behind a letter that went": (
        both(
            refused_record("c3"),
            letters(letter(14, "c3"), letter(16, "c3")._replace(is_delete=True)),
        ),
        "marked-unrecorded",
    ),
    "a letter about what was accepted": (letters(letter(14, "c3")), "letter-stays"),
    "a letter that the operator could not settle": (
        both(refused_record("c3"), letters(letter(14, "c3")), retried),
        "letter-stays",
    ),
    "an ending that is refused, and stays unmarked": (
        both(
            never_happened(17),
            also_told(
                told(16.5, "c3", SUCCEEDED)._replace(applied=False, accepted=False, rejected=True)
            ),
            retried,
        ),
        "unmarked",
    ),
    "a status without a row": (forgotten(15.0), "unrecorded"),
    "a condition that nobody ends": (waits(20.0, ends=False), "unended"),
    "a condition that ends too early": (waits(23.0), "ended-early"),
    "a condition that ends twice": (
        both(waits(20.0), also_happened(fact(27, "w0", SUCCEEDED)._replace(kind="condition"))),
        "ended-twice",
    ),
    "a child without an owner, whose parent is gone": (
        also_happened(fact(18, "c6", RUNNING)._replace(owner="", parent="c2")),
        "orphan",
    ),
}


@table("truth", TRUTHS)
def test_what_others_may_do_is_believed(truth: str) -> None:
    evidence = honest()
    TRUTHS[truth](evidence)
    assert oracle.always(evidence) + oracle.finally_(evidence) == []


@table("lie", MORE_LIES)
def test_each_lie_about_what_others_do_is_found(lie: str) -> None:
    plant, kind = MORE_LIES[lie]
    evidence = honest()
    plant(evidence)
    assert kind in kinds(evidence)


def test_an_object_without_a_uid_is_no_deletion() -> None:
    evidence = honest()
    also_happened(fact(18, "c4")._replace(uid=""))(evidence)
    assert "told-false" not in kinds(evidence)
    assert kinds(evidence) == {"read-last"}
