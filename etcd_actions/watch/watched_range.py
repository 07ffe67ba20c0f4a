"""The adjacent key ranges into which a prefix is divided, each with a watcher of its own."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import trio

from etcd_actions.etcd.api import KeyRange, WatchResponse
from etcd_actions.watch.change import Change, ChangeKind
from etcd_actions.watch.delivered import DeliveredRevisions
from etcd_actions.watch.ranges import split
from etcd_actions.watch.resume import Resume, repartition

_FEW_KEYS = 256
"""Ranges with fewer keys are not divided again, however unequal they are."""
# The look-up of a member of an enum costs as much time as the construction of a Change.
_ADDED, _MODIFIED, _DELETED = ChangeKind.ADDED, ChangeKind.MODIFIED, ChangeKind.DELETED


@dataclass(eq=False)
class WatchedRange:
    """One watched range.

    Attributes:
        resume: Where its watch resumes.
        keys: The number of its known keys.
        delivering_revision: ``delivered_revision`` before the changes that are being delivered;
            None while none are.
        listed_revision: The revision of its last list, complete or not.
        idle_revision: The range is unchanged up to it, by the two reads of
            :mod:`etcd_actions.watch.idle_check`.
        compared_revision: The revision of the newest such read.
        compared_done: ``resume.done`` at that read.
        confirmed_at: When etcd confirmed its watcher, on trio's clock.
    """

    resume: Resume
    keys: int = 0
    delivering_revision: int | None = None
    listed_revision: int = 0
    idle_revision: int = 0
    compared_revision: int = 0
    compared_done: int = 0
    confirmed_at: float = math.inf

    @property
    def delivered_revision(self) -> int:
        """Every change up to it has been delivered."""
        if self.delivering_revision is not None:
            return self.delivering_revision
        return max(self.resume.done, self.idle_revision)

    def take(self, response: WatchResponse) -> list[Change]:
        """Turn the events of a response into changes. The events count as received."""
        changes = []
        for event in self.resume.accept(response.events, fragment=response.fragment):
            version = event.version
            if version == 1:
                changes.append(Change(_ADDED, event))
                self.keys += 1
            elif version:
                changes.append(Change(_MODIFIED, event))
            else:
                changes.append(Change(_DELETED, event))
                self.keys -= 1
        return changes


class WatchedRanges:
    """All ranges that a reflector watches.

    Args:
        keys: The ranges to watch. The first one is divided, the others are not.
        known: The delivered revisions.
        likely_prefix: See :func:`~etcd_actions.watch.ranges.split`.

    Attributes:
        all: The ranges; those that the first one was divided into come first.
        waiters: Tasks that wait for the ranges to advance.

    Raises:
        ValueError: There are no ``keys``, or some overlap.
    """

    def __init__(
        self, keys: Sequence[KeyRange], known: DeliveredRevisions, likely_prefix: bytes
    ) -> None:
        self._keys = disjoint(keys)
        self._known = known
        self._likely_prefix = likely_prefix or keys[0].start
        self.waiters = trio.lowlevel.ParkingLot()
        self.restart()

    def restart(self) -> None:
        """Return to the requested ranges, undivided: all have to be listed."""
        self.all = [WatchedRange(Resume(each, 0)) for each in self._keys]
        self.count_keys()

    def count_keys(self) -> None:
        """Count again how many of the known keys each range has."""
        for range_ in self.all:
            range_.keys = 0
        for key in self._known:
            for range_ in self.all:
                range_.keys += key in range_.resume.keys

    def divide(self, count: int) -> None:
        """Divide the first requested range at the quantiles of its keys, if it has enough keys.

        No stream may be open.

        Args:
            count: The number of ranges to aim at.
        """
        first = len(self.all) - len(self._keys) + 1
        self.all[:first] = _divided(self.all[:first], count, self._known, self._likely_prefix)

    @property
    def first_key(self) -> bytes:
        """The start of the first range that was requested."""
        return self._keys[0].start

    @property
    def revision(self) -> int:
        """Every change up to it was delivered."""
        return min(range_.delivered_revision for range_ in self.all)

    @property
    def highest(self) -> int:
        """The highest revision up to which the changes of some key were received."""
        return max(range_.resume.highest for range_ in self.all)

    def revision_of(self, key: bytes) -> int:
        """Every change of a key up to it was delivered; 0 if the key is not watched."""
        found = (each.delivered_revision for each in self.all if key in each.resume.keys)
        return min(found, default=0)

    def parts_of(self, keys: KeyRange) -> list[tuple[KeyRange, int]]:
        """Up to which revision each part of a range was delivered.

        Returns:
            Adjacent parts; none if a part of the range is not watched.
        """
        parts = [
            (
                KeyRange(max(keys.start, each.start), min(keys.end, each.end)),
                range_.delivered_revision,
            )
            for range_ in self.all
            if (each := range_.resume.keys).start < keys.end and keys.start < each.end
        ]
        parts.sort()
        ends = [keys.start, *(part.end for part, _ in parts)]
        starts = [*(part.start for part, _ in parts), keys.end]
        return parts if starts == ends else []


def _divided(
    ranges: Sequence[WatchedRange], count: int, known: Iterable[bytes], likely_prefix: bytes
) -> list[WatchedRange]:
    """Divide adjacent ranges again; the same ranges if they are about equal."""
    total = sum(range_.keys for range_ in ranges)
    largest = max(range_.keys for range_ in ranges)
    if len(ranges) == count and largest <= max(_FEW_KEYS, 2 * total // count):
        return list(ranges)
    all_keys = KeyRange(ranges[0].resume.keys.start, ranges[-1].resume.keys.end)
    keys = [key for key in known if key in all_keys]
    bounds = split(all_keys, count, keys, likely_prefix=likely_prefix)
    moved = repartition([range_.resume for range_ in ranges], bounds)
    listed = max(range_.listed_revision for range_ in ranges)
    idle = min(range_.delivered_revision for range_ in ranges)
    result = [WatchedRange(resume, listed_revision=listed, idle_revision=idle) for resume in moved]
    starts = [resume.keys.start for resume in moved]
    for key in keys:
        result[bisect_right(starts, key) - 1].keys += 1
    return result


def disjoint(keys: Sequence[KeyRange]) -> Sequence[KeyRange]:
    """The ranges, if no key is in two of them."""
    if not keys:
        raise ValueError("keys: there is nothing to watch: give at least one range")
    in_order = sorted(keys)
    for before, after in pairwise(in_order):
        if after.start < before.end:
            raise ValueError(f"keys: {before} and {after} overlap: give each key once")
    return keys
