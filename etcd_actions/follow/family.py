"""Reads an action with its children at one revision, without a list of its run.

A family is an action and its children. The index has the children that the watch has delivered. One
transaction reads all of them, at its revision. The index may have lacked a child at that revision,
so that is checked:

- If progress can be requested, a progress notification is requested, and the index is then compared
  with the objects that were read. If a child was created up to that revision and was not read, all
  are read again.
- If not (etcd below 3.4.25 and 3.5.8, and the gateway), the transaction itself compares that no key
  of the run has changed since the last delivered revision. etcd checks the complete run for that,
  and sends none of it.

The caller lists the run (:class:`~etcd_actions.actions.listing.Lister`) if the family is too large
for one transaction, or if the run changes all the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol

import trio

from etcd_actions.actions.listing import Listing, below, readable
from etcd_actions.errors import InvalidRequest, RequestTooLarge
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Get,
    KeyRange,
    Txn,
)
from etcd_actions.follow.index import Index
from etcd_actions.model import ActionId, ActionUpdate, Keyspace
from etcd_actions.storage.store import Store, key_of

_MOST: Final = 100
"""The most keys of one transaction; etcd's --max-txn-ops is 128 by default."""
# Reads of a family that changes at the same time; then its run is listed.
_TRIES: Final = 3
_PATIENCE: Final = 0.5
"""Seconds for the watch to reach the revision of the read, if progress is requested."""
_PAUSE: Final = 0.05
"""Seconds for the watch to advance by itself, after a compare that failed."""
_REQUEST_AGAIN: Final = 60.0
"""Seconds without another request of progress, after one that had no answer in time."""


class Progress(Protocol):
    """The progress of a watch, as :class:`~etcd_actions.watch.Reflector` has it."""

    def progress(self, keys: KeyRange, /) -> list[tuple[KeyRange, int]]:
        """Adjacent parts of a range, with the revision up to which each was delivered."""

    @property
    def can_request_progress(self) -> bool:
        """Whether a progress notification can be requested."""

    async def reach(self, keys: Sequence[KeyRange], revision: int, /) -> None:
        """Return once every change of these keys up to a revision was delivered."""


class _Family(NamedTuple):
    """The keys of an action, its children and their traces.

    Attributes:
        ranges: The ranges of the run: of its objects and, if requested, of its traces.
        parents: In each range, the key that the action has there or would have.
    """

    ranges: tuple[KeyRange, ...]
    parents: tuple[bytes, ...]

    def has(self, key: bytes) -> bool:
        """Whether a key is in one of the ranges."""
        return any(key in each for each in self.ranges)


class FamilyReader:
    """Reads an action and its children.

    Args:
        store: Reads the actions.
        index: Has the children of each action.
        progress: Returns the watch that keeps the index up to date; None if the index may lack
            changes.
    """

    def __init__(self, store: Store, index: Index, progress: Callable[[], Progress | None]) -> None:
        self._store = store
        self._index = index
        self._progress = progress
        self._request_from = -math.inf

    async def read(
        self,
        parent: ActionId,
        keys: Keyspace,
        *,
        traces: bool = False,
        since: Callable[[], Iterable[ActionUpdate]] = tuple,
    ) -> Listing | None:
        """Read an action and its children at one revision, the listing's.

        Args:
            parent: The action; its name is not empty.
            keys: The keyspace of the action.
            traces: Whether to read traces that are children, too.
            since: Returns the family's updates that were delivered since a time before the call. A
                child that was deleted since then is in these updates only.

        Returns:
            The listing; None if the caller has to list the run.

        Raises:
            EtcdError: The read failed.
        """
        family = _family(keys, parent, traces)
        for _ in range(_TRIES):
            large = any(len(self._index.children(key)) > _MOST for key in family.parents)
            if large or (progress := self._progress()) is None:
                return None
            watched = all(progress.progress(each) for each in family.ranges)
            read = self._known(family, since())
            if not watched or len(read) > _MOST:
                return None
            may_request = (
                progress.can_request_progress and trio.current_time() >= self._request_from
            )
            compares = [] if may_request else _unchanged(progress, family.ranges)
            if compares is None:
                return None
            gets = [Get(KeyRange.of_key(key)) for key in sorted(read)]
            try:
                result = await self._store.read_txn(Txn(compares, gets))
            except (InvalidRequest, RequestTooLarge):
                # The user may not read all of the run, or etcd allows fewer operations.
                return None
            with trio.move_on_after(_PATIENCE if may_request else _PAUSE) as patience:
                if may_request or not result.succeeded:
                    await progress.reach(family.ranges, result.revision)
            if patience.cancelled_caught and may_request:
                self._request_from = trio.current_time() + _REQUEST_AGAIN
            if not result.succeeded or patience.cancelled_caught:
                continue
            if may_request and (
                self._progress() is not progress
                or self._has_more(family, read, since(), result.revision)
            ):
                continue
            kvs = [kv for each in result.responses if (kv := key_of(each)) is not None]
            return Listing(below(await readable(kvs), parent), result.revision)
        return None

    def _known(self, family: _Family, since: Iterable[ActionUpdate]) -> set[bytes]:
        """The keys of a family that the index or an update has."""
        known = set(family.parents)
        for key in family.parents:
            known.update(filter(family.has, self._index.children(key)))
        known.update(each.key for each in since if family.has(each.key))
        return known

    def _has_more(
        self, family: _Family, read: set[bytes], since: Iterable[ActionUpdate], revision: int
    ) -> bool:
        """Whether a member of the family, created up to a revision, was not read."""
        since = list(since)
        created: dict[bytes, float] = {each.key: each.create_revision for each in since}
        for key in self._known(family, since) - read:
            if (known := self._index.get(key)) is not None:
                created[key] = min(known.create_revision, created.get(key, math.inf))
            if created[key] <= revision:
                return True
        return False


def _family(keys: Keyspace, parent: ActionId, traces: bool) -> _Family:
    keys = keys.of(parent)
    parents = [keys.task_action(parent), keys.trace(parent)]
    ranges = [KeyRange.of_prefix(each) for each in keys.run_prefixes(parent.run)[:2]]
    count = 2 if traces else 1
    return _Family(tuple(ranges[:count]), tuple(parents[:count]))


def _unchanged(progress: Progress, ranges: Iterable[KeyRange]) -> list[Compare] | None:
    """Compares that no key has changed since its delivered revision; None if one is not watched."""
    compares = []
    for keys in ranges:
        parts = progress.progress(keys)
        if not parts:
            return None
        compares += [
            Compare(
                part.start, CompareTarget.MOD_REVISION, CompareResult.LESS, revision + 1, part.end
            )
            for part, revision in parts
        ]
    return compares
