"""Finds the oldest revision of etcd's history."""

from __future__ import annotations

import trio

from etcd_actions.errors import Compacted, Unavailable
from etcd_actions.etcd.api import Etcd, KeyRange, WatchCreate
from etcd_actions.etcd.reasons import error_kind


async def find_oldest_revision(etcd: Etcd, keys: KeyRange, *, within: float = 10.0) -> int:
    """The oldest revision that etcd can still read; 1 if there was no compaction.

    etcd reports it only to a watch that begins below it. Without a compaction such a watch would
    make etcd read all of its history, so a read first checks whether there was one.

    Args:
        etcd: The connection.
        keys: A range that the user may watch; the result is the same for all ranges.
        within: The most seconds that the watch may take.

    Raises:
        EtcdError: etcd did not answer, or refused the watch.
    """
    try:
        await etcd.range(KeyRange.of_key(keys.start), revision=1, count_only=True)
    except Compacted:
        with trio.move_on_after(within):
            async with etcd.watch() as stream:
                stream.create(WatchCreate(1, keys, 1))
                while True:
                    try:
                        responses = await stream.receive()
                    except trio.EndOfChannel:
                        # The stream was silent for longer than its transport accepts.
                        break
                    for response in responses:
                        if response.compact_revision:
                            return response.compact_revision
                        if response.canceled:
                            reason = response.cancel_reason or "etcd cancelled the watch"
                            raise (error_kind(reason) or Unavailable)(f"watch: {reason}") from None
        raise Unavailable("a watch below the compaction revision is not cancelled") from None
    return 1
