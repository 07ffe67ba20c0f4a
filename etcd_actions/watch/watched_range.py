"""The key ranges that a prefix is watched as, side by side."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from etcd_actions.etcd.api import KeyRange, WatchResponse
from etcd_actions.watch.change import Change, ChangeKind
from etcd_actions.watch.ranges import split
from etcd_actions.watch.resume import Resume, repartition

_FEW_KEYS = 256
# The look-up of a member of an enum costs as much as the change.
_ADDED, _MODIFIED, _DELETED = ChangeKind.ADDED, ChangeKind.MODIFIED, ChangeKind.DELETED


@dataclass(eq=False)
class WatchedRange:
    """One watched range.

    ``keys`` counts its known keys. ``handing_out`` is what was delivered before the changes at
    hand; None where there are none. ``listed_at`` is the revision of the last list of it,
    finished or not; ``idle_until`` one up to which it was read to be as it is known,
    ``compared_at`` the newest such read and ``compared_done`` what was done then;
    ``confirmed_at`` when etcd confirmed its watcher.
    """

    resume: Resume
    keys: int = 0
    handing_out: int | None = None
    listed_at: int = 0
    idle_until: int = 0
    compared_at: int = 0
    compared_done: int = 0
    confirmed_at: float = math.inf

    @property
    def given_out(self) -> int:
        """Every change up to it has been delivered."""
        if self.handing_out is not None:
            return self.handing_out
        return max(self.resume.done, self.idle_until)

    def take(self, response: WatchResponse) -> list[Change]:
        """What the events of a response are to a sink; they count as received."""
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


def whole_ranges(keys: Sequence[KeyRange], known: Iterable[bytes]) -> list[WatchedRange]:
    """The ranges as they were asked for, to be listed."""
    ranges = [WatchedRange(Resume(each, 0)) for each in keys]
    count_keys(ranges, known)
    return ranges


def count_keys(ranges: Sequence[WatchedRange], known: Iterable[bytes]) -> None:
    """Count anew which of the known keys each range has."""
    for range_ in ranges:
        range_.keys = 0
    for key in known:
        for range_ in ranges:
            range_.keys += key in range_.resume.keys


def divided(
    ranges: Sequence[WatchedRange],
    count: int,
    known: Iterable[bytes],
    *,
    likely_prefix: bytes,
) -> list[WatchedRange]:
    """The same keys cut where the keys are, when that is worth it.

    Args:
        ranges: Adjacent ranges, with no stream open.
        count: How many to aim at.
        known: The keys that exist, these and others.
        likely_prefix: See :func:`~etcd_actions.watch.ranges.split`.
    """
    total = sum(range_.keys for range_ in ranges)
    largest = max(range_.keys for range_ in ranges)
    if len(ranges) == count and largest <= max(_FEW_KEYS, 2 * total // count):
        return list(ranges)
    whole = KeyRange(ranges[0].resume.keys.start, ranges[-1].resume.keys.end)
    keys = [key for key in known if key in whole]
    bounds = split(whole, count, keys, likely_prefix=likely_prefix)
    moved = repartition([range_.resume for range_ in ranges], bounds)
    listed_at = max(range_.listed_at for range_ in ranges)
    idle_until = min(range_.given_out for range_ in ranges)
    result = [WatchedRange(resume, listed_at=listed_at, idle_until=idle_until) for resume in moved]
    starts = [resume.keys.start for resume in moved]
    for key in keys:
        result[bisect_right(starts, key) - 1].keys += 1
    return result


def disjoint(keys: Sequence[KeyRange]) -> Sequence[KeyRange]:
    """The same ranges, if no key is in two of them."""
    if not keys:
        raise ValueError("keys: there is nothing to watch: give at least one range")
    in_order = sorted(keys)
    for before, after in pairwise(in_order):
        if after.start < before.end:
            raise ValueError(f"keys: {before} and {after} overlap: give each key once")
    return keys
