"""Whether what was told, marked, answered and read agrees with etcd's own history.

Pure functions over lists. Each returns what is wrong, as violations whose kind is one fixed
word, so that the tests of the oracle can plant a lie and name what they expect.

What must hold in the end, once all is quiet, is separate from what must hold always: the first
is looked at again and again until it holds, or patience ends.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from etcd_actions import Phase
from tests.schedules.facts import Fact, Story, lives, stories
from tests.schedules.plan import PHASES
from tests.schedules.readers import Reader, State
from tests.schedules.run_service import Landing
from tests.schedules.writers import Write

_BEFORE_RUNNING = (
    Phase.UNSPECIFIED,
    Phase.QUEUED,
    Phase.WAITING_FOR_RESOURCES,
    Phase.INITIALIZING,
)
_GOES_BACK_FROM = (Phase.FAILED, Phase.TIMED_OUT)
Action = tuple[str, str]


class Violation(NamedTuple):
    """Something that must never be.

    Attributes:
        kind: One word.
        where: The action, reader or process.
        text: What was seen.
    """

    kind: str
    where: str
    text: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.kind}: {self.where}: {self.text}"


@dataclass
class Evidence:
    """All that the oracle looks at.

    Attributes:
        facts: What happened to the objects in etcd.
        landings: What reached the run service.
        writes: What callers wanted.
        readers: What subscribers were told.
        late: Seconds after which no call that was given up can land any more.
        compactions: When history was compacted, and up to which revision.
        markers: The actions whose aborts are under way or done, as the markers in etcd say.
    """

    facts: Sequence[Fact] = ()
    landings: Sequence[Landing] = ()
    writes: Sequence[Write] = ()
    readers: Sequence[Reader] = ()
    late: float = 3.0
    compactions: Sequence[int] = ()
    markers: frozenset[Action] = frozenset()
    _stories: dict[bytes, Story] = field(default_factory=dict)

    def told(self, what: str = "status") -> dict[Action, list[Landing]]:
        """What was applied, or answered, for each action, in order."""
        found: defaultdict[Action, list[Landing]] = defaultdict(list)
        for landing in self.landings:
            if landing.what == what:
                found[landing.action].append(landing)
        return found

    def stories(self) -> dict[bytes, Story]:
        """What happened to each key."""
        return stories(self.facts)


def always(evidence: Evidence) -> list[Violation]:
    """What is wrong, whenever it is looked at, with what has happened so far."""
    found: list[Violation] = []
    for check in (_truth, _records, _order, _marks, _writes, _reading):
        found += check(evidence)
    return found


def finally_(evidence: Evidence) -> list[Violation]:
    """What is wrong with the end; before all is quiet it may be only unfinished."""
    found: list[Violation] = []
    for check in (_unmarked, _last_word, _database, _below, _aborts, _held, _last_read):
        found += check(evidence)
    return found


def _identity(story: Story) -> Action:
    fact = next((each for each in story if not each.is_delete), None)
    return (fact.run, fact.name) if fact is not None else ("", story[0].key.decode())


def _where(story: Story) -> str:
    return "/".join(_identity(story))


def _tale(story: Iterable[Fact]) -> str:
    return "etcd [" + " ".join(map(str, story)) + "]"


def _words(landings: Iterable[Landing]) -> str:
    return "told [" + " ".join(map(str, landings)) + "]"


# What must hold always.


def _truth(evidence: Evidence) -> list[Violation]:
    """Nothing is told that never was in etcd."""
    found = []
    parents = {(fact.run, fact.parent) for fact in evidence.facts if fact.parent}
    told = evidence.told()
    by_action = {_identity(story): story for story in evidence.stories().values()}
    for action, landings in told.items():
        story = by_action.get(action, ())
        true = _true_states(evidence, story)
        if action in parents:
            true |= {(Phase.RUNNING, attempt) for _, attempt in true}
        for landing in landings:
            if landing.applied and (landing.phase, landing.attempt) not in true:
                text = f"{landing} was never so; {_tale(story)}, {_words(landings)}"
                found.append(Violation("told-false", "/".join(action), text))
    return found


def _true_states(evidence: Evidence, story: Story) -> set[tuple[Phase, int]]:
    """What may be said of it: its states, and what its deletions make of it."""
    true: set[tuple[Phase, int]] = set()
    before: Fact | None = None
    for fact in story:
        if not fact.is_delete:
            true.add((fact.phase, fact.attempt))
        elif before is not None:
            true |= {(phase, before.attempt) for phase in _after_delete(evidence, before, fact)}
        before = fact
    return true


def _after_delete(evidence: Evidence, before: Fact, deleted: Fact) -> set[Phase]:
    """What may be said of an action whose object was deleted.

    What was not over is ABORTED. What was over keeps its ending; where a compaction took both
    the ending and the deletion before anybody read them, nobody can know it.
    """
    if not before.is_over:
        return {Phase.ABORTED}
    lost = not before.recorded and any(each >= deleted.revision for each in evidence.compactions)
    return {before.phase, Phase.ABORTED} if lost else {before.phase}


def _records(evidence: Evidence) -> list[Violation]:
    """No status lands before the record: Flyte's database would change no row, and say nothing."""
    found = []
    recorded: set[Action] = set()
    for landing in evidence.landings:
        if landing.what == "record":
            # One that is rejected does not withhold the status.
            if landing.applied or landing.rejected:
                recorded.add(landing.action)
        elif landing.applied and landing.action not in recorded:
            text = f"{landing} landed before its record"
            found.append(Violation("unrecorded", "/".join(landing.action), text))
    return found


