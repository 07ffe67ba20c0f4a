"""Whether each attempt of a run was started and reported as promised.

etcd's own history has the reports, and the tasks' notes have the starts. Each problem is a text
that begins with a fixed word.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from etcd_actions import ActionUpdate, Phase
from etcd_actions.codecs import codec_of
from etcd_actions.etcd.api import KeyValue
from etcd_actions.model import build_action_update
from etcd_actions.model.earlier_attempts import earlier_attempts
from tests.support.oracle import Entry

_PHASES = {
    Phase.UNSPECIFIED: 0,
    Phase.QUEUED: 1,
    Phase.WAITING_FOR_RESOURCES: 1,
    Phase.INITIALIZING: 2,
    Phase.RUNNING: 3,
}
_TERMINAL = 4


class Start(NamedTuple):
    """A task's note of its start; ``attempt`` counts from 1."""

    action: str
    attempt: int
    machine: str

    @classmethod
    def of(cls, line: str) -> Start:
        """A line of the notes; there the attempts count from 0."""
        action, attempt, machine = line.split()
        return cls(action, int(attempt) + 1, machine)


class Reported(NamedTuple):
    """A state of an action in etcd's history."""

    action: str
    phase: Phase
    attempt: int
    recorded: bool
    earlier: tuple[tuple[int, str], ...]
    """The noted attempts before it, each with the code of its error."""
    output_uri: str = ""

    @property
    def rank(self) -> tuple[int, int]:
        """A number of the attempt and of the progress in it, which only rise."""
        return self.attempt, _PHASES.get(self.phase, _TERMINAL)


def reported(history: Iterable[Entry]) -> list[Reported]:
    """The states of actions in a history of their keys, in order."""
    return [_reported(entry) for entry in history if not entry.is_delete]


def is_recorded(state: Entry | KeyValue) -> bool:
    """Whether an action has ended and its end is recorded."""
    found = _reported(state)
    return found.phase.is_terminal and found.recorded


def _reported(entry: Entry | KeyValue) -> Reported:
    action = codec_of(entry.value).decode(entry.value)
    update: ActionUpdate = build_action_update(
        action, key=entry.key, revision=entry.mod_revision, create_revision=entry.create_revision
    )
    return Reported(
        update.action_id.name,
        update.phase,
        max(update.attempts, 1),
        update.recorded,
        tuple((each.attempt, each.code) for each in earlier_attempts(action)),
        update.output_uri,
    )


def attempt_problems(states: Iterable[Reported], starts: Sequence[Start]) -> list[str]:
    """Each broken promise about the attempts of actions that have all succeeded.

    An attempt is started at most once, after its RUNNING was written, or INITIALIZING if a worker
    submits it to Ray, and none after its
    successor or after a success. It is reported once: by a terminal state, or by the next attempt.
    """
    histories: defaultdict[str, list[Reported]] = defaultdict(list)
    for state in states:
        histories[state.action].append(state)
    notes: defaultdict[str, list[int]] = defaultdict(list)
    for start in starts:
        notes[start.action].append(start.attempt)
    problems = [f"unknown: {name} was started" for name in notes.keys() - histories.keys()]
    for name, history in histories.items():
        problems += _history_problems(name, history)
        problems += _start_problems(name, notes[name], history)
    return problems


def _history_problems(name: str, history: Sequence[Reported]) -> list[str]:
    problems = []
    before: Reported | None = None
    for state in history:
        now = f"{name} {state.phase.name}/{state.attempt}"
        if before is None:
            if state.attempt > 1:
                problems.append(f"skipped: {now} is the first state")
        else:
            if state.rank < before.rank:
                problems.append(f"back: {now} follows {before.phase.name}/{before.attempt}")
            if state.attempt > before.attempt + 1:
                problems.append(f"skipped: {now} follows {before.phase.name}/{before.attempt}")
            if before.phase.is_terminal and (state.phase, state.attempt) != before[1:3]:
                problems.append(f"twice: {now} follows {before.phase.name}/{before.attempt}")
            if before.recorded and not state.recorded:
                problems.append(f"unmarked: {now} has no mark any more")
        before = state
    last = history[-1]
    if last.phase is not Phase.SUCCEEDED:
        problems.append(f"phase: {name} ends as {last.phase.name}")
    if not last.recorded:
        problems.append(f"unmarked: {name} is not recorded")
    noted = [attempt for attempt, _ in last.earlier]
    if noted != list(range(1, last.attempt)):
        problems.append(f"notes: {name} has {last.attempt} attempts and notes of {noted}")
    return problems


def _start_problems(name: str, started: list[int], history: Sequence[Reported]) -> list[str]:
    problems = [
        f"started: {name}/{attempt} {times} times"
        for attempt, times in Counter(started).items()
        if times > 1
    ]
    if started != sorted(started):
        problems.append(f"late: {name} was started as {started}")
    last = history[-1].attempt
    if last not in started:
        problems.append(f"missing: {name}/{last} succeeded and was not started")
    claimed = (Phase.INITIALIZING, Phase.RUNNING)
    ran = {each.attempt for each in history if each.phase in claimed}
    for attempt in sorted(set(started)):
        if attempt > last:
            problems.append(f"late: {name}/{attempt} was started after the success of {last}")
        elif attempt not in ran:
            problems.append(f"unclaimed: {name}/{attempt} was started and never RUNNING")
    return problems


def lost_attempts(states: Iterable[Reported]) -> Counter[str]:
    """The number of attempts that another one followed, by the code of their error."""
    last = {state.action: state for state in states}
    return Counter(code for state in last.values() for _, code in state.earlier)
