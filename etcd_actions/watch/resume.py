"""Where to resume one watched key range: the rules, without any I/O.

A range is *done* at revision D when every event of its keys with ``mod_revision`` <= D has
been delivered, completely. Each rule of this module keeps that true:

- A response's header revision is not a resume point when the response carries events: during
  catch-up etcd stamps each batch with the store's newest revision. Only the events' own
  revisions count.
- All events of one revision come in one response, unless it is a fragment: then its last
  revision may continue in the next one. That revision alone is held back until the
  response ends; a stream that breaks before drops it, and etcd sends all of it again.
- A watch is opened *at* D, not after it, and events up to D are dropped. etcd versions that
  never answer a progress request for a watch that starts in the future make this
  necessary, and versions that send events twice or go back in time make it useful.
- A progress notification carries no events: all events up to its revision were sent. It
  counts only if the caller trusts it, and never in the middle of a fragment.
- When range boundaries move, a new range starts at the lowest D that it overlaps; each
  key keeps the D of the range it came from as its floor until the new range has passed it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from etcd_actions.etcd.api import Event, KeyRange


class Resume:
    """The resume point of one key range.

    Attributes:
        keys: The range.
        done: Every event of it up to this revision was delivered.
    """

    __slots__ = ("_floor_starts", "_floors", "_held", "done", "keys")

    def __init__(self, keys: KeyRange, done: int) -> None:
        self.keys = keys
        self.done = done
        self._held: list[Event] = []
        self._floor_starts: list[bytes] = []
        self._floors: list[int] = []

    @property
    def start_revision(self) -> int:
        """The revision to open a watch at; never 0, which etcd takes for 'from now on'."""
        return max(self.done, 1)

    @property
    def highest(self) -> int:
        """The highest revision up to which some key of the range is done."""
        return max([self.done, *self._floors])

    def accept(self, events: Sequence[Event], *, fragment: bool) -> Sequence[Event]:
        """Accept the events of one response; returns those to deliver now, in order.

        The caller must deliver them all: they count as done.
        """
        if self._held:
            events = [*self._held, *events]
            self._held = []
        if not events:
            return events
        last = events[-1].mod_revision
        before = self.done
        if fragment:
            cut = len(events)
            while cut and events[cut - 1].mod_revision == last:
                cut -= 1
            self._held = list(events[cut:])
            events = events[:cut]
            self.done = max(before, last - 1)
        else:
            self.done = max(before, last)
        if events and events[0].mod_revision <= before:
            events = [event for event in events if event.mod_revision > before]
        return self._above_floors(events) if self._floors else events

    def progress(self, revision: int) -> None:
        """Note a progress notification: all events up to ``revision`` were received."""
        if not self._held:
            self.done = max(self.done, revision)

    def stream_lost(self) -> None:
        """Drop the held events: the next stream delivers them again."""
        self._held = []

    def restart(self, done: int) -> None:
        """Resume at ``done``, after a list at that revision."""
        self._held = []
        self._floors = []
        self._floor_starts = []
        self.done = done

    def _above_floors(self, events: Sequence[Event]) -> Sequence[Event]:
        starts, floors = self._floor_starts, self._floors
        kept = [
            event
            for event in events
            if event.mod_revision > floors[bisect_right(starts, event.key) - 1]
        ]
        if self.done >= max(floors):
            self._floors = []
            self._floor_starts = []
        return kept


def repartition(old: Iterable[Resume], new: Iterable[KeyRange]) -> list[Resume]:
    """Resume points for other boundaries over the same keys, with no stream open.

    Args:
        old: Adjacent ranges in key order; the events that they hold back are dropped.
        new: Adjacent ranges in key order that cover the same keys.
    """
    parts: list[tuple[bytes, bytes, int]] = []
    for resume in old:
        starts = resume._floor_starts or [resume.keys.start]
        floors = resume._floors or [resume.done]
        ends = [*starts[1:], resume.keys.end]
        parts += [
            (start, end, max(floor, resume.done))
            for start, end, floor in zip(starts, ends, floors, strict=True)
        ]
    result = []
    for keys in new:
        inside = [
            (max(start, keys.start), done)
            for start, end, done in parts
            if start < keys.end and end > keys.start
        ]
        resume = Resume(keys, min(done for _, done in inside))
        if any(done > resume.done for _, done in inside):
            resume._floor_starts = [start for start, _ in inside]
            resume._floors = [done for _, done in inside]
        result.append(resume)
    return result