def _order(evidence: Evidence) -> list[Violation]:
    """After an ending was accepted nothing but a newer attempt is told, and no other ending.

    A call that was given up may land late, within its time; then the ending is told again.
    """
    found = []
    told = evidence.told()
    for story in evidence.stories().values():
        if len(lives(story)) != 1:
            # The run service cannot tell incarnations apart; their last word counts.
            continue
        landings = told.get(_identity(story), [])
        ending: Landing | None = None
        for landing in landings:
            if not landing.applied:
                continue
            if ending is None:
                if landing.phase.is_terminal and landing.accepted:
                    ending = landing
                continue
            same = landing.phase is ending.phase and landing.attempt == ending.attempt
            too_late = landing.arrived > ending.landed + evidence.late
            if landing.phase.is_terminal and not same:
                text = f"{landing} after {ending}; {_tale(story)}, {_words(landings)}"
                found.append(Violation("told-two-endings", _where(story), text))
            elif not landing.phase.is_terminal and too_late and landing.attempt <= ending.attempt:
                text = f"{landing} after {ending}; {_tale(story)}, {_words(landings)}"
                found.append(Violation("told-after-ending", _where(story), text))
    return found


def _marks(evidence: Evidence) -> list[Violation]:
    """An ending is marked once, after it was accepted, and the mark stays."""
    found = []
    told = evidence.told()
    for story in evidence.stories().values():
        landings = told.get(_identity(story), [])
        for life in lives(story):
            marks = 0
            before: Fact | None = None
            for fact in life:
                if fact.is_delete:
                    break
                was = before is not None and before.recorded
                tale = f"{fact}; {_tale(life)}, {_words(landings)}"
                if was and not fact.recorded:
                    found.append(Violation("mark-lost", _where(story), tale))
                if fact.recorded and not was:
                    marks += 1
                    if marks > 1:
                        found.append(Violation("marked-twice", _where(story), tale))
                    if not fact.is_over:
                        found.append(Violation("marked-early", _where(story), tale))
                    elif not _accepted_before(landings, fact):
                        found.append(Violation("marked-unaccepted", _where(story), tale))
                    if before is None or before.phase is not fact.phase:
                        found.append(Violation("mark-changes", _where(story), tale))
                before = fact
    return found


def _accepted_before(landings: Iterable[Landing], fact: Fact) -> bool:
    return any(
        each.accepted
        and each.phase is fact.phase
        and each.attempt == fact.attempt
        and each.landed <= fact.seen
        for each in landings
    )


