"""What must hold whenever it is looked at: nothing false is told, marked, answered or read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from etcd_actions import Phase
from tests.schedules.evidence import (
    Action,
    Evidence,
    Violation,
    after_delete,
    identity,
    tale,
    words,
)
from tests.schedules.facts import Fact, Story
from tests.schedules.plan import PHASES
from tests.schedules.readers import State
from tests.schedules.writers import Write


def _truth(evidence: Evidence) -> list[Violation]:
    """Nothing is told that never was in etcd."""
    found = []
    parents = {(fact.run, fact.parent) for fact in evidence.facts if fact.parent}
    told = evidence.told()
    by_action = {identity(story): story for story in evidence.stories().values()}
    for action, landings in told.items():
        story = by_action.get(action, ())
        true = _true_states(evidence, story)
        if action in parents:
            true |= {(Phase.RUNNING, attempt) for _, attempt in true}
        for landing in landings:
            if landing.applied and (landing.phase, landing.attempt) not in true:
                text = f"{landing} was never so; {tale(story)}, {words(landings)}"
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
            true |= {(phase, before.attempt) for phase in after_delete(evidence, before, fact)}
        before = fact
    return true


def _records(evidence: Evidence) -> list[Violation]:
    """No status lands before the record: Flyte's database would change no row, and say nothing."""
    found = []
    recorded: set[Action] = set()
    refused: set[Action] = set()
    lost = sorted(evidence.forgotten, reverse=True)
    for landing in evidence.landings:
        while lost and lost[-1] <= landing.landed:
            lost.pop()
            recorded.clear()
        if landing.what == "record":
            # One that is rejected does not withhold the status.
            if landing.applied:
                recorded.add(landing.action)
            elif landing.rejected:
                refused.add(landing.action)
        elif landing.applied and landing.action not in recorded | refused:
            text = f"{landing} landed before its record"
            found.append(Violation("unrecorded", "/".join(landing.action), text))
    return found


def _writes(evidence: Evidence) -> list[Violation]:
    """What was acknowledged is in etcd's history, and nobody gets an answer of a bug."""
    found = []
    by_action = {identity(story): story for story in evidence.stories().values()}
    for write in evidence.writes:
        story = by_action.get(write.action, ())
        where = "/".join(write.action)
        if write.faults:
            found.append(Violation("answer", where, f"{write.step} got {write.faults}"))
        if write.outcome == "done" and not _is_in(write, story):
            text = f"{write.step} was acknowledged, and is not in {tale(story)}"
            found.append(Violation("write-lost", where, text))
        if _is_denied(write, story):
            text = f"{write.step} got {write.detail}; {tale(story)}"
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
        case "put-back" | "put-end" | "copy":
            return any(fact.stamp == write.step.stamp for fact in story)
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
    by_action = {identity(story): story for story in evidence.stories().values()}
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
                text = f"{states[at]} is number {at} of [{seen}]; {tale(story)}"
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
            states.append((after_delete(evidence, before, fact), before.output))
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


CHECKS = (_truth, _records, _writes, _reading)
