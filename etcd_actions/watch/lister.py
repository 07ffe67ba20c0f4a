"""Lists a range, and delivers the states that differ from the delivered ones."""

from __future__ import annotations

import sys

import trio

from etcd_actions.etcd.api import Etcd
from etcd_actions.etcd.paging import open_pages
from etcd_actions.watch.change import Change, ChangeKind
from etcd_actions.watch.delivered import DeliveredRevisions
from etcd_actions.watch.delivery import Delivery
from etcd_actions.watch.watched_range import WatchedRange

_ADDED, _MODIFIED = ChangeKind.ADDED, ChangeKind.MODIFIED


class Lister:
    """Lists ranges, and delivers the states that differ from the delivered ones.

    Args:
        etcd: The connection.
        known: The delivered revisions.
        delivery: Receives the difference.
    """

    def __init__(self, etcd: Etcd, known: DeliveredRevisions, delivery: Delivery) -> None:
        self._etcd = etcd
        self._known = known
        self._delivery = delivery

    async def list(self, range_: WatchedRange, revision: int, *, replaced: bool = False) -> int:
        """List a range, and deliver each state, or deletion, that was not delivered before.

        Args:
            range_: The range. Its watch resumes at the list's revision.
            revision: The revision of the list, not below a delivered one; 0 for the newest.
            replaced: Whether the store is another one. Then equal revisions prove nothing, and
                every state is delivered.

        Returns:
            The revision of the list.

        Raises:
            Compacted, FutureRevision: etcd cannot read the revision.
            EtcdError: Another read failed. After an error, or a cancellation, the pages before it
                are delivered, and the resume point of the range is unchanged.
        """
        known, keys, listed = self._known, range_.resume.keys, 0
        missing = {key for key in known if key in keys} if range_.keys else set()
        async with open_pages(self._etcd, keys, revision=revision) as pages:
            async for page in pages:
                await self._delivery.wait_list_capacity()
                self._delivery.last_received = trio.current_time()
                revision = range_.listed_revision = page.revision
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
        # The expected keys of another store count at any revision.
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
        """Whether a range's state at a revision is possible after the delivered changes.

        It is impossible if the state has a key whose revision is not above the delivered one of the
        range, and is another one than was delivered for that key.
        """
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
                    # A negative revision is to be delivered again: it is not compared.
                    if seen >= 0 and not (kv.mod_revision == seen or kv.mod_revision > done):
                        return False
        return True
