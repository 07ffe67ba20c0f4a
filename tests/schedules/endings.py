"""What must hold of endings: told once and for all, marked once each, and by nobody undone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from etcd_actions import Phase
from tests.schedules.evidence import Evidence, Violation, identity, tale, where_of, words
from tests.schedules.facts import Fact, Story, is_foreign, lives
from tests.schedules.run_service import Landing

_AGE_IS_ROUNDED = 1.1
"""Seconds: ``creationTimestamp`` has whole ones."""

Ending = tuple[Phase, int]


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
        landings = told.get(identity(story), [])
        check = _order_of_several if is_foreign(story) else _order_of_one
        for kind, landing, ending in check(evidence, story, landings):
            text = f"{landing} after {ending}; {tale(story)}, {words(landings)}"
            found.append(Violation(kind, where_of(story), text))
    return found


_Wrong = tuple[str, Landing, Landing]


def _order_of_one(evidence: Evidence, _: Story, landings: Iterable[Landing]) -> list[_Wrong]:
    wrong: list[_Wrong] = []
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
            wrong.append(("told-two-endings", landing, ending))
        elif not landing.phase.is_terminal and too_late and landing.attempt <= ending.attempt:
            wrong.append(("told-after-ending", landing, ending))
    return wrong


def _order_of_several(
    evidence: Evidence, story: Story, landings: Iterable[Landing]
) -> list[_Wrong]:
    """Somebody wrote over an ending: endings are told in the order in which they came to be.

    Where the mark was taken away with the ending, what goes on again may be told again.
    """
    wrong: list[_Wrong] = []
    endings = _endings(story)
    at = -1
    last: Landing | None = None
    for landing in landings:
        if not landing.applied:
            continue
        too_late = last is not None and landing.arrived > last.landed + evidence.late
        if not landing.phase.is_terminal:
            if last is not None and too_late and not _was_reopened(story, last, landing):
                wrong.append(("told-after-ending", landing, last))
            continue
        ending = landing.phase, landing.attempt
        rest = endings[max(at, 0) :]
        if ending in rest:
            if landing.accepted:
                at = max(at, 0) + rest.index(ending)
                last = landing
        elif last is not None and too_late:
            wrong.append(("told-two-endings", landing, last))
    return wrong


def _endings(story: Story) -> list[Ending]:
    """The endings that an action had, one after another."""
    found: list[Ending] = []
    for fact in story:
        ending = fact.phase, fact.attempt
        if fact.is_over and found[-1:] != [ending]:
            found.append(ending)
    return found


def _was_reopened(story: Story, ending: Landing, landing: Landing) -> bool:
    """Whether it went on again after an ending: without a mark, or in a newer attempt."""
    if landing.attempt > ending.attempt:
        return True
    over = False
    for fact in story:
        if over and not fact.is_over and not fact.is_delete and fact.seen <= landing.landed:
            return True
        over = over or fact.is_over
    return False


def _marks(evidence: Evidence) -> list[Violation]:
    """An ending is marked once, after it was accepted, as what it is, and the mark stays.

    What somebody else writes over it has a mark of its own to come.
    """
    found = []
    told = evidence.told()
    for story in evidence.stories().values():
        landings = told.get(identity(story), [])
        for life in lives(story):
            marked = False
            before: Fact | None = None
            for fact in life:
                if fact.is_delete:
                    break
                if before is None or fact.stamp != before.stamp:
                    marked = False
                    kinds = _made_marked(before, fact)
                else:
                    kinds = _of_change(before, fact, landings, marked=marked)
                    marked = marked or (fact.recorded and not before.recorded)
                kinds += _wrong_marks(life, before, fact)
                text = f"{fact} ({fact.mark}); {tale(life)}, {words(landings)}"
                found += [Violation(kind, where_of(story), text) for kind in kinds]
                before = fact
    return found


def _made_marked(before: Fact | None, fact: Fact) -> list[str]:
    """What is wrong with what somebody else wrote: nothing, but who creates marks nothing."""
    if before is None and fact.recorded and not fact.stamp:
        return ["mark-changes"]
    return []


def _of_change(before: Fact, fact: Fact, landings: Iterable[Landing], *, marked: bool) -> list[str]:
    """What is wrong with the mark after a change of ours, or of a caller's."""
    if before.recorded:
        if not fact.recorded:
            return ["mark-lost"]
        return ["marked-twice"] if fact.mark != before.mark else []
    if not fact.recorded:
        return []
    kinds = ["marked-twice"] if marked else []
    if not fact.is_over:
        kinds.append("marked-early")
    elif not _accepted_before(landings, fact):
        kinds.append("marked-unaccepted")
    if before.phase is not fact.phase:
        kinds.append("mark-changes")
    return kinds


def _wrong_marks(life: Story, before: Fact | None, fact: Fact) -> list[str]:
    """Whether the annotation says another ending than the one that it was written on."""
    if before is None or fact.mark == before.mark or fact.stamp != before.stamp:
        return []
    if fact.mark == "none":
        # The label was there, about no ending.
        return []
    says = f"{fact.phase.name}/{fact.attempt} {life[0].revision} "
    return [] if fact.mark.startswith(says) and fact.recorded else ["mark-wrong"]


def _accepted_before(landings: Iterable[Landing], fact: Fact) -> bool:
    return any(
        each.accepted
        and each.phase is fact.phase
        and each.attempt == fact.attempt
        and each.landed <= fact.seen
        for each in landings
    )


def _once(evidence: Evidence) -> list[Violation]:
    """An action ends once; only who writes past all methods can end it again."""
    found = []
    for story in evidence.stories().values():
        for life in lives(story):
            before: Fact | None = None
            for fact in life:
                over = before is not None and before.is_over and not fact.is_delete
                if over and before is not None and fact.stamp == before.stamp:
                    was, now = (before.phase, before.attempt), (fact.phase, fact.attempt)
                    if was != now:
                        text = f"{fact} after {before}; {tale(life)}"
                        found.append(Violation("ended-twice", where_of(story), text))
                before = fact
    return found


def _in_time(evidence: Evidence) -> list[Violation]:
    """A condition ends as TIMED_OUT once its time is over, and not before."""
    found = []
    by_action = {identity(story): story for story in evidence.stories().values()}
    for write in evidence.writes:
        timeout = float(write.step.args.get("timeout", "0"))
        story: Sequence[Fact] = by_action.get(write.action, ())
        ends = [fact for fact in story if fact.phase is Phase.TIMED_OUT]
        if not timeout or not ends or len(lives(tuple(story))) != 1:
            continue
        took = ends[0].seen - write.first
        if took < timeout - _AGE_IS_ROUNDED:
            text = f"after {took:.2f} s instead of {timeout:g} s; {tale(story)}"
            found.append(Violation("ended-early", "/".join(write.action), text))
    return found


CHECKS = (_order, _marks, _once, _in_time)
