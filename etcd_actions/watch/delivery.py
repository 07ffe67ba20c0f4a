"""Delivers changes to a sink, in turns; lists, and delivers the difference."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence

import trio

from etcd_actions.etcd.api import Etcd
from etcd_actions.etcd.paging import open_pages
from etcd_actions.watch.change import Change, ChangeKind
from etcd_actions.watch.delivered import DeliveredRevisions, Sink
from etcd_actions.watch.store_identity import StoreIdentity
from etcd_actions.watch.watched_range import WatchedRange

_TURN = 128
"""Changes that are delivered before other tasks run."""
_ADDED, _MODIFIED = ChangeKind.ADDED, ChangeKind.MODIFIED

Merge = Callable[[Sequence[Change]], Sequence[Change]]
"""Returns the changes of a batch that a sink needs."""


class Delivery:
    """Delivers the changes of a reflector.

    Args:
        sink: Takes the changes.
        merge: See :class:`~etcd_actions.watch.reflector.Reflector`.
        identity: Remembers the newest of them.

    Attributes:
        events: Number of changes that were delivered.
        turn: The number of them since other tasks ran.
        last_received: When etcd last sent something, on trio's clock.
    """

    def __init__(self, sink: Sink, merge: Merge | None, identity: StoreIdentity) -> None:
        self._sink = sink
        self._merge = merge
        self._identity = identity
        self.wait_list_capacity = sink.wait_list_capacity
        self.wait_stream_capacity = sink.wait_stream_capacity
        self.events = 0
        self.turn = 0
        self.last_received = -math.inf

    async def deliver(self, changes: Sequence[Change]) -> None:
        """Deliver changes; other tasks run in between.

        Only a failure interrupts it: the changes that the sink noted count as delivered.
        """
        self.events += len(changes)
        self._identity.remember(changes)
        if self._merge is not None and len(changes) > 1:
            changes = self._merge(changes)
        for start in range(0, len(changes), _TURN):
            part = changes if len(changes) <= _TURN else changes[start : start + _TURN]
            if self.turn >= _TURN:
                self.turn = 0
                await trio.lowlevel.cancel_shielded_checkpoint()
            self.turn += len(part)
            self._sink.dispatch(part)


class Lister:
    """Lists ranges, and delivers the difference to the delivered states.

    Args:
        etcd: The connection.
        known: The delivered revisions.
        delivery: Delivers the difference.
    """

    def __init__(self, etcd: Etcd, known: DeliveredRevisions, delivery: Delivery) -> None:
        self._etcd = etcd
        self._known = known
        self._delivery = delivery

    async def list(self, range_: WatchedRange, revision: int, *, replaced: bool = False) -> int:
        """List a range and deliver the difference to the delivered states.

        Args:
            range_: It is watched from the list's revision afterwards.
            revision: The revision of the list, not below a delivered one; 0 for the newest.
            replaced: The store is another one: equal revisions prove nothing, so every
                state is delivered.
        """
        known, keys, listed = self._known, range_.resume.keys, 0
        missing = {key for key in known if key in keys} if range_.keys else set()
        async with open_pages(self._etcd, keys, revision=revision) as pages:
            async for page in pages:
                await self._delivery.wait_list_capacity()
                self._delivery.last_received = trio.current_time()
                revision = range_.listed_at = page.revision
                listed += len(page.kvs)
                range_.keys = max(range_.keys, listed)
                changes = []
                for kv in page.kvs:
                    seen = known.revision_of(kv.key)
                    if seen:
                        missing.discard(kv.key)
                        if kv.mod_revision == seen and not replaced:
                            continue
                        if kv.create_revision > abs(seen):
                            changes.append(
                                Change.deletion(kv.key, kv.create_revision - 1, synthesised=True)
                            )
                            seen = 0
                    changes.append(Change(_MODIFIED if seen else _ADDED, kv, listed=True))
                await self._delivery.deliver(changes)
        # Those of another store have other revisions.
        missing.update(known.expected_in(keys, sys.maxsize if replaced else revision))
        await self._delivery.deliver(
            [
                Change.deletion(key, max(abs(known.revision_of(key)), revision), synthesised=True)
                for key in missing
            ]
        )
        range_.keys = listed
        range_.resume.restart(revision)
        range_.delivering_revision = None
        return revision

    async def agrees(self, range_: WatchedRange, revision: int) -> bool:
        """Whether the delivered states of a range can have led to its state at a revision."""
        done = (
            range_.delivering_revision
            if range_.delivering_revision is not None
            else range_.resume.done
        )
        async with open_pages(
            self._etcd, range_.resume.keys, revision=revision, keys_only=True
        ) as pages:
            async for page in pages:
                for kv in page.kvs:
                    seen = self._known.revision_of(kv.key)
                    # A negative one is not redelivered yet, so it is not compared.
                    if seen >= 0 and not (kv.mod_revision == seen or kv.mod_revision > done):
                        return False
        return True
