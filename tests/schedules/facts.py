"""What etcd's history says, one fact a change, as far as the oracle looks at it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from etcd_actions import Phase
from etcd_actions.codecs import codec_of
from etcd_actions.model import (
    ANNOTATION_RECORDED,
    LABEL_TERMINAL_STATUS_RECORDED,
    ActionObject,
    Keyspace,
)
from etcd_actions.model.phase import phase_of
from tests.support.oracle import Entry

STAMP = "schedules.test/written-by"
"""Annotation of what somebody else wrote directly in etcd: which step of the plan it was."""


class Fact(NamedTuple):
    """One change of one object. Of a deletion only key, revision and time count.

    Attributes:
        key: The object's key.
        revision: Of the change.
        seen: When the observer saw it, in ``time.monotonic``'s seconds.
        uid: Of the object, empty where it has none; None says that it was deleted.
        run: Its run.
        name: Its action.
        parent: The parent's name.
        owner: The uid of the object that owns it; empty where none does.
        phase: Its phase.
        attempt: From 1 on.
        recorded: Whether it has the mark.
        output: Where its outputs are.
        kind: ``task`` or ``condition``.
        deleting: Whether its deletion was asked for.
        mark: The annotation that says which ending is recorded; empty without one.
        stamp: Who wrote directly in etcd last, see :data:`STAMP`; empty where nobody did.
    """

    key: bytes
    revision: int
    seen: float = 0.0
    uid: str | None = None
    run: str = ""
    name: str = ""
    parent: str = ""
    owner: str = ""
    phase: Phase = Phase.UNSPECIFIED
    attempt: int = 1
    recorded: bool = False
    output: str = ""
    kind: str = "task"
    deleting: bool = False
    mark: str = ""
    stamp: str = ""

    @property
    def is_delete(self) -> bool:
        """Whether the object was deleted."""
        return self.uid is None

    @property
    def is_over(self) -> bool:
        """Whether it says an ending."""
        return not self.is_delete and self.phase.is_terminal

    def __str__(self) -> str:
        """Short, for messages."""
        if self.is_delete:
            return f"{self.revision}:deleted"
        marked = "+mark" if self.recorded else ""
        asked = "+deleting" if self.deleting else ""
        stamp = f"+{self.stamp}" if self.stamp else ""
        return f"{self.revision}:{self.phase.name}/{self.attempt}{marked}{asked}{stamp}"


Story = tuple[Fact, ...]
"""All that happened to one key, in order."""


def fact_of(entry: Entry, seen: float) -> Fact:
    """What an entry of an object's key says."""
    if entry.is_delete:
        return Fact(entry.key, entry.mod_revision, seen)
    action = codec_of(entry.value).decode(entry.value)
    owners = action.metadata.owner_references
    annotations = action.metadata.annotations
    phase, attempt, recorded = _state_of(action, entry.create_revision)
    return Fact(
        entry.key,
        entry.mod_revision,
        seen,
        action.metadata.uid,
        action.spec.run_name,
        action.spec.action_name,
        action.spec.parent_action_name,
        owners[0].uid if owners else "",
        phase,
        attempt,
        recorded,
        f"{action.output_uri.rpartition('/')[0]}/{attempt}",
        action.spec.kind,
        action.is_deleting,
        annotations.get(ANNOTATION_RECORDED, ""),
        annotations.get(STAMP, ""),
    )


def _state_of(action: ActionObject, create_revision: int) -> tuple[Phase, int, bool]:
    """What an object says: phase, attempt, and whether that is recorded.

    Read here once more, from the text of the mark: the product's own reading is what is judged.
    An older status over a recorded ending says that ending.
    """
    phase, attempt = phase_of(action.status.conditions), max(action.status.attempts, 1)
    mark = action.metadata.annotations.get(ANNOTATION_RECORDED)
    if action.metadata.labels.get(LABEL_TERMINAL_STATUS_RECORDED) != "true":
        return phase, attempt, False
    if mark is None:
        return phase, attempt, phase.is_terminal
    ending, _, rest = mark.partition(" ")
    # A copy has the mark of another incarnation.
    if rest.partition(" ")[0] != str(create_revision):
        return phase, attempt, False
    if phase.is_terminal:
        return phase, attempt, ending == f"{phase.name}/{attempt}"
    name, _, number = ending.partition("/")
    if attempt > int(number):
        return phase, attempt, False
    return Phase[name], int(number), True


def stories(facts: Iterable[Fact]) -> dict[bytes, Story]:
    """The facts of each key."""
    found: defaultdict[bytes, list[Fact]] = defaultdict(list)
    for fact in facts:
        found[fact.key].append(fact)
    return {key: tuple(each) for key, each in found.items()}


def lives(story: Story) -> list[Story]:
    """The incarnations of a key; a deletion is the last fact of one."""
    found: list[list[Fact]] = []
    before: Fact | None = None
    for fact in story:
        if before is None or before.is_delete:
            found.append([])
        found[-1].append(fact)
        before = fact
    return [tuple(each) for each in found]


def is_foreign(story: Iterable[Fact]) -> bool:
    """Whether somebody wrote the object directly in etcd."""
    return any(fact.stamp for fact in story)


def is_object(keys: Keyspace, key: bytes) -> bool:
    """Whether a key is that of a task's or condition's object."""
    return key.startswith(keys.prefix)
