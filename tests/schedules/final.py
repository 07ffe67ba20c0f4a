"""What must hold in the end: all is told, marked and read, and nothing is left over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from etcd_actions import Phase
from tests.schedules.evidence import (
    Action,
    Evidence,
    Violation,
    after_delete,
    identity,
    tale,
    where_of,
    words,
)
from tests.schedules.facts import Fact, Story, is_foreign, lives
from tests.schedules.readers import State
from tests.schedules.run_service import Landing

_BEFORE_RUNNING = (
    Phase.UNSPECIFIED,
    Phase.QUEUED,
    Phase.WAITING_FOR_RESOURCES,
    Phase.INITIALIZING,
)
_GOES_BACK_FROM = (Phase.FAILED, Phase.TIMED_OUT)


def _final(evidence: Evidence) -> dict[bytes, Fact]:
    return {key: story[-1] for key, story in evidence.stories().items()}


def _unmarked(evidence: Evidence) -> list[Violation]:
    """What is over is marked, unless the run service will never accept it."""
    found = []
    told = evidence.told()
    for story in evidence.stories().values():
        last = story[-1]
        landings = told.get(identity(story), [])
        if last.is_over and not last.recorded and not _is_dead(evidence, landings, last):
            text = f"{tale(story)}, {words(landings)}"
            found.append(Violation("unmarked", where_of(story), text))
    return found


def _is_dead(evidence: Evidence, landings: Iterable[Landing], last: Fact) -> bool:
    """Whether the run service refused a state for good, until an operator has it told again."""
    if evidence.retried:
        return False
    answers = [each for each in landings if each.phase is last.phase]
    return bool(answers) and any(each.rejected for each in answers)


def _expected(evidence: Evidence, story: Story) -> set[Phase]:
    """What the run service may have been told last; empty where it need not know anything."""
    last = story[-1]
    if last.is_delete:
        before = next((fact for fact in reversed(story) if not fact.is_delete), None)
        return set() if before is None else after_delete(evidence, before, last)
    if last.phase is Phase.UNSPECIFIED:
        # It is recorded, and no status of it is told; of one before it, one was.
        return {Phase.RUNNING, Phase.UNSPECIFIED} if len(lives(story)) == 1 else set()
    expected: set[Phase] = {last.phase}
    if last.phase in _BEFORE_RUNNING:
        expected.add(Phase.RUNNING)
    if not last.is_over and is_foreign(story):
        # Who remembers its ending waits for the next one.
        expected |= {fact.phase for fact in story if fact.is_over}
    return expected


def _nobody_saw(evidence: Evidence, story: Story) -> bool:
    """Whether a deletion may have been compacted away while nobody watched."""
    return story[-1].is_delete and any(
        revision >= story[-1].revision for revision in evidence.compactions
    )


def _last_word(evidence: Evidence) -> list[Violation]:
    """The last that landed of an action agrees with its state in etcd."""
    found = []
    told = evidence.told()
    for story in evidence.stories().values():
        if identity(story)[0] == "":
            continue
        landings = told.get(identity(story), [])
        landed = [each for each in landings if each.applied]
        last = landed[-1].phase if landed else Phase.UNSPECIFIED
        expected = _expected(evidence, story)
        if not expected or last in expected or _nobody_saw(evidence, story):
            continue
        if not evidence.retried and any(each.rejected for each in landings):
            continue
        text = (
            f"the run service heard {last.name} last, and it is "
            f"{'/'.join(each.name for each in sorted(expected))}; "
            f"{tale(story)}, {words(landings)}"
        )
        found.append(Violation("last-word", where_of(story), text))
    return found


def _database(evidence: Evidence) -> list[Violation]:
    """Flyte's database, whose guard lets an ending go back, holds the state in etcd."""
    found = []
    told = evidence.told()
    for story in evidence.stories().values():
        landings = told.get(identity(story), [])
        if len(lives(story)) != 1 or is_foreign(story):
            # The guard keeps an ABORTED, whatever somebody else makes of it.
            continue
        if not evidence.retried and any(each.rejected for each in landings):
            continue
        lost = max(evidence.forgotten, default=0.0)
        landings = [each for each in landings if each.landed > lost]
        if lost and not landings:
            # Of what was marked before it lost its rows nobody tells anything.
            continue
        row = Phase.UNSPECIFIED
        for each in landings:
            if each.applied and (row <= each.phase or row in _GOES_BACK_FROM):
                row = each.phase
        ending = story[-1] if story[-1].is_over else None
        if ending is not None and ending.recorded and row is not ending.phase:
            text = f"the database has {row.name}; {tale(story)}, {words(landings)}"
            found.append(Violation("database", where_of(story), text))
    return found


