"""What the oracle looks at, and what it finds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from etcd_actions import Phase
from tests.schedules.facts import Fact, Story, stories
from tests.schedules.readers import Reader
from tests.schedules.run_service import Landing
from tests.schedules.writers import Write

if TYPE_CHECKING:
    from tests.schedules.letters import LetterFact

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
        letters: What happened to dead letters in etcd, in order.
        forgotten: When the run service lost its rows.
        retried: Whether an operator had all that was refused for good told again.
    """

    facts: Sequence[Fact] = ()
    landings: Sequence[Landing] = ()
    writes: Sequence[Write] = ()
    readers: Sequence[Reader] = ()
    late: float = 3.0
    compactions: Sequence[int] = ()
    letters: Sequence[LetterFact] = ()
    forgotten: Sequence[float] = ()
    retried: bool = False

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


def identity(story: Story) -> Action:
    fact = next((each for each in story if not each.is_delete), None)
    return (fact.run, fact.name) if fact is not None else ("", story[0].key.decode())


def where_of(story: Story) -> str:
    return "/".join(identity(story))


def tale(story: Iterable[Fact]) -> str:
    return "etcd [" + " ".join(map(str, story)) + "]"


def words(landings: Iterable[Landing]) -> str:
    return "told [" + " ".join(map(str, landings)) + "]"


def after_delete(evidence: Evidence, before: Fact, deleted: Fact) -> set[Phase]:
    """What may be said of an action whose object was deleted.

    What was not over is ABORTED. What was over keeps its ending; where a compaction took both
    the ending and the deletion before anybody read them, nobody can know it.
    """
    if not before.is_over:
        return {Phase.ABORTED}
    lost = not before.recorded and any(each >= deleted.revision for each in evidence.compactions)
    return {before.phase, Phase.ABORTED} if lost else {before.phase}