def _writes(evidence: Evidence) -> list[Violation]:
    """What was acknowledged is in etcd's history, and nobody gets an answer of a bug."""
    found = []
    by_action = {_identity(story): story for story in evidence.stories().values()}
    for write in evidence.writes:
        story = by_action.get(write.action, ())
        where = "/".join(write.action)
        if write.faults:
            found.append(Violation("answer", where, f"{write.step} got {write.faults}"))
        if write.outcome == "done" and not _is_in(write, story):
            text = f"{write.step} was acknowledged, and is not in {_tale(story)}"
            found.append(Violation("write-lost", where, text))
        if _is_denied(write, story):
            text = f"{write.step} got {write.detail}; {_tale(story)}"
            found.append(Violation("denied", where, text))
    return found


def _is_in(write: Write, story: Story) -> bool:
    args = write.step.args
    match write.step.what:
        case "enqueue":
            return any(not fact.is_delete for fact in story)
        case "status":
            wanted = Phase(PHASES[args["phase"]]), int(args["attempt"])
            return any((fact.phase, fact.attempt) == wanted for fact in story)
        case "signal":
            return any(fact.phase is Phase.SUCCEEDED for fact in story)
        case "ask-deletion":
            return any(fact.deleting for fact in story)
        case "abort":
            return any(fact.is_over or fact.is_delete for fact in story)
        case _:
            # A deletion of what is not there deletes nothing.
            return True


def _is_denied(write: Write, story: Story) -> bool:
    """Whether somebody was told that an action is not there, which was there all the time."""
    denied = write.outcome == "refused" and write.detail.lower().startswith(("not_found", "notf"))
    there = bool(story) and story[0].seen < write.sent
    return denied and there and not any(fact.is_delete for fact in story)


def _reading(evidence: Evidence) -> list[Violation]:
    """What a reader was told of an action is what it was, in order, over all its streams."""
    found = []
    by_action = {_identity(story): story for story in evidence.stories().values()}
    for reader in evidence.readers:
        told: defaultdict[Action, list[State]] = defaultdict(list)
        for state in (state for stream in reader.streams for state in stream):
            told[state.action].append(state)
        for action, states in told.items():
            story = by_action.get(action, ())
            at = _first_out_of_order(states, _readable(evidence, story))
            if at is not None:
                seen = " ".join(map(str, states))
                where = f"reader {reader.number} ({reader.via}) of {reader.run}/{reader.name}"
                text = f"{states[at]} is number {at} of [{seen}]; {_tale(story)}"
                found.append(Violation("read-order", where, text))
    return found


def _readable(evidence: Evidence, story: Story) -> list[tuple[set[Phase], str]]:
    """The states that a reader can be told, in order."""
    states: list[tuple[set[Phase], str]] = []
    before: Fact | None = None
    for fact in story:
        if not fact.is_delete:
            states.append(({fact.phase}, fact.output))
        elif before is not None:
            states.append((_after_delete(evidence, before, fact), before.output))
        before = fact
    return states


def _first_out_of_order(
    states: Sequence[State], readable: Sequence[tuple[set[Phase], str]]
) -> int | None:
    """The first state that is not in what is left of the story; None where all are."""
    at = 0
    for number, state in enumerate(states):
        while at < len(readable) and not (
            state.phase in readable[at][0] and state.output == readable[at][1]
        ):
            at += 1
        if at == len(readable):
            return number
    return None


# What must hold in the end.


def _final(evidence: Evidence) -> dict[bytes, Fact]:
    return {key: story[-1] for key, story in evidence.stories().items()}


def _unmarked(evidence: Evidence) -> list[Violation]:
    """What is over is marked, unless the run service will never accept it."""
    found = []
    told = evidence.told()
    for story in evidence.stories().values():
        last = story[-1]
        landings = told.get(_identity(story), [])
        if last.is_over and not last.recorded and not _is_dead(landings, last):
            text = f"{_tale(story)}, {_words(landings)}"
            found.append(Violation("unmarked", _where(story), text))
    return found


def _is_dead(landings: Iterable[Landing], last: Fact) -> bool:
    answers = [each for each in landings if each.phase is last.phase]
    return bool(answers) and any(each.rejected for each in answers)