def _below(evidence: Evidence) -> list[Violation]:
    """Nothing goes on below what was aborted or is gone."""
    found = []
    told = evidence.told()
    final = {key: fact for key, fact in _final(evidence).items() if not fact.is_delete}
    uids = {fact.uid for fact in final.values()}
    by_action = {(fact.run, fact.name): fact for fact in final.values()}
    for fact in final.values():
        if not fact.parent:
            continue
        where = f"{fact.run}/{fact.name}"
        parent = by_action.get((fact.run, fact.parent))
        gone = parent is None or (fact.owner and fact.owner not in uids)
        if gone and not _is_dead(evidence, told.get((fact.run, fact.name), ()), fact):
            text = f"its parent {fact.parent} is gone; {fact}"
            found.append(Violation("orphan", where, text))
        if parent is not None and parent.phase is Phase.ABORTED and not fact.is_over:
            text = f"goes on below {fact.parent}, which is aborted: {fact} below {parent}"
            found.append(Violation("goes-on", where, text))
    return found


def _aborts(evidence: Evidence) -> list[Violation]:
    """An abort that was acknowledged has ended the action."""
    found = []
    by_action = {identity(story): story for story in evidence.stories().values()}
    # Made again, or opened again by somebody who writes past all methods.
    past = ("delete", "orphan", "put-back")
    again = {write.action for write in evidence.writes if write.step.what in past}
    for write in evidence.writes:
        if write.step.what != "abort" or write.outcome != "done" or write.action in again:
            continue
        story = by_action.get(write.action, ())
        if story and not story[-1].is_over and not story[-1].is_delete:
            text = f"{write.step} was acknowledged, and {tale(story)}"
            found.append(Violation("abort-lost", "/".join(write.action), text))
    return found


def _held(evidence: Evidence) -> list[Violation]:
    """What was to be deleted is gone: nobody but us held it."""
    found = []
    told = evidence.told()
    for story in evidence.stories().values():
        last = story[-1]
        if last.deleting and not _is_dead(evidence, told.get(identity(story), []), last):
            text = f"its deletion was asked for, and it is there; {tale(story)}"
            found.append(Violation("held", where_of(story), text))
    return found


def _last_read(evidence: Evidence) -> list[Violation]:
    """A reader that is there knows the last state of all that it subscribed to."""
    found = []
    every = evidence.stories()
    for reader in evidence.readers:
        if not reader.is_there:
            continue
        newest: Mapping[Action, State] = {state.action: state for state in reader.streams[-1]}
        for story in every.values():
            fact = next((each for each in reversed(story) if not each.is_delete), None)
            if fact is None or fact.run != reader.run:
                continue
            if reader.name not in (fact.name, fact.parent):
                continue
            got = newest.get((fact.run, fact.name))
            problem = _unread(evidence, story, fact, got)
            if problem:
                where = f"reader {reader.number} ({reader.via}) of {reader.run}/{reader.name}"
                stream = " ".join(map(str, reader.streams[-1]))
                text = f"{fact.name}: {problem}; {tale(story)}, read [{stream}]"
                found.append(Violation("read-last", where, text))
    return found


def _unread(evidence: Evidence, story: Story, fact: Fact, got: State | None) -> str:
    """What is wrong with the last that a reader got of a key whose last state is ``fact``."""
    if story[-1].is_delete:
        if got is None or got.phase in after_delete(evidence, fact, story[-1]):
            return ""
        return f"it is deleted, and was told last as {got.phase.name}"
    if fact.kind == "condition" and not fact.is_over:
        # Readers are told the end of a condition only.
        return "" if got is None or got.phase.is_terminal else "an open condition was told"
    if got is None:
        return "it was never told"
    if (got.phase, got.output) != (fact.phase, fact.output):
        return f"it was told last as {got.phase.name} {got.output}"
    return ""


def _timed_out(evidence: Evidence) -> list[Violation]:
    """A condition with a time-out has ended, whoever ran when its time was over."""
    found = []
    by_action = {identity(story): story for story in evidence.stories().values()}
    # What was deleted may have been made again, without a time-out.
    made = {
        write.action: write
        for write in evidence.writes
        if write.step.what == "enqueue" and write.outcome != "refused"
    }
    for write in made.values():
        story = by_action.get(write.action, ())
        goes_on = bool(story) and not story[-1].is_delete and not story[-1].is_over
        if "timeout" in write.step.args and goes_on:
            text = f"{write.step} goes on; {tale(story)}"
            found.append(Violation("unended", "/".join(write.action), text))
    return found


CHECKS = (_unmarked, _last_word, _database, _below, _aborts, _held, _last_read, _timed_out)
