"""What must hold of dead letters: what is refused for good is written down, and told in the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from etcd_actions.dead_letters import read_dead_letters
from etcd_actions.etcd.api import KeyValue
from etcd_actions.model import Keyspace
from tests.schedules.evidence import Action, Evidence, Violation, identity, tale, where_of
from tests.schedules.facts import Fact, lives
from tests.schedules.run_service import Landing
from tests.support.oracle import Entry


class LetterFact(NamedTuple):
    """One change of a letter's key.

    Attributes:
        key: The letter's.
        revision: Of the change.
        action: Which action it is about; empty names where it was deleted.
        what: ``record`` or ``status``.
        is_delete: Whether the letter went.
    """

    key: bytes
    revision: int
    action: Action = ("", "")
    what: str = ""
    is_delete: bool = False


def letter_of(keys: Keyspace, entry: Entry) -> LetterFact:
    """What an entry of a letter's key says."""
    if entry.is_delete:
        return LetterFact(entry.key, entry.mod_revision, is_delete=True)
    kv = KeyValue(
        entry.key, entry.value, entry.create_revision, entry.mod_revision, entry.version, 0
    )
    (letter,) = read_dead_letters(keys, [kv])
    named = letter.action_id
    return LetterFact(entry.key, entry.mod_revision, (named.run, named.name), letter.what)


def there(letters: Iterable[LetterFact], revision: int | None = None) -> set[tuple[Action, str]]:
    """Which letters there were at a revision, by action and call; now, without one."""
    found: dict[bytes, LetterFact] = {}
    for letter in letters:
        if revision is not None and letter.revision > revision:
            break
        if letter.is_delete:
            found.pop(letter.key, None)
        else:
            found[letter.key] = letter
    return {(letter.action, letter.what) for letter in found.values()}


def _before_marks(evidence: Evidence) -> list[Violation]:
    """Nothing is marked of which neither a record was accepted, nor a letter is there."""
    found = []
    records = evidence.told("record")
    for story in evidence.stories().values():
        action = identity(story)
        for life in lives(story):
            before: Fact | None = None
            for fact in life:
                was = before is None or before.recorded
                if fact.recorded and not was and not _has_row(records.get(action, ()), fact):
                    letters = there(evidence.letters, fact.revision)
                    if (action, "record") not in letters:
                        text = f"{fact}, and no record was accepted; {tale(life)}"
                        found.append(Violation("marked-unrecorded", where_of(story), text))
                before = fact
    return found


def _has_row(records: Iterable[Landing], fact: Fact) -> bool:
    return any(each.accepted and each.landed <= fact.seen for each in records)


def _written_down(evidence: Evidence) -> list[Violation]:
    """What was refused for good last has a letter, and what was accepted last has none."""
    found = []
    letters = there(evidence.letters)
    stories = {identity(story): story for story in evidence.stories().values()}
    last: dict[tuple[Action, str], Landing] = {}
    for landing in evidence.landings:
        if landing.rejected or landing.accepted:
            last[landing.action, landing.what] = landing
    for (action, what), landing in last.items():
        story = stories.get(action, ())
        if story and any(each >= story[-1].revision for each in evidence.compactions):
            # A deletion that nobody saw is told by nobody.
            continue
        has = (action, what) in letters
        if landing.rejected and not has:
            text = f"{what} {landing} has no letter; {tale(story)}"
            found.append(Violation("letter-missing", "/".join(action), text))
        elif landing.accepted and has:
            text = f"{what} {landing}, and its letter is there; {tale(story)}"
            found.append(Violation("letter-stays", "/".join(action), text))
    return found


def _answered(evidence: Evidence) -> list[Violation]:
    """After the operator had all told again nothing is refused, so no letter is left."""
    left: Sequence[tuple[Action, str]] = sorted(there(evidence.letters)) if evidence.retried else ()
    return [
        Violation("letter-stays", "/".join(action), f"the letter about its {what} is there")
        for action, what in left
    ]


ALWAYS = (_before_marks,)
FINALLY = (_written_down, _answered)
