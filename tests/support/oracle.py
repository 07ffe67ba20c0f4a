"""What really happened in etcd, and whether a recording is faithful to it.

The checks are pure functions over lists. Each returns what is wrong, as texts that begin
with a fixed word, so that tests of the oracle itself can name what they expect.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from etcd_actions import ActionUpdate
from etcd_actions.codecs import codec_of
from etcd_actions.errors import DecodeError, Unavailable
from etcd_actions.etcd.api import Etcd, KeyRange, WatchCreate, WatchResponse
from etcd_actions.model import (
    ANNOTATION_RECORDED,
    LABEL_TERMINAL_STATUS_RECORDED,
    build_action_update,
)
from etcd_actions.record.recorder import TerminalState
from etcd_actions.watch import Change
from tests.support.patient import patiently
from tests.support.recording import Told

_FENCE = b"/oracle-fence"
_ALL = b"\0"


class Entry(NamedTuple):
    """One change of one key in etcd's own history; ``version`` is 0 for a delete."""

    key: bytes
    mod_revision: int
    create_revision: int
    version: int
    value: bytes

    @property
    def is_delete(self) -> bool:
        """Whether the key was deleted."""
        return self.version == 0


class Skipped(NamedTuple):
    """Revisions above ``after`` and up to ``upto`` that a list stood in for.

    Of these only each key's state at ``upto`` has to have been given out.
    """

    after: int
    upto: int


async def read_history(etcd: Etcd, keys: KeyRange, *, since: int = 1) -> list[Entry]:
    """All changes of ``keys`` from revision ``since`` up to now, in order.

    One watcher over all keys, which etcd serves in order, up to a fence written now. It
    begins again when a member or a leader goes; the history must not be compacted.
    """
    return await patiently(_read_history, etcd, keys, since)


async def _read_history(etcd: Etcd, keys: KeyRange, since: int) -> list[Entry]:
    fence = (await etcd.put(_FENCE, b"")).revision
    found: list[Entry] = []
    async with etcd.watch() as stream:
        stream.create(watch_all(since))
        while not found or found[-1].mod_revision < fence:
            for response in await stream.receive():
                if response.compact_revision:
                    raise AssertionError(f"the history is gone: {response}")
                if response.canceled:
                    raise Unavailable(response.cancel_reason)
                found += entries_of(response, _ALL)
    # Some versions of etcd send events twice.
    unique = {(entry.mod_revision, entry.key): entry for entry in found}
    entries = [entry for _, entry in sorted(unique.items(), key=lambda item: item[0])]
    return [entry for entry in entries if entry.key in keys and entry.mod_revision < fence]


def watch_all(since: int) -> WatchCreate:
    """The one watcher of a stream, over all keys."""
    return WatchCreate(1, KeyRange(_ALL, _ALL), since)


def entries_of(response: WatchResponse, prefix: bytes) -> list[Entry]:
    """What a response says of the keys from ``prefix`` on that begin with it."""
    return [
        Entry(each.key, each.mod_revision, each.create_revision, each.version, each.value)
        for each in response.events
        if prefix == _ALL or each.key.startswith(prefix)
    ]


def final_states(history: Iterable[Entry]) -> dict[bytes, Entry]:
    """The last entry of each key."""
    return {entry.key: entry for entry in history}


def delivery_problems(
    changes: Iterable[Change], history: Sequence[Entry], *, skipped: Sequence[Skipped] = ()
) -> list[str]:
    """What is wrong with what a reflector gave out, given what happened.

    ``skipped`` names what history could not provide any more; everything else must have
    been given out exactly once, in order per key.
    """
    given: defaultdict[bytes, list[Change]] = defaultdict(list)
    for change in changes:
        given[change.key].append(change)
    happened: defaultdict[bytes, list[Entry]] = defaultdict(list)
    for entry in history:
        happened[entry.key].append(entry)
    problems = [f"invented: {key!r} never existed" for key in given.keys() - happened.keys()]
    for key, entries in happened.items():
        problems += _key_problems(key, given[key], entries, skipped)
    return problems


def _key_problems(
    key: bytes, changes: list[Change], entries: list[Entry], skipped: Sequence[Skipped]
) -> list[str]:
    problems = []
    real = {entry.mod_revision: entry for entry in entries}
    before: Change | None = None
    for change in changes:
        where = f"{key!r} at {change.mod_revision}"
        if before is not None and change.mod_revision <= before.mod_revision:
            problems.append(f"order: {where} after {before.mod_revision}")
        if change.synthesised:
            if _state_at(entries, change.mod_revision) is not None:
                problems.append(f"synthesised: {where}, but the key existed")
        elif not _same(change, real.get(change.mod_revision)):
            problems.append(f"invented: {where} is {change.kind}, etcd has another state")
        if change.is_delete:
            if (before is None or before.is_delete) and change.synthesised:
                problems.append(f"synthesised: {where}, but nothing was to be deleted")
        elif (
            before is not None
            and not before.is_delete
            and before.create_revision != change.create_revision
        ):
            problems.append(f"incarnation: {where} follows another one without a delete")
        before = change
    seen = {change.mod_revision for change in changes if not change.synthesised}
    for entry in entries:
        gaps = [gap for gap in skipped if gap.after < entry.mod_revision <= gap.upto]
        needed = not gaps or any(_state_at(entries, gap.upto) == entry for gap in gaps)
        if needed and entry.mod_revision not in seen:
            problems.append(f"missing: {key!r} at {entry.mod_revision}")
    last = entries[-1]
    if before is None:
        if not last.is_delete:
            problems.append(f"final: {key!r} was never given out")
    elif before.is_delete != last.is_delete or (
        not last.is_delete and before.mod_revision != last.mod_revision
    ):
        problems.append(f"final: {key!r} ends at {before.mod_revision}, not {last.mod_revision}")
    return problems