def _expected(evidence: Evidence, story: Story) -> set[Phase]:
    """What the run service may have been told last; empty where it need not know anything."""
    last = story[-1]
    if last.is_delete:
        before = next((fact for fact in reversed(story) if not fact.is_delete), None)
        return set() if before is None else _after_delete(evidence, before, last)
    if last.phase is Phase.UNSPECIFIED:
        # It is recorded, and no status of it is told; of one before it, one was.
        return {Phase.RUNNING, Phase.UNSPECIFIED} if len(lives(story)) == 1 else set()
    if last.phase in _BEFORE_RUNNING:
        return {last.phase, Phase.RUNNING}
    return {last.phase}


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
        if _identity(story)[0] == "":
            continue
        landings = told.get(_identity(story), [])
        words = [each for each in landings if each.applied]
        last = words[-1].phase if words else Phase.UNSPECIFIED
        expected = _expected(evidence, story)
        if not expected or last in expected or _nobody_saw(evidence, story):
            continue
        if any(each.rejected for each in landings):
            continue
        text = (
            f"the run service heard {last.name} last, and it is "
            f"{'/'.join(each.name for each in sorted(expected))}; "
            f"{_tale(story)}, {_words(landings)}"
        )
        found.append(Violation("last-word", _where(story), text))
    return found


def _database(evidence: Evidence) -> list[Violation]:
    """Flyte's database, whose guard lets an ending go back, holds the state in etcd."""
    found = []
    told = evidence.told()
    for story in evidence.stories().values():
        landings = told.get(_identity(story), [])
        if len(lives(story)) != 1 or any(each.rejected for each in landings):
            continue
        row = Phase.UNSPECIFIED
        for each in landings:
            if each.applied and (row <= each.phase or row in _GOES_BACK_FROM):
                row = each.phase
        ending = story[-1] if story[-1].is_over else None
        if ending is not None and ending.recorded and row is not ending.phase:
            text = f"the database has {row.name}; {_tale(story)}, {_words(landings)}"
            found.append(Violation("database", _where(story), text))
    return found


def _below(evidence: Evidence) -> list[Violation]:
    """Nothing goes on below what was aborted or is gone."""
    found = []
    final = {key: fact for key, fact in _final(evidence).items() if not fact.is_delete}
    uids = {fact.uid for fact in final.values()}
    by_action = {(fact.run, fact.name): fact for fact in final.values()}
    for fact in final.values():
        if not fact.parent:
            continue
        where = f"{fact.run}/{fact.name}"
        if fact.owner and fact.owner not in uids:
            text = f"its parent {fact.parent} is gone; {fact}"
            found.append(Violation("orphan", where, text))
        parent = by_action.get((fact.run, fact.parent))
        if parent is not None and parent.phase is Phase.ABORTED and not fact.is_over:
            text = f"goes on below {fact.parent}, which is aborted: {fact} below {parent}"
            found.append(Violation("goes-on", where, text))
    return found


def _aborts(evidence: Evidence) -> list[Violation]:
    """An abort that was acknowledged has ended the action."""
    found = []
    by_action = {_identity(story): story for story in evidence.stories().values()}
    again = {write.action for write in evidence.writes if write.step.what == "delete"}
    for write in evidence.writes:
        if write.step.what != "abort" or write.outcome != "done" or write.action in again:
            continue
        story = by_action.get(write.action, ())
        if story and not story[-1].is_over and not story[-1].is_delete:
            text = f"{write.step} was acknowledged, and {_tale(story)}"
            found.append(Violation("abort-lost", "/".join(write.action), text))
    return found


def _held(evidence: Evidence) -> list[Violation]:
    """What was to be deleted is gone: nobody but us held it."""
    found = []
    told = evidence.told()
    for story in evidence.stories().values():
        last = story[-1]
        if last.deleting and not _is_dead(told.get(_identity(story), []), last):
            text = f"its deletion was asked for, and it is there; {_tale(story)}"
            found.append(Violation("held", _where(story), text))
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
                text = f"{fact.name}: {problem}; {_tale(story)}, read [{stream}]"
                found.append(Violation("read-last", where, text))
    return found


def _unread(evidence: Evidence, story: Story, fact: Fact, got: State | None) -> str:
    """What is wrong with the last that a reader got of a key whose last state is ``fact``."""
    if story[-1].is_delete:
        if got is None or got.phase in _after_delete(evidence, fact, story[-1]):
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