def _same(change: Change, entry: Entry | None) -> bool:
    return entry is not None and (
        change.create_revision,
        change.version,
        change.value or b"",
    ) == (entry.create_revision, entry.version, entry.value)


def _state_at(entries: Iterable[Entry], revision: int) -> Entry | None:
    """What the key was at ``revision``; None if it did not exist."""
    last = None
    for entry in entries:
        if entry.mod_revision <= revision:
            last = entry
    return None if last is None or last.is_delete else last


class _State(NamedTuple):
    """A stored TaskAction as far as marks go; ``ending`` is None where it is not over."""

    ending: TerminalState | None
    recorded: bool


def _state_of(entry: Entry) -> _State:
    try:
        action = codec_of(entry.value).decode(entry.value)
    except DecodeError:
        return _State(None, recorded=False)
    update = build_action_update(
        action,
        key=entry.key,
        revision=entry.mod_revision,
        create_revision=entry.create_revision,
    )
    labelled = update.recorded or action.state().stray
    return _State(TerminalState.of(update) if update.phase.is_terminal else None, labelled)


def mark_problems(
    history: Sequence[Entry], told: Iterable[Told], *, whole: bool = True
) -> list[str]:
    """What is wrong with the marks, given what the run service accepted.

    With ``whole`` false a terminal object may still be without its mark.
    """
    accepted: defaultdict[bytes, list[Told]] = defaultdict(list)
    for one in told:
        accepted[one.key].append(one)
    happened: defaultdict[bytes, list[Entry]] = defaultdict(list)
    for entry in history:
        happened[entry.key].append(entry)
    problems = []
    for key, entries in happened.items():
        previous: Entry | None = None
        before = _State(None, recorded=False)
        marks = 0
        for entry in entries:
            if entry.is_delete:
                previous, before, marks = None, _State(None, recorded=False), 0
                continue
            state = _state_of(entry)
            where = f"{key!r} at {entry.mod_revision}"
            if state.recorded and not before.recorded:
                marks += 1
                if marks > 1:
                    problems.append(f"twice: {where} marks again")
                if state.ending is None:
                    problems.append(f"early: {where} marks what is not over")
                elif not any(
                    one.ending == state.ending
                    and not one.is_deleted
                    and one.at < entry.mod_revision
                    for one in accepted[key]
                ):
                    problems.append(f"unaccepted: {where} marks what nobody accepted before")
                if previous is None or _without_mark(entry.value) != _without_mark(previous.value):
                    problems.append(f"damage: {where} marks and changes something else")
            if before.recorded and not state.recorded:
                if state.ending in (None, before.ending):
                    problems.append(f"lost: {where} takes the mark away")
                else:
                    # Another ending is marked anew.
                    marks = 0
            previous, before = entry, state
        if whole and before.ending is not None and not before.recorded:
            problems.append(f"unmarked: {key!r} is over and has no mark")
    return problems


def _without_mark(value: bytes) -> object:
    tree = codec_of(value).decode_tree(value)
    metadata = tree["metadata"]
    for field, name in (
        ("labels", LABEL_TERMINAL_STATUS_RECORDED),
        ("annotations", ANNOTATION_RECORDED),
    ):
        texts = metadata.get(field)
        if texts is not None:
            texts.pop(name, None)
            if not texts:
                del metadata[field]
    return tree


def told_problems(told: Iterable[Told]) -> list[str]:
    """What is wrong with the order in which one process told the run service."""
    newest: dict[bytes, int] = {}
    problems = []
    for one in told:
        if one.revision < newest.get(one.key, 0):
            problems.append(f"order: {one.key!r} was told {one.revision} after {newest[one.key]}")
        newest[one.key] = one.revision
    return problems


def subscriber_problems(
    updates: Sequence[ActionUpdate], history: Sequence[Entry], keys: Iterable[bytes]
) -> list[str]:
    """What is wrong with what a subscriber to ``keys`` received; states may be left out."""
    problems = []
    real = {(entry.key, entry.mod_revision) for entry in history}
    newest: dict[bytes, ActionUpdate] = {}
    for update in updates:
        before = newest.get(update.key)
        where = f"{update.key!r} at {update.revision}"
        if before is not None and update.revision <= before.revision:
            problems.append(f"order: {where} after {before.revision}")
        if not update.is_deleted and (update.key, update.revision) not in real:
            problems.append(f"invented: {where}")
        newest[update.key] = update
    final = final_states(history)
    for key in keys:
        last, got = final[key], newest.get(key)
        if got is None:
            if not last.is_delete:
                problems.append(f"final: {key!r} was never received")
        elif got.is_deleted != last.is_delete or (
            not last.is_delete and got.revision != last.mod_revision
        ):
            problems.append(f"final: {key!r} ends at {got.revision}, not {last.mod_revision}")
    return problems
